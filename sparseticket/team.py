"""Several runs side by side: the processes of one ``torchrun`` or ``accelerate launch`` share trainings among them.

Each trains whole networks by itself, on a GPU of its own, instead of a share of every batch: values are those of one
process, bit for bit. They meet in the launch's store and in the output folder, which all must see.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from sparseticket.errors import UserError

if TYPE_CHECKING:
    from torch.distributed import Store

T = TypeVar("T")
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE")  # LOCAL_WORLD_SIZE stays: by it processes share a machine's cores
FOREVER = timedelta(days=365)  # a neighbour may train for days; one that died ends the launch


@dataclass(frozen=True)
class Team:
    """Processes that share trainings; without a ``store``, one process that does everything."""

    store: Store | None = None
    index: int = 0
    count: int = 1

    @classmethod
    def of_launch(cls) -> Team:
        """The processes of this launch. From here on each is by itself for torch, Accelerate and CUDA.

        To be called before CUDA is used.

        Raises:
            UserError: nothing has launched several processes.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            raise UserError(
                "--side-by-side shares trainings among several processes: launch them, as in "
                "`torchrun --nproc_per_node 4 -m sparseticket …`."
            )
        from torch.distributed import rendezvous

        store, index, count = next(iter(rendezvous("env://")))
        local = int(os.environ.get("LOCAL_RANK", index))
        for variable in LAUNCHED:
            os.environ.pop(variable, None)
        visible = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
        if visible or "CUDA_VISIBLE_DEVICES" not in os.environ:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible[local % len(visible)] if visible else str(local)
        return cls(store, index, count)

    @property
    def main(self) -> bool:
        """True for the process that speaks for all."""
        return self.index == 0

    def takes(self, work: str) -> bool:
        """True for the first process that asks for this piece of work, and for no other in this launch."""
        return self.store is None or self.store.add(f"sparseticket/takes/{work}", 1) == 1

    def once(self, work: str, do: Callable[[], T]) -> T | None:
        """The first process that comes here does it and has what it gives; the others wait, and have None."""
        if not self.takes(work):
            self.wait_for(work)
            return None
        result = do()
        self.finished(work)
        return result

    def finished(self, work: str) -> None:
        """Say that this piece of work, which this process took, is done."""
        if self.store is not None:
            self.store.set(f"sparseticket/done/{work}", "1")

    def wait_for(self, work: str) -> None:
        """Wait until the process that took this piece of work has finished it."""
        if self.store is not None:
            self.store.wait([f"sparseticket/done/{work}"], FOREVER)

    def wait(self, place: str) -> None:
        """Wait until every process has reached ``place``."""
        if self.store is None:
            return
        if self.store.add(f"sparseticket/here/{place}", 1) == self.count:
            self.store.set(f"sparseticket/all/{place}", "1")
        self.store.wait([f"sparseticket/all/{place}"], FOREVER)


ALONE = Team()


def team_of(side_by_side: bool) -> Team:
    """All processes of the launch if runs are wanted side by side; else this one alone, whatever Accelerate does."""
    return Team.of_launch() if side_by_side else ALONE
