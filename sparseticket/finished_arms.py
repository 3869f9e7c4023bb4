"""What a transfer may take from another instead of training it: an arm and seed that depend on the same settings."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from sparseticket.errors import UserError
from sparseticket.runs import RunFolder
from sparseticket.settings import Training, from_table
from sparseticket.transfer_plan import TRANSFER_SETTINGS, TransferSettings

OF_ALL = ("model", "task", "data", "training")
OF_DENSE = (*OF_ALL, "dense_weights")
# controls are made from the ticket, so they depend on it, too; the head may come from the dense networks' file
OF_TICKET = (*OF_DENSE, "ticket", "weights", "start", "allow_other_weights")


def part_of(arm: str, seed: int) -> str:
    """The folder of an arm and seed inside a transfer's."""
    return f"{arm.replace(':', '-')}-seed{seed}"


def take_finished(run: RunFolder, settings: TransferSettings, others: Sequence[Path]) -> None:
    """Copy what ``run`` lacks and one of the ``others`` has finished, if it was made with the same settings.

    Only values are taken, no network; ``taken_from`` in the metrics says where from.
    """
    lacking = [(arm, part_of(arm, seed)) for seed in range(settings.seeds) for arm in settings.arms]
    lacking = [(arm, part) for arm, part in lacking if not run.finished(part)]
    for folder in others if lacking else ():
        theirs = _settings(folder)
        if theirs is None or folder.resolve() == run.path.resolve():
            continue
        other = RunFolder(folder)
        for arm, part in lacking:
            if not run.finished(part) and other.finished(part) and _key(theirs, arm) == _key(settings, arm):
                run.finish(part, {"taken_from": folder.name, **other.metrics(part)})


def _key(settings: TransferSettings, arm: str) -> dict[str, Any]:
    """Everything that an arm's value depends on, but for its seed."""
    table = asdict(settings)
    return {name: table[name] for name in (OF_DENSE if arm == "dense" else OF_TICKET)}


def _settings(folder: Path) -> TransferSettings | None:
    """The settings of a transfer's folder; None where it has none, or those of another version."""
    try:
        table = tomllib.loads((folder / TRANSFER_SETTINGS).read_text(encoding="utf-8"))
        if table.keys() != {item.name for item in fields(TransferSettings)}:
            return None
        return TransferSettings(**table | {"training": from_table(Training, table["training"], where=str(folder))})
    except (OSError, ValueError, UserError):
        return None
