"""Recipes: both papers' settings as TOML that a person can read beside the paper.

A recipe has ``title`` and ``source``, the tables ``[find]`` (fields of ``RunSettings``), ``[protocol]`` and
``[training]``, and optionally ``[transfer]``: what ``sparseticket run`` does after finding. What a table or a figure of
a paper takes has several steps instead (:mod:`sparseticket.recipes.study`).
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sparseticket.controls import FLIP, check_control
from sparseticket.errors import UserError
from sparseticket.files import write_whole
from sparseticket.models import ModelSpec, resolve
from sparseticket.pattern import check_model, parse
from sparseticket.recipes.study import Step, Study, changed, read_study
from sparseticket.settings import Protocol, RunSettings, Training, from_table
from sparseticket.tasks import entry

FOLDER = Path(__file__).parent
KEYS = {"title", "source", "find", "protocol", "training", "transfer"}


@dataclass(frozen=True)
class TransferPart:
    """What a recipe transfers after finding: the ticket of ``round`` (default: the last; −2 is the one before).

    ``paper`` holds what the paper prints for an arm, in percent, to be shown beside ours.
    """

    seeds: int = 3
    controls: list[str] = field(default_factory=list)
    round: int = -1
    paper: dict[str, float | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _is_whole(self.seeds) or self.seeds < 1:
            raise UserError(f"seeds is a whole number from 1, not {self.seeds!r}.")
        if not _is_whole(self.round):
            raise UserError(f"round is a whole number, not {self.round!r}.")
        if not isinstance(self.controls, list):
            raise UserError(f'controls is a list of names, like ["random-mask"], not {self.controls!r}.')
        for control in self.controls:
            check_control(control)
        arms = ["dense", "ticket", *self.controls]
        if not isinstance(self.paper, dict) or self.paper.keys() - set(arms):
            raise UserError(f"paper is a table of figures by arm ({', '.join(arms)}), not {self.paper!r}.")


@dataclass(frozen=True)
class Recipe:
    """A validated recipe."""

    name: str
    title: str
    source: str
    settings: RunSettings
    transfer: TransferPart | None

    def instead(self, *, model: str | None = None, seeds: int | None = None, precision: str | None = None) -> Recipe:
        """The same recipe for another model, over another number of seeds, or trained in another precision."""
        if seeds and not self.transfer:
            raise UserError(f"recipe {self.name} transfers nothing, so --seeds would change nothing: leave it out.")
        transfer = replace(self.transfer, seeds=seeds) if seeds else self.transfer
        settings = changed(self.settings, model=model, precision=precision)
        return replace(self, settings=settings, transfer=transfer)


def names() -> list[str]:
    """Names of all recipes that come with the package, like ``neurips20/sst2``."""
    return sorted(str(path.relative_to(FOLDER).with_suffix("")).replace("\\", "/") for path in FOLDER.rglob("*.toml"))


def path_of(name: str) -> Path:
    """The file of a packaged recipe or, for ``name.toml``, a user's own; :class:`UserError` where there is none."""
    if name.endswith(".toml") and Path(name).is_file():
        return Path(name)
    if name in names():
        return FOLDER / f"{name}.toml"
    close = difflib.get_close_matches(name, names(), n=3)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise UserError(f"there is no recipe {name!r}.{hint} See `sparseticket recipes ls`, or give a .toml file.")


def text_of(name: str) -> str:
    """A recipe as it stands; :class:`UserError` where it cannot be read as UTF-8."""
    try:
        return path_of(name).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"recipe {name} could not be read as UTF-8 text: {error}") from error


def load(name: str) -> Recipe:
    """Read and validate a recipe of one run; :class:`UserError` says what is wrong in it."""
    table = _table(name)
    if "step" in table:
        raise UserError(f"recipe {name} has several steps, where one run is wanted: `sparseticket run {name}` runs it.")
    return _run_in(name, table)


def load_any(name: str) -> Recipe | Study:
    """Read and validate a recipe, of one run or of several steps; :class:`UserError` says what is wrong in it."""
    table = _table(name)
    if "step" in table:
        return read_study(name, table, lambda other: load(other).settings)
    return _run_in(name, table)


def _table(name: str) -> dict[str, Any]:
    try:
        table: dict[str, Any] = tomllib.loads(text_of(name))
    except ValueError as error:
        raise UserError(f"recipe {name}: {error}") from error
    if unknown := sorted(table.keys() - KEYS) if "step" not in table else []:
        raise UserError(f"recipe {name}: there is no table {unknown[0]!r}; there are {', '.join(sorted(KEYS))}.")
    for key in ("title", "source"):
        if not isinstance(table.get(key), str):
            raise UserError(f"recipe {name}: {key} must say in words what this is and where it is from.")
    return table


def _run_in(name: str, table: dict[str, Any]) -> Recipe:
    where = f"recipe {name}"
    find = table.get("find", {})
    if not isinstance(find, dict) or find.keys() & {"protocol", "training"}:
        raise UserError(f"{where}: [find], [protocol] and [training] are three tables beside each other.")
    settings = from_table(
        RunSettings,
        {
            **find,
            "protocol": from_table(Protocol, table.get("protocol", {}), where=f"{where} [protocol]"),
            "training": from_table(Training, table.get("training", {}), where=f"{where} [training]"),
        },
        where=f"{where} [find]",
    )
    part = from_table(TransferPart, table["transfer"], where=f"{where} [transfer]") if "transfer" in table else None
    rounds = len(settings.protocol.sparsities())
    if part and not -rounds <= part.round < rounds:
        raise UserError(f"{where} [transfer]: there is no round {part.round}; this recipe's are 0 to {rounds - 1}.")
    return Recipe(name, table["title"], table["source"], settings, part)


def task_defaults(task: str, protocol: str = "paper") -> RunSettings:
    """The settings of the recipe that belongs to a task, as the paper says or as the code was released."""
    recipe = entry(task).recipe
    name = recipe if protocol == "paper" else f"{recipe}-{protocol}"
    if name not in names():
        raise UserError(
            f"task {task!r} has one recipe, {recipe} for --protocol paper, and none for --protocol {protocol}. "
            "Use --protocol paper."
        )
    return load(name).settings


def copy_to(name: str, to: Path) -> None:
    """Copy a recipe to a new file of the user's."""
    if to.exists():
        raise UserError(f"{to} exists: choose a new file.")
    write_whole(to, path_of(name).read_bytes())


def check_names(recipe: Recipe | Study) -> None:
    """Check that a recipe's models and tasks exist and go together; :class:`UserError` says which does not."""
    if isinstance(recipe, Recipe):
        _check_run(recipe.name, recipe.settings)
        return
    for settings in recipe.found.values():
        _check_run(recipe.name, settings)
    for step in recipe.steps:
        if step.verb != "find":
            _check_step(recipe, step)


def _check_run(name: str, settings: RunSettings) -> None:
    spec = _check_together(name, settings.model, settings.task)
    check_model(parse(settings.protocol.pattern), spec.kind, spec.name)


def _check_step(study: Study, step: Step) -> None:
    """Check what a step asks of the searches that its tickets come from: one model, its tasks, a round that it has."""
    found = {name: study.found[study.found_by(name)] for name in step.of}
    where = f"recipe {study.name}, step {step.name!r}"
    if len(models := {settings.model for settings in found.values()}) > 1:
        raise UserError(f"{where}: its tickets are of several models, {' and '.join(sorted(models))}.")
    settings = next(iter(found.values()))
    for task in (*step.tasks, *filter(None, [step.task])):
        _check_together(study.name, settings.model, task)
    rounds = len(settings.protocol.sparsities())
    if not -rounds <= step.round < rounds:
        raise UserError(f"{where}: there is no round {step.round}; those of {step.of[0]} are 0 to {rounds - 1}.")
    for control in (*step.controls, *filter(None, [step.kind])):
        if control.startswith(FLIP) and settings.protocol.pattern != "unstructured":
            raise UserError(f"{where}: {control} would break the pattern {settings.protocol.pattern}: use random-mask.")


def _check_together(name: str, model: str, task: str) -> ModelSpec:
    spec, found = resolve(model), entry(task)
    if spec.kind != found.kind:
        raise UserError(f"recipe {name}: task {found.name!r} is for {found.kind} models, not {spec.name!r}.")
    return spec


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
