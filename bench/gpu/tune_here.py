"""Measure this GPU for the dispatcher, without marks and peers: what ``sparseticket tune-kernels`` does."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from sparseticket.bench.gpu import tuning
from sparseticket.bench.gpu.elsewhere import elsewhere_when_lost, go_on_elsewhere
from sparseticket.bench.gpu.lab import Lab
from sparseticket.bench.gpu.prepare import pool
from sparseticket.errors import UserError
from sparseticket.kernels.dispatch import Table, table_path, user_tables


def tune_here(file: Path | None, *, minutes: float) -> tuple[Path, Table, int]:
    """Fill the table of this GPU until the time is used; each cell is saved as it is measured.

    Args:
        file: the table; by default in the user's cache, where it is found by itself.
        minutes: how long; running it again goes on behind what is there.

    Returns:
        The file, the table, and how many cells are still missing.

    Raises:
        UserError: there is no GPU, the time makes no sense, or the file there is no table.

    A cell whose kernel breaks the context on the GPU, or never ends, is left dense; the rest is measured by the same
    command in the place of this process.
    """
    if not minutes > 0:
        raise UserError(f"--minutes {minutes} makes no sense: give more than 0.")
    if not torch.cuda.is_available():
        raise UserError("there is no GPU that torch can use, and so nothing to measure: every layer runs dense here.")
    try:
        file = file or table_path(torch.cuda.get_device_name(), user_tables())
    except RuntimeError as error:
        raise UserError(f"there is no folder for the table ({error}): name a file with --out.") from error
    lab = Lab(file.parent, seconds=60 * minutes, table_file=file)
    lab.restart = partial(go_on_elsewhere, ["sparseticket", "tune-kernels", "--out", str(file)], lab)
    try:
        table = lab.table
    except ValueError as error:
        raise UserError(f"{error} (To begin anew, remove the file.)") from error
    with elsewhere_when_lost(lab.restart), pool(lab) as processes:
        missing = tuning.tune(lab, processes)
    return file, table, missing
