"""Which kernel runs a layer, or dense: looked up in what was measured on this GPU, never measured in a forward."""

from __future__ import annotations

import bisect
import json
import logging
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")
log = logging.getLogger(__name__)
TABLES = Path(__file__).parent / "tables"
FORMAT = 2
READABLE = (1, FORMAT)  # 1 had no `launched`: its cells had to pay from Python, as those of "eager"
LEAST_GAIN = 1.03  # a kernel is picked only where the lower 95 % bound of its speed-up is at least this
DENSE = "dense"
PASSES = ("forward", "dgrad", "wgrad")  # of a training step
KINDS = (*PASSES, "infer", "convolution", "optimizer")  # of cases
LAUNCHES = ("eager", "compiled", "graph")


@dataclass(frozen=True)
class Case:
    """What a choice depends on, but for the rows and the density: one line of a table of choices.

    Attributes:
        which: ``forward``, ``dgrad`` or ``wgrad`` of a training step, ``infer``, ``convolution`` (its inference, whose
            rows are output pixels), or ``optimizer`` (whose rows are weights).
        n, k: size of the weight; of a convolution, its filters and input channels.
        pattern: ``block:RxC``, ``unstructured`` or ``2:4``; of a convolution with its kernel and stride behind,
            ``block:RxC 3x3/2``.
        dtype: ``float16``, ``bfloat16`` or ``float32``.
        epilogue: ``none``, ``bias``, ``bias+relu`` or ``bias+gelu``.
        launched: ``eager``, from Python, where a kernel has to make up for its own launch; ``compiled``, by what
            ``torch.compile`` made, whose kernels make their descriptors of TMA; or ``graph``, in a CUDA graph.
    """

    which: str
    n: int
    k: int
    pattern: str
    dtype: str
    epilogue: str = "bias"
    launched: str = "eager"


OPTIMIZER = Case("optimizer", 1, 1, "unstructured", "float32", "none")  # a step over all tensors at once


@dataclass(frozen=True)
class Choice:
    """How one pass runs: a kernel by name with its tiles, or ``dense``."""

    kernel: str = DENSE
    tiles: tuple[int, ...] = ()


@dataclass(frozen=True)
class Measured:
    """One measured cell: the best kernel there, and its speed-up over dense with the 95 % interval."""

    case: Case
    m: int
    density: float
    best: Choice
    ratio: float
    low: float
    high: float

    @property
    def choice(self) -> Choice:
        """The kernel where it surely pays, else dense."""
        return self.best if self.low >= LEAST_GAIN else Choice()


@dataclass
class Table:
    """What was measured on one GPU."""

    gpu: str
    versions: dict[str, str] = field(default_factory=dict)
    date: str = ""
    cells: list[Measured] = field(default_factory=list)

    def add(self, cell: Measured) -> None:
        """Keep ``cell``, in the place of an older measurement of the same."""
        key = (cell.case, cell.m, cell.density)
        self.cells = [old for old in self.cells if (old.case, old.m, old.density) != key] + [cell]

    def choose(self, case: Case, m: int, density: float) -> Choice:
        """The choice for ``m`` rows at ``density``, which need not have been measured themselves.

        Of the measured densities the next higher one speaks (a kernel has less to do at a lower one). Of the measured
        rows both neighbours have to pick the same kernel, and beyond the ends of what was measured by more than twice
        the choice is dense.
        """
        if not self.speaks(case, m, density):
            return Choice()
        rows = self.rows(case, density)
        after = bisect.bisect_left([cell.m for cell in rows], m)
        below, above = rows[max(after - 1, 0)], rows[min(after, len(rows) - 1)]
        if (after < len(rows) and above.m == m) or below.choice.kernel == above.choice.kernel:
            return above.choice
        return Choice()

    def rows(self, case: Case, density: float) -> list[Measured]:
        """The cells that speak for ``case`` at ``density``, by rising m."""
        same = [cell for cell in self.cells if cell.case == case and cell.density >= density - 1e-9]
        nearest: dict[int, Measured] = {}
        for cell in sorted(same, key=lambda cell: -cell.density):
            nearest[cell.m] = cell
        return [nearest[m] for m in sorted(nearest)]

    def speaks(self, case: Case, m: int, density: float) -> bool:
        """True where a measured cell is near enough to choose for ``m`` rows at ``density``."""
        rows = self.rows(case, density)
        return bool(rows) and rows[0].m / 2 <= m <= rows[-1].m * 2

    def to_json(self) -> str:
        """The file's text, one cell a line, in a steady order."""
        head = {"format": FORMAT, "gpu": self.gpu, "versions": self.versions, "date": self.date}
        order = sorted(self.cells, key=lambda cell: (*map(str, asdict(cell.case).values()), cell.m, cell.density))
        lines = ",\n  ".join(json.dumps(asdict(cell)) for cell in order)
        return json.dumps(head)[:-1] + f', "cells": [\n  {lines}\n]}}\n'

    @classmethod
    def load(cls, path: Path) -> Table:
        """Read and check a table.

        Raises:
            ValueError: it is no table of this format; says what is wrong.
        """
        try:
            record = json.loads(path.read_text())
            if record["format"] not in READABLE:
                raise ValueError(f"it is of format {record['format']}, and this version reads {FORMAT}")
            cells = [_cell(line) for line in record["cells"]]
            return cls(record["gpu"], record["versions"], record["date"], cells)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{path} is not a table of measured kernels: {error}. Run `tune-kernels` again."
            ) from error


def table_path(gpu: str, folder: Path) -> Path:
    """Where in ``folder`` the table of a GPU of this name lies."""
    return folder / f"{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}.json"


def gpu_name(device: torch.device | str) -> str | None:
    """The name of the GPU, or None on any other device."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else None


def user_tables() -> Path:
    """Where ``sparseticket tune-kernels`` writes: in ``$SPARSETICKET_CACHE``, else in the user's cache folder.

    Raises:
        RuntimeError: there is neither, as for a user without a home in a container.
    """
    if chosen := os.environ.get("SPARSETICKET_CACHE"):
        return Path(chosen) / "kernels"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparseticket" / "kernels"


def find_table(gpu: str) -> Path | None:
    """The file of a GPU of this name: the user's own, else the one that came with the package."""
    folders = [TABLES]
    with suppress(RuntimeError):  # a user without a home has no table
        folders.insert(0, user_tables())
    paths = [table_path(gpu, folder) for folder in folders]
    return next((path for path in paths if os.path.isfile(path)), None)  # Path's own raises in another user's folder


def table_for(device: torch.device | str) -> Table | None:
    """The table of this device's GPU, by :func:`find_table`; None where nothing was measured."""
    name = gpu_name(device)
    path = find_table(name) if name else None
    return Table.load(path) if path else None


def save_user_table(table: Table) -> None:
    """Write the user's table of this GPU, whole or not at all; a folder that cannot be written is left alone."""
    try:
        path = table_path(table.gpu, user_tables())
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(table.to_json())
        part.replace(path)
    except (OSError, RuntimeError) as error:
        log.warning("the table of %s was not written (%s): it will be measured again", table.gpu, error)


def decided_by_one(decide: Callable[[], T]) -> T:
    """What the first of several processes decides: measurements differ, and all of them have to run the same.

    Raises:
        RuntimeError: in every process, where deciding failed in the first.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return decide()
    shared: list[T | str | None] = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            shared = [decide(), None]
        except Exception as error:
            shared = [None, f"{type(error).__name__}: {error}"]
    torch.distributed.broadcast_object_list(shared)
    if shared[1] is not None:
        raise RuntimeError(f"the first process could not choose kernels: {shared[1]}")
    return shared[0]  # type: ignore[return-value]


def _cell(line: dict[str, Any]) -> Measured:
    case = Case(**line["case"])
    best = Choice(line["best"]["kernel"], tuple(line["best"]["tiles"]))
    cell = Measured(case, line["m"], line["density"], best, line["ratio"], line["low"], line["high"])
    kinds = {"n": int, "k": int}
    odd = any(not isinstance(getattr(case, f.name), kinds.get(f.name, str)) for f in fields(case))
    if odd or case.which not in KINDS or case.launched not in LAUNCHES:
        raise ValueError(f"{line['case']} is no case")
    if not (isinstance(cell.m, int) and cell.m > 0 and 0 <= cell.density <= 1 and 0 < cell.low <= cell.high):
        raise ValueError(f"a cell of {case} holds impossible numbers")
    if not (isinstance(best.kernel, str) and all(isinstance(tile, int) and tile >= 0 for tile in best.tiles)):
        raise ValueError(f"a cell of {case} names no kernel")
    return cell
