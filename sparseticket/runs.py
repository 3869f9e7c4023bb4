"""The run folder: what was asked (run.toml), a folder a round, and markers that say what is finished."""

from __future__ import annotations

import json
import shutil
import time
import tomllib
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from sparseticket import toml
from sparseticket.errors import RunFailure, UserError
from sparseticket.files import read_json, write_json, write_whole
from sparseticket.settings import Protocol, RunSettings, Training, from_table

SETTINGS = "run.toml"
THETA = "theta.safetensors"
GAMMA = "gamma.safetensors"
TICKET = "ticket.ticket"
CARRY = "carry.safetensors"
CHECKPOINT = "checkpoint.safetensors"
HEAD = "head.safetensors"
START = "start.json"
SUMMARY = "summary.json"
FINISHED = "{} is finished: nothing is trained, and nobody looked whether its data are still what they were."


class RunFolder:
    """A folder of one run. Opening it again with the same settings continues it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: Path, settings: dict[str, Any], *, what: str = SETTINGS) -> RunFolder:
        """Make the folder, or check that it is of a run with the same settings.

        Raises:
            UserError: the folder cannot be made, holds something else, or a run with other settings (shows which).
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            occupied = any(not entry.name.startswith(".") for entry in path.iterdir())
        except OSError as error:
            raise UserError(f"cannot make the folder {path}: {error.strerror}. Choose another with --out.") from error
        found = path / what
        if found.exists():
            check_same_settings(found, settings)
        elif occupied:
            raise UserError(f"{path} holds other files and no {what}: choose a new or empty folder with --out.")
        else:
            write_whole(found, toml.dumps(settings))
        _remove_unfinished(path)
        return cls(path)

    def round(self, number: int) -> Path:
        """The folder of a round."""
        return self.path / f"round-{number:02d}"

    def finished(self, part: str) -> bool:
        """True when a part of the run (``round-03``, ``dense``) has its ``done`` marker."""
        return (self.path / part / "done").exists()

    def finish(self, part: str, metrics: dict[str, Any]) -> None:
        """Write a part's metrics and, last, its marker."""
        write_json(self.path / part / "metrics.json", metrics)
        write_whole(self.path / part / "done", "")

    def metrics(self, part: str) -> dict[str, Any]:
        """What :meth:`finish` wrote.

        Raises:
            UserError: it is missing or damaged.
        """
        path = self.path / part / "metrics.json"
        found = read_json(path)
        if not isinstance(found.get("value"), int | float):
            raise UserError(f"{path} is damaged: it has no value. Remove the folder {path.parent} and run again.")
        return found

    def log(self, **entry: Any) -> None:
        """Append a line to log.jsonl; times are in here and nowhere that counts."""
        try:
            with (self.path / "log.jsonl").open("a") as file:
                file.write(json.dumps({"time": round(time.time(), 1), **entry}) + "\n")
        except OSError as error:
            raise RunFailure(
                f"could not write {self.path / 'log.jsonl'}: {error.strerror}. Free some space."
            ) from error


def _remove_unfinished(path: Path) -> None:
    """Remove what a kill left in a run's own folders; in others an export or a transfer may be writing."""
    rounds = sorted((of for of in path.glob("round-*") if of.name[6:].isdecimal()), key=lambda of: int(of.name[6:]))
    # killed between a marker and what follows it; looked for first, for a finished run may lie on a read-only disk
    useless = [before / CARRY for before, after in pairwise(rounds) if (after / "done").exists()]
    folders = [path, path / "dense", *rounds, *path.glob("*-seed*")]
    useless += [folder / CHECKPOINT for folder in folders if (folder / "done").exists()]
    for file in filter(Path.exists, useless):
        file.unlink(missing_ok=True)
    for folder in folders:
        for unfinished in folder.glob(".*.part"):
            if unfinished.is_file():
                unfinished.unlink(missing_ok=True)
            elif unfinished.name.startswith(".model."):
                shutil.rmtree(unfinished, ignore_errors=True)


def settings_table(settings: RunSettings) -> dict[str, Any]:
    """Run settings as the table that run.toml holds."""
    return asdict(settings)


def read_settings(path: Path) -> RunSettings:
    """The settings in a run.toml."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}. Copy it again, or start in a new folder.") from error
    table["protocol"] = from_table(Protocol, table.get("protocol", {}), where=str(path))
    table["training"] = from_table(Training, table.get("training", {}), where=str(path))
    return from_table(RunSettings, table, where=str(path))


def check_same_settings(path: Path, wanted: dict[str, Any], option: str = "--out") -> None:
    """Refuse a settings file that differs from ``wanted``, and show where; ``option`` chooses another folder.

    A field of protocol or training that the file lacks has its default: a run begun before there was one goes on.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}. Choose another folder with {option}.") from error
    if not found:
        raise UserError(f"{path} is empty: its settings are lost. Choose another folder with {option}.")
    new = flat(tomllib.loads(toml.dumps(wanted)))
    defaults = flat({"protocol": asdict(Protocol()), "training": asdict(Training())})
    old = {key: value for key, value in defaults.items() if key in new} | flat(found)
    differing = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if differing:
        lines = [f"  {key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in differing]
        raise UserError(
            f"{path.parent} holds a run with other settings:\n" + "\n".join(lines) + "\n"
            f"Choose another folder with {option}, or the same settings to continue."
        )


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of tables in tables, under names like ``training.lr``."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
