"""A recipe of several steps: what a table or figure of a paper takes, in the order in which it is run.

It has ``title`` and ``source``, optionally ``model`` and ``[training]`` (they replace those of every step), and steps,
each a ``[[step]]`` with a ``name`` and one verb:

- ``find = RECIPE``: a ticket by that recipe; ``protocol`` and ``training`` replace fields of it, ``seed`` its seed,
  ``model`` its model, ``weights`` its θ_p (``random``, or a name that the user gives a file for);
  ``dense_round = STEP`` takes the dense round of an earlier ``find`` with another schedule, sparsity or pattern;
- ``control = STEP``: a control of that step's ticket, of the ``kind`` that is named;
- ``transfer = STEP``: its ticket beside dense and ``controls``, over ``seeds``, on its own or another ``task``;
- ``sweep = STEP``: the tickets of all its rounds beside dense, and the highest sparsity that matches;
- ``matrix = [STEP, …]``: their tickets on ``tasks``;
- ``compare = [STEP, STEP]``: the overlap of two tickets.

``paper`` holds what the paper prints, in its own units (percent, or points in a matrix), to be shown beside ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from sparseticket.controls import check_control
from sparseticket.dense_round import check_alike
from sparseticket.errors import UserError
from sparseticket.settings import Protocol, RunSettings, Training, from_table

USES = {  # what may stand beside each verb
    "find": {"protocol", "training", "seed", "model", "weights", "dense_round"},
    "control": {"kind", "seed", "round"},
    "transfer": {"task", "seeds", "controls", "round", "training", "paper"},
    "sweep": {"seeds", "training", "paper"},
    "matrix": {"tasks", "seeds", "controls", "training", "paper"},
    "compare": set(),
}
LISTS, TABLES = {"matrix", "compare", "tasks", "controls"}, {"protocol", "training", "paper"}
LEAST = {"seed": 0, "seeds": 1, "round": -1000}  # whole numbers


@dataclass(frozen=True)
class Step:
    """One step: ``of`` is what its verb names, a recipe, a step, or a list of steps. ``round`` -1 is the last."""

    name: str
    verb: str
    of: list[str]
    kind: str = ""
    task: str = ""
    model: str = ""
    weights: str = ""
    tasks: list[str] = field(default_factory=list)
    controls: list[str] = field(default_factory=list)
    seed: int = 0
    seeds: int = 3
    round: int = -1
    dense_round: str = ""
    protocol: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    paper: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A validated recipe of several steps. ``found`` holds the settings of each ``find``."""

    name: str
    title: str
    source: str
    steps: list[Step]
    found: dict[str, RunSettings]
    training: dict[str, Any]

    def instead(self, *, model: str | None = None, seeds: int | None = None, precision: str | None = None) -> Study:
        """The same study of another model, over another number of seeds, or trained in another precision."""
        if seeds and not any("seeds" in USES[step.verb] for step in self.steps):
            raise UserError(f"recipe {self.name} has no step of several runs for --seeds to change: leave it out.")
        found = {name: changed(one, model=model, precision=precision) for name, one in self.found.items()}
        other = {"precision": precision} if precision else {}
        steps = [replace(one, training=one.training | other) for one in self.steps]
        steps = [replace(one, seeds=seeds) if seeds and "seeds" in USES[one.verb] else one for one in steps]
        return replace(self, found=found, steps=steps, training=self.training | other)

    def found_by(self, name: str) -> str:
        """The search that the ticket of this step comes from: itself, or that of which it is a control."""
        step = next(step for step in self.steps if step.name == name)
        return name if step.verb == "find" else self.found_by(step.of[0])

    @property
    def tasks(self) -> set[str]:
        """Every task that a step needs data of."""
        asked = (task for step in self.steps for task in (*step.tasks, step.task) if task)
        return {*(settings.task for settings in self.found.values()), *asked}


def changed(settings: RunSettings, *, model: str | None, precision: str | None) -> RunSettings:
    """Settings with another model or precision where one is named."""
    training = replace(settings.training, precision=precision) if precision else settings.training  # type: ignore[arg-type]
    return replace(settings, model=model or settings.model, training=training)


def read_study(name: str, table: dict[str, Any], load_settings: Callable[[str], RunSettings]) -> Study:
    """The study in a recipe's table; ``load_settings`` gives those of a recipe by name.

    Raises:
        UserError: says which step is wrong, and how.
    """
    where = f"recipe {name}"
    if unknown := sorted(table.keys() - {"title", "source", "model", "training", "step"}):
        raise UserError(f"{where}: there is no table {unknown[0]!r} beside [[step]]; there are model and [training].")
    if not (isinstance(table["step"], list) and table["step"] and all(isinstance(s, dict) for s in table["step"])):
        raise UserError(f"{where}: each step is a [[step]].")
    training, model = table.get("training", {}), table.get("model")
    from_table(Training, training, where=f"{where} [training]")
    steps: list[Step] = []
    found: dict[str, RunSettings] = {}
    for number, entry in enumerate(table["step"], 1):
        try:
            step = _step(entry)
            _check_references(step, steps)
            if step.verb == "find":
                found[step.name] = _settings(load_settings(step.of[0]), step, model, training)
                if step.dense_round:
                    check_alike(found[step.name], found[step.dense_round], f"step {step.dense_round!r}")
            else:
                from_table(Training, step.training, where="training")
        except UserError as error:
            raise UserError(f"{where}, step {number}: {error}") from error
        steps.append(step)
    return Study(name, table["title"], table["source"], steps, found, training)


def _step(table: dict[str, Any]) -> Step:
    verbs = [key for key in USES if key in table]
    if len(verbs) != 1:
        raise UserError(f"a step has one of {', '.join(USES)}, and this has {' and '.join(verbs) or 'none'}.")
    verb = verbs[0]
    if unknown := sorted(table.keys() - USES[verb] - {"name", verb}):
        raise UserError(
            f"{unknown[0]!r} means nothing beside {verb}: it takes {', '.join(sorted(USES[verb] | {'name'}))}."
        )
    for key, value in table.items():
        _check_type(key, value)
    name = table.get("name", "")
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"name is that of the step's folder (letters, digits, - _ .), not {name!r}.")
    for control in [*table.get("controls", []), *([table.get("kind", "")] if verb == "control" else [])]:
        check_control(control)
    of = table[verb] if verb in LISTS else [table[verb]]
    return Step(verb=verb, of=of, **{key: value for key, value in table.items() if key != verb})


def _check_type(key: str, value: Any) -> None:
    if key in LISTS:
        right, what = isinstance(value, list) and all(isinstance(word, str) for word in value), "a list of names"
    elif key in TABLES:
        right, what = isinstance(value, dict), "a table"
    elif key in LEAST:
        right = isinstance(value, int) and not isinstance(value, bool) and value >= LEAST[key]
        what = f"a whole number from {LEAST[key]}"
    else:
        right, what = isinstance(value, str), "a text"
    if not right:
        raise UserError(f"{key} is {what}, not {value!r}.")


def _check_references(step: Step, earlier: list[Step]) -> None:
    if step.name in {other.name for other in earlier}:
        raise UserError(f"there are two steps {step.name!r}.")
    if step.verb == "compare" and len(step.of) != 2:
        raise UserError("compare names two steps.")
    if step.verb == "matrix" and not (step.of and step.tasks):
        raise UserError("a matrix names steps and tasks.")
    for what in (step.of, step.tasks):
        if step.verb == "matrix" and len(set(what)) < len(what):
            raise UserError(f"a matrix names each row and column once, not {what}.")
    for row, figures in step.paper.items() if step.verb == "matrix" else ():
        if row not in step.of or not isinstance(figures, dict):
            raise UserError(f"paper is a table by row ({', '.join(step.of)}) of figures by task, not {step.paper}.")
    if step.verb == "find":
        finds = [other.name for other in earlier if other.verb == "find"]
        if step.dense_round and step.dense_round not in finds:
            raise UserError(f"dense_round names {step.dense_round!r}, and the finds before it are {finds}.")
        return
    makers = ("find",) if step.verb in ("sweep", "control") else ("find", "control")
    with_tickets = [other.name for other in earlier if other.verb in makers]
    for name in step.of:
        if name not in with_tickets:
            raise UserError(f"{step.verb} names {name!r}, and the steps before it with a ticket are {with_tickets}.")


def _settings(base: RunSettings, step: Step, model: str | None, training: dict[str, Any]) -> RunSettings:
    """The recipe's settings with what the study and its step say instead."""
    overridden = {"protocol": (Protocol, step.protocol), "training": (Training, training | step.training)}
    for what, (kind, table) in overridden.items():
        from_table(kind, {**vars(getattr(base, what)), **table}, where=what)
    return replace(
        base,
        model=step.model or model or base.model,
        seed=step.seed,
        protocol=replace(base.protocol, **step.protocol),
        training=replace(base.training, **(training | step.training)),
    )
