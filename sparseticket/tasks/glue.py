"""The nine GLUE tasks, from the folders of its published layout or from the hub: one table of what differs."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sparseticket.errors import UserError
from sparseticket.hub import load_splits
from sparseticket.models.text import TextModel
from sparseticket.tasks import register
from sparseticket.tasks.base import TaskOptions
from sparseticket.tasks.text_classification import Examples, TextClassification

MALFORMED_SHARE = 0.01  # of a file's rows that may be skipped; in QQP's, line breaks inside questions tear some


@dataclass(frozen=True)
class GlueTask:
    """Where a task's texts and labels are.

    Attributes:
        folder: its folder in GLUE.
        texts: the columns of the TSV that hold the text, or the two of a pair; by name or, without a header, by number.
        label: the column of the label, likewise.
        classes: the labels as they are written in the TSV, in the order of the hub's class numbers; none for scores.
        hub: the columns of ``texts`` on the hub, whose label column is always "label".
        metric: the paper's.
        evaluations: what follows "dev" in the name of each evaluation file, and "validation" on the hub; the first
            counts, the others are reported beside it.
        original: names of the training and evaluation file where there is no train.tsv.
    """

    folder: str
    texts: tuple[str | int, ...]
    label: str | int
    classes: tuple[str, ...]
    hub: tuple[str, ...]
    metric: str = "accuracy"
    evaluations: tuple[str, ...] = ("",)
    original: tuple[str, str] | None = None

    @property
    def header(self) -> bool:
        """Whether the TSV files begin with a line of column names."""
        return isinstance(self.label, str)


YES_NO = ("0", "1")
ENTAILMENT = ("entailment", "not_entailment")
SENTENCES = ("sentence1", "sentence2")
GLUE = {
    "cola": GlueTask("CoLA", (3,), 1, YES_NO, ("sentence",), metric="matthews"),
    "mnli": GlueTask(
        "MNLI",
        SENTENCES,
        "gold_label",
        ("entailment", "neutral", "contradiction"),
        ("premise", "hypothesis"),
        evaluations=("_matched", "_mismatched"),
    ),
    "mrpc": GlueTask(
        "MRPC",
        ("#1 String", "#2 String"),
        "Quality",
        YES_NO,
        SENTENCES,
        original=("msr_paraphrase_train.txt", "msr_paraphrase_test.txt"),  # Microsoft's, whose test pairs have labels
    ),
    "qnli": GlueTask("QNLI", ("question", "sentence"), "label", ENTAILMENT, ("question", "sentence")),
    "qqp": GlueTask("QQP", ("question1", "question2"), "is_duplicate", YES_NO, ("question1", "question2")),
    "rte": GlueTask("RTE", SENTENCES, "label", ENTAILMENT, SENTENCES),
    "sst2": GlueTask("SST-2", ("sentence",), "label", YES_NO, ("sentence",)),
    "stsb": GlueTask("STS-B", SENTENCES, "score", (), SENTENCES, metric="pearson"),
    "wnli": GlueTask("WNLI", SENTENCES, "label", YES_NO, SENTENCES),
}


def _make(name: str) -> Callable[[TextModel, TaskOptions], TextClassification]:
    task = GLUE[name]

    def make(spec: TextModel, options: TaskOptions) -> TextClassification:
        train, *evaluations = from_hub(name) if options.data is None else from_folder(task, options.data)
        return TextClassification(
            name,
            spec,
            options,
            train,
            evaluations[0],
            classes=len(task.classes),
            labels=() if task.classes == YES_NO else task.classes,
            metric=task.metric,
            also=dict(zip(task.evaluations[1:], evaluations[1:], strict=True)),
        )

    return make


def from_hub(name: str) -> list[Examples]:
    """A GLUE task from the hub: what it trains on, then each set that it evaluates on."""
    task = GLUE[name]
    splits = load_splits(
        "nyu-mll/glue",
        name,
        otherwise=f"Or give GLUE's own folder with {_in_words(_files(task))} (--data {task.folder}), or take a task "
        "that needs no data: docstring-topic, docstring-order.",
    )
    read = []
    for split in ("train", *(f"validation{ending}" for ending in task.evaluations)):
        texts, *pairs = (list(splits[split][column]) for column in task.hub)
        labels = [int(label) if task.classes else float(label) for label in splits[split]["label"]]
        read.append(Examples(texts, labels, pairs[0] if pairs else None))
    return read


def from_folder(task: GlueTask, data: Path) -> list[Examples]:
    """A GLUE task from its own folder, or from the folder of all of them; as :func:`from_hub`."""
    folder = data / task.folder if (data / task.folder).is_dir() else data
    files = _files(task)
    if task.original and not (folder / files[0]).is_file() and (folder / task.original[0]).is_file():
        files = list(task.original)
    return [read_tsv(task, folder / file) for file in files]


def _files(task: GlueTask) -> list[str]:
    return ["train.tsv", *(f"dev{ending}.tsv" for ending in task.evaluations)]


def _in_words(files: list[str]) -> str:
    return f"{', '.join(files[:-1])} and {files[-1]}"


def read_tsv(task: GlueTask, path: Path) -> Examples:
    """One file of GLUE's layout: tab-separated, with no quoting.

    Rows with too few columns or without a label are skipped, as the hub's reader does; :class:`UserError` where they
    are more than 1 %, and where a label is none of the task's.
    """
    if not path.is_file():
        raise UserError(
            f"there is no {path}: --data takes GLUE's own folder for this task, {task.folder}, "
            f"with {_in_words(_files(task))}. GLUE's test.tsv has no labels to evaluate with."
        )
    try:
        rows = list(_rows(task, path))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not tab-separated UTF-8 text: {error}") from error
    if not rows:
        raise UserError(f"{path} has no examples.")
    malformed = [row for row in rows if isinstance(row, int)]
    if len(malformed) > MALFORMED_SHARE * len(rows):
        raise UserError(
            f"{path}: {len(malformed)} of {len(rows)} lines (the first is line {malformed[0]}) have no text with "
            f"{_labels(task)} in the columns of {task.folder}. GLUE's test files have no labels."
        )
    texts, labels = zip(*(row for row in rows if not isinstance(row, int)), strict=True)
    first, *second = zip(*texts, strict=True)
    return Examples(first, labels, second[0] if second else None)


def _rows(task: GlueTask, path: Path) -> Iterator[tuple[tuple[str, ...], int | float] | int]:
    """Texts and label of each line, or the number of a line that is malformed."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        columns = next(lines, []) if task.header else []
        label, *texts = (_position(column, columns, path) for column in (task.label, *task.texts))
        width = len(columns) or 1 + max(label, *texts)
        for fields in filter(None, lines):
            try:
                yield tuple(fields[text] for text in texts), _value(task, fields[label])
            except (IndexError, ValueError):
                if len(fields) == width and fields[label] not in ("", "-"):  # "-": people did not agree on a label
                    raise UserError(
                        f"{path}, line {lines.line_num}: {fields[label]!r} is not {_labels(task)}."
                    ) from None
                yield lines.line_num


def _value(task: GlueTask, label: str) -> int | float:
    if task.classes:
        return task.classes.index(label)
    score = float(label)
    if not math.isfinite(score):
        raise ValueError(label)
    return score


def _labels(task: GlueTask) -> str:
    return f"a label out of {', '.join(task.classes)}" if task.classes else "a score"


def _position(column: str | int, columns: list[str], path: Path) -> int:
    if isinstance(column, int):
        return column
    if column not in columns:
        raise UserError(
            f"{path} has no column {column!r}; its columns are: {', '.join(columns) or 'none'}. "
            "GLUE's test files have no labels."
        )
    return columns.index(column)


for _name in GLUE:
    register(_name, kind="text", recipe=f"neurips20/{_name}")(_make(_name))
