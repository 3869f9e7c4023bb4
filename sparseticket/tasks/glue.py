"""GLUE tasks, from the folders of its published layout or from the hub."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sparseticket.errors import UserError
from sparseticket.hub import load_splits
from sparseticket.models.text import TextModel
from sparseticket.tasks import register
from sparseticket.tasks.base import TaskOptions
from sparseticket.tasks.text_classification import Examples, TextClassification


@dataclass(frozen=True)
class GlueTask:
    """Where a task's texts and labels are.

    Attributes:
        folder: its folder in GLUE.
        header: its TSV files begin with a line of column names.
        text, pair, label: columns of the TSV, by name or, without a header, by number; pair is None for single texts.
        classes: the labels as they are written in the TSV, in the order of the hub's class numbers.
        metric: the metric of the GLUE paper.
        hub_text, hub_pair: the same columns on the hub, whose label column is always "label".
    """

    folder: str
    header: bool
    text: str | int
    pair: str | int | None
    label: str | int
    classes: tuple[str, ...]
    metric: str
    hub_text: str
    hub_pair: str | None = None


GLUE = {
    "sst2": GlueTask("SST-2", True, "sentence", None, "label", ("0", "1"), "accuracy", "sentence"),
    "cola": GlueTask("CoLA", False, 3, None, 1, ("0", "1"), "matthews", "sentence"),
}


def _make(name: str) -> Callable[[TextModel, TaskOptions], TextClassification]:
    task = GLUE[name]

    def make(spec: TextModel, options: TaskOptions) -> TextClassification:
        if options.data is None:
            train, evaluation = from_hub(name, "train"), from_hub(name, "validation")
        else:
            train, evaluation = (read_tsv(task, options.data / file) for file in ("train.tsv", "dev.tsv"))
        return TextClassification(name, spec, options, train, evaluation, classes=len(task.classes), metric=task.metric)

    return make


def from_hub(name: str, split: str) -> Examples:
    """One split of a GLUE task from the hub."""
    task = GLUE[name]
    splits = load_splits(
        "nyu-mll/glue",
        name,
        otherwise=f"Or give GLUE's own folder with train.tsv and dev.tsv (--data {task.folder}), or take a task that "
        "needs no data: docstring-topic, docstring-order.",
    )
    rows = splits[split]
    pairs = list(rows[task.hub_pair]) if task.hub_pair else None
    return Examples(list(rows[task.hub_text]), [int(label) for label in rows["label"]], pairs)


def read_tsv(task: GlueTask, path: Path) -> Examples:
    """One file of GLUE's layout: tab-separated, with no quoting."""
    if not path.is_file():
        raise UserError(
            f"there is no {path}: --data takes GLUE's own folder for this task, {task.folder}, "
            "with train.tsv and dev.tsv."
        )
    try:
        examples = list(_examples(task, path))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not tab-separated UTF-8 text: {error}") from error
    if not examples:
        raise UserError(f"{path} has no examples.")
    texts, pairs, labels = zip(*examples, strict=True)
    return Examples(texts, labels, None if task.pair is None else pairs)


def _examples(task: GlueTask, path: Path) -> Iterator[tuple[str, str, int]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        columns = next(lines, []) if task.header else []
        text, pair, label = (_position(column, columns, path) for column in (task.text, task.pair, task.label))
        for fields in lines:
            try:
                yield fields[text], fields[pair] if task.pair is not None else "", task.classes.index(fields[label])
            except (IndexError, ValueError):
                raise UserError(
                    f"{path}, line {lines.line_num}: no text with a label out of {', '.join(task.classes)} "
                    f"in the columns of {task.folder}."
                ) from None


def _position(column: str | int | None, columns: list[str], path: Path) -> int:
    if isinstance(column, str):
        if column not in columns:
            raise UserError(f"{path} has no column {column!r}; its columns are: {', '.join(columns) or 'none'}.")
        return columns.index(column)
    return column or 0


for _name in GLUE:
    register(_name, kind="text", recipe=f"neurips20/{_name}")(_make(_name))
