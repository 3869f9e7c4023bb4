"""Batches made ahead of a GPU, by worker processes into pinned memory. What a batch is does not depend on it.

On a CPU nothing is made ahead: training takes all cores already, and large images are decoded on all of them too.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset

from sparseticket.errors import SparseticketError, UserError
from sparseticket.tasks.base import Batch

MOST_WORKERS = 8
VARIABLE = "SPARSETICKET_WORKERS"


def made_ahead(batches: Sequence[Batch], device: torch.device, *, start: int = 0) -> Iterator[Batch]:
    """Yield ``batches[start]`` and so on to the end, on the CPU; made by workers where that helps.

    It helps a GPU, and sequences that say ``in_workers = True`` (images). ``$SPARSETICKET_WORKERS`` sets their number
    on any device, 0 for none.

    Raises:
        UserError: as the sequence does, also out of a worker; or the variable holds no whole number.
    """
    count = workers(device) if getattr(batches, "in_workers", False) else 0
    if not count:
        yield from (batches[index] for index in range(start, len(batches)))
        return
    loader = DataLoader(
        _Careful(batches),
        batch_size=None,
        sampler=range(start, len(batches)),
        num_workers=count,
        pin_memory=device.type == "cuda",
        multiprocessing_context="fork",  # held images are shared, not copied
        generator=torch.Generator(),  # or the loader would draw a number from torch's own
    )
    for batch in loader:
        if isinstance(batch, SparseticketError):
            raise batch
        yield batch


def workers(device: torch.device) -> int:
    """How many processes make batches: for a GPU those cores that its process has, and none for a CPU."""
    if "fork" not in multiprocessing.get_all_start_methods():
        return 0
    asked = os.environ.get(VARIABLE)
    if asked is not None:
        if not asked.isdecimal():
            raise UserError(f"{VARIABLE} is the number of processes that prepare images, 0 for none, not {asked!r}.")
        return int(asked)
    if device.type != "cuda":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_WORKERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


class _Careful(Dataset[Batch]):
    """Hands a user's mistake over as it is: raised in a worker it would arrive with a traceback in its message."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches

    def __getitem__(self, index: int) -> Batch | SparseticketError:
        try:
            return self.batches[index]
        except SparseticketError as error:
            return error
