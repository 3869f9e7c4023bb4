"""Measure this GPU for the dispatcher, without marks and peers: what ``sparseticket tune-kernels`` does."""

from __future__ import annotations

from pathlib import Path

import torch

from sparseticket.bench.gpu import tuning
from sparseticket.bench.gpu.lab import DeviceLost, Lab
from sparseticket.bench.gpu.prepare import pool
from sparseticket.errors import RunFailure, UserError
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
        RunFailure: a kernel broke the context on the GPU.
    """
    if not minutes > 0:
        raise UserError(f"--minutes {minutes} makes no sense: give more than 0.")
    if not torch.cuda.is_available():
        raise UserError("there is no GPU that torch can use, and so nothing to measure: every layer runs dense here.")
    file = file or table_path(torch.cuda.get_device_name(), user_tables())
    lab = Lab(file.parent, seconds=60 * minutes, table_file=file)
    try:
        table = lab.table
    except ValueError as error:
        raise UserError(f"{error} (To begin anew, remove the file.)") from error
    try:
        with pool(lab) as processes:
            missing = tuning.tune(lab, processes)
    except DeviceLost as lost:
        raise RunFailure(
            f"a kernel broke the context on the GPU, for {lost}, which is left dense. Please report it, and run the "
            "command again to go on."
        ) from lost
    return file, table, missing
