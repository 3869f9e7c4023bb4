"""From what a user gave to complete settings: the recipe of the task, with what was said instead."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparseticket.errors import UserError
from sparseticket.models import resolve
from sparseticket.pattern import NOfM, parse
from sparseticket.recipes import task_defaults
from sparseticket.settings import RunSettings
from sparseticket.tasks import check_options, entries, entry


def find_settings(
    model: str,
    *,
    task: str | None = None,
    protocol_name: str = "paper",
    data: Path | None = None,
    weights: Path | None = None,
    seed: int = 0,
    dense: bool = True,
    protocol: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
) -> RunSettings:
    """Settings of a ``find``. ``protocol`` and ``training`` hold fields to override; those that are None are left."""
    kind = resolve(model).kind
    if task is None:
        if kind != "text":
            known = [name for name, found in entries().items() if found.kind == kind]
            raise UserError(f"{model!r} is a {kind} model: name its task with --task: {', '.join(known)}.")
        task = "mlm"
    if protocol_name not in ("paper", "released"):
        raise UserError(f"--protocol is paper or released, not {protocol_name!r}.")
    recipe = task_defaults(task, protocol_name)
    fields = given(protocol or {})
    if entry(task).kind == kind:  # or the two do not go together, which is said when the task is made
        check_options(task, [*fields, *given(training or {})])
    if isinstance(pattern := parse(fields.get("pattern", recipe.protocol.pattern)), NOfM):
        fields = one_step_a_round(pattern, recipe.protocol.schedule) | fields
    return RunSettings(
        model=model,
        task=task,
        data=str(data or ""),
        weights=str(weights or ""),
        seed=seed,
        dense=dense,
        protocol=replace(recipe.protocol, **fields),
        training=replace(recipe.training, **given(training or {})),
    ).whole()


def given(fields: dict[str, Any]) -> dict[str, Any]:
    """Those that a user said something about."""
    return {name: value for name, value in fields.items() if value is not None}


def one_step_a_round(pattern: NOfM, schedule: str) -> dict[str, Any]:
    """The only sparsity that N:M has, and steps of one of every M where the recipe's ``schedule`` has steps."""
    steps = {"schedule": f"linear:1/{pattern.m}"} if ":" in schedule else {}
    return {"sparsity": pattern.sparsity, **steps}


def default_folder(model: str, task: str) -> Path:
    """``runs/MODEL-TASK``, with a folder or hub name as a plain word."""
    return Path("runs") / f"{_plain_word(Path(model).name if Path(model).is_dir() else model)}-{task}"


def default_recipe_folder(recipe: str) -> Path:
    """``runs/RECIPE``, with a packaged recipe's name or a file's as a plain word."""
    return Path("runs") / _plain_word(Path(recipe).stem if recipe.endswith(".toml") else recipe)


def _plain_word(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-")
