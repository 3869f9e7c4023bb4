"""The transfer matrix: tickets (sources, rows) trained on tasks (targets, columns), as in figure 2 of the BERT paper.

Every cell is a transfer's folder under ``OUT/cells``, named after the settings that decide it; so a larger matrix in
the same folder takes what a smaller one has trained, and dense networks are trained once a target. All cells of a
column are trained alike: as the ticket that was found on that task records, or as the task's recipe says.

Two readings of a cell: against dense (matching: within one standard deviation), and against the ticket that was found
on the target itself (the paper's dark cells: at least as good), where that is among the sources.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sparseticket.data_places import data_of, is_there
from sparseticket.errors import UserError
from sparseticket.files import read_json, write_json
from sparseticket.progress import Screen
from sparseticket.recipes import task_defaults
from sparseticket.runs import SETTINGS, read_settings
from sparseticket.tasks import entry
from sparseticket.tasks.base import MASKED_ACCURACY
from sparseticket.team import ALONE, Team
from sparseticket.ticket import Ticket
from sparseticket.transfer import transfer
from sparseticket.transfer_plan import (
    TRANSFER_SETTINGS,
    TransferSettings,
    begins_elsewhere,
    check_weights,
    own_theta,
    plan,
)
from sparseticket.verdict import Verdict, at_least, judge_universal

CELLS, MATRIX = "cells", "matrix.json"


@dataclass(frozen=True)
class Asked:
    """What a matrix is made of.

    Attributes:
        sources: tickets by the name of their row.
        tasks: the columns.
        data: for all tasks; ``data_by_task`` for one.
        weights: the file of θ_p, where that is none of the model's own and the tickets lie outside their runs.
        training: settings that replace those of every cell.
    """

    sources: dict[str, Path]
    tasks: list[str]
    seeds: int = 3
    controls: tuple[str, ...] = ()
    data: Path | None = None
    data_by_task: dict[str, Path] = field(default_factory=dict)
    weights: Path | None = None
    training: dict[str, Any] = field(default_factory=dict)


def matrix(
    asked: Asked,
    out: Path,
    *,
    screen: Screen,
    checkpoint_every: float = 300.0,
    others: Sequence[Path] = (),
    team: Team = ALONE,
) -> dict[str, Any]:
    """Train every cell that is not there yet; returns (and leaves) ``matrix.json``, with ``matrix.png`` beside it.

    What transfers in the folders ``others`` have finished under the same settings is taken from there. The processes of
    a ``team`` share the trainings of each cell.

    Raises:
        UserError: tickets of different models, a task twice, data or a task's library that are not there, or a larger
            matrix in the folder. Said before any training.
    """
    tickets = {name: Ticket.load(path) for name, path in asked.sources.items()}
    _check(tickets, asked)
    _check_not_smaller(tickets, asked, out)
    _say_whose_settings(tickets, asked, screen)
    planned = {(s, t): _plan(asked, tickets, s, t) for s in asked.sources for t in asked.tasks}
    cells: dict[str, dict[str, Any]] = {name: {} for name in asked.sources}
    for number, ((source, task), settings) in enumerate(planned.items(), 1):
        folder = out / CELLS / _cell_name(source, settings)
        screen.say(f"{source} on {task}: cell {number} of {len(planned)} ({folder.name})")
        known = [*others, *sorted(path.parent for path in (out / CELLS).glob(f"*/{TRANSFER_SETTINGS}"))]
        done = transfer(
            tickets[source], settings, folder, screen=screen, checkpoint_every=checkpoint_every, others=known, team=team
        )
        cells[source][task] = {**done, "folder": f"{CELLS}/{folder.name}"}
    result = summarise(tickets, asked.tasks, cells)
    write_json(out / MATRIX, result)
    from sparseticket.heat_map import draw

    draw(result, out / "matrix.png")
    return result


def _check_not_smaller(tickets: Mapping[str, Ticket], asked: Asked, out: Path) -> None:
    """Refuse to put a table in the place of one that has rows, columns, controls or seeds which it has not."""
    if not (out / MATRIX).is_file():
        return
    there = read_json(out / MATRIX)
    try:
        cells = [cell for row in there["cells"].values() for cell in row.values()]
        runs = {arm: len(values["values"]) for cell in cells for arm, values in cell["arms"].items()}
        known = {ticket.identity for ticket in tickets.values()}
        lost = [
            *(f"the row {name}" for name, source in there["sources"].items() if source["ticket"] not in known),
            *(f"the column {task}" for task in there["tasks"] if task not in asked.tasks),
            *(f"the control {arm}" for arm in runs if arm not in ("dense", "ticket", *asked.controls)),
            *([f"{runs['ticket']} seeds"] if runs["ticket"] > asked.seeds else []),
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{out / MATRIX} is no matrix of ours: choose another folder with --out.") from error
    if lost:
        raise UserError(
            f"{out / MATRIX} has {', '.join(lost)}, which the new one would not have: ask for them too, choose another "
            f"folder with --out, or remove that file first (what was trained, in {CELLS}, is kept)."
        )


def name_rows(paths: Sequence[Path]) -> dict[str, Path]:
    """A row's name for each ticket: its task, the kind of a control, and its identity where that is not enough.

    Raises:
        UserError: a ticket is there twice.
    """
    rows: dict[str, Path] = {}
    seen: dict[str, Path] = {}
    for path in paths:
        ticket = Ticket.load(path)
        if ticket.identity in seen:
            raise UserError(f"{seen[ticket.identity]} and {path} are the same ticket: name each row once.")
        seen[ticket.identity] = path
        name = str(ticket.task.get("name", ticket.identity[:8]))
        if ticket.control:
            name += f" {ticket.control}"
        rows[f"{name} {ticket.identity[:8]}" if name in rows else name] = path
    return rows


def summarise(
    tickets: Mapping[str, Ticket], tasks: Sequence[str], cells: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """``matrix.json``: both readings of every cell, as fractions, and over its row."""
    own = {task: _same_task(tickets, task) for task in tasks}
    rows = {
        source: {task: _cell(row[task], cells[own[task]][task] if own[task] else None) for task in tasks}
        for source, row in cells.items()
    }
    first = next(iter(cells.values()))
    return {
        "model": next(iter(tickets.values())).model,
        "tasks": list(tasks),
        "sources": {
            name: {
                "ticket": ticket.identity,
                "task": ticket.task.get("name"),
                "sparsity": ticket.sparsity,
                "control": ticket.control,
            }
            for name, ticket in tickets.items()
        },
        "targets": {task: {"metric": first[task]["metric"], "same_task": own[task]} for task in tasks},
        "cells": rows,
        "over_tasks": {
            source: asdict(
                judge_universal(
                    {task: Verdict(**cell["verdict"]) for task, cell in row.items()},
                    reason=_never_universal(tickets[source]),
                )
            )
            for source, row in rows.items()
        },
    }


def _never_universal(ticket: Ticket) -> str | None:
    if ticket.control:
        return "a control is no ticket that was found"
    if ticket.task.get("metric") == MASKED_ACCURACY and ticket.task.get("head") != "pre-trained":
        return "it was found under an MLM head that was not pre-trained"
    return None


def _cell(done: Mapping[str, Any], same_task: Mapping[str, Any] | None) -> dict[str, Any]:
    mean, dense = (done["arms"][arm]["mean"] for arm in ("ticket", "dense"))
    same = same_task["arms"]["ticket"]["mean"] if same_task else None
    return {
        "folder": done["folder"],
        "sparsity": done["sparsity"],
        "arms": done["arms"],
        "to_dense": mean - dense,
        "verdict": done["verdicts"]["ticket"],
        "to_same_task": None if same is None else mean - same,
        "at_least_same_task": None if same is None else at_least(mean, same),
    }


def _plan(asked: Asked, tickets: Mapping[str, Ticket], source: str, task: str) -> TransferSettings:
    like = _same_task(tickets, task) or _same_task(tickets, task, controls=True)  # all cells of a column are made alike
    data = asked.data_by_task.get(task)
    if data is not None and not is_there(data):
        raise UserError(f"--data {task}={data}: there is no {data}.")
    data = data or data_of(task, asked.data, alone=len(asked.tasks) == 1, nameable=True)
    if data is None and like is not None:  # where the ticket of this task was found
        run = asked.sources[like].resolve().parent.parent / SETTINGS
        data = Path(read_settings(run).data) if run.is_file() and read_settings(run).data else None
    column = (tickets[like].training if like else {}) or asdict(task_defaults(task).training)
    path = asked.sources[source]
    in_run = (path.resolve().parent.parent / SETTINGS).is_file()
    needs_none = own_theta(tickets[source], path) is not None and (in_run or not begins_elsewhere(tickets[source]))
    return plan(
        path,
        task=task,
        data=data,
        weights=None if needs_none else asked.weights,
        seeds=asked.seeds,
        controls=asked.controls,
        training=column | asked.training,
    )[1]


def _same_task(tickets: Mapping[str, Ticket], task: str, *, controls: bool = False) -> str | None:
    """The row of the ticket that was found on this task, or of the first control of one."""
    found = (name for name, ticket in tickets.items() if ticket.task.get("name") == task)
    return next((name for name in found if (tickets[name].control is not None) == controls), None)


def _say_whose_settings(tickets: Mapping[str, Ticket], asked: Asked, screen: Screen) -> None:
    """Where several tickets were found on a task under other settings, one of them decides for the whole column."""
    for task in asked.tasks:
        own = {
            name: ticket.training | asked.training
            for name, ticket in tickets.items()
            if ticket.task.get("name") == task and not ticket.control
        }
        first = next(iter(own), "")
        if any(training != own[first] for training in own.values()):
            screen.note(f"tickets of {task} were trained differently: its column is trained as {first} was.")


def _cell_name(source: str, settings: TransferSettings) -> str:
    canonical = json.dumps(asdict(settings), sort_keys=True)
    word = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in source)
    return f"{word}--{settings.task}--{hashlib.sha256(canonical.encode()).hexdigest()[:12]}"


def _check(tickets: Mapping[str, Ticket], asked: Asked) -> None:
    if not tickets or not asked.tasks:
        raise UserError("a matrix has at least one ticket and one --task.")
    if len(set(asked.tasks)) < len(asked.tasks):
        raise UserError("a --task is given twice: name each column once.")
    for task in asked.tasks:
        entry(task).check_installed()
    if strangers := sorted(asked.data_by_task.keys() - set(asked.tasks)):
        raise UserError(
            f"--data {strangers[0]}={asked.data_by_task[strangers[0]]}: {strangers[0]!r} is no column of this matrix. "
            f"Its columns: {', '.join(asked.tasks)}."
        )
    check_weights(asked.weights)
    models = {ticket.model: name for name, ticket in tickets.items()}
    if len(models) > 1:
        shown = ", ".join(f"{name} is of {model!r}" for model, name in models.items())
        raise UserError(f"the tickets of a matrix are of one model: {shown}.")
