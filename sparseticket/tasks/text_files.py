"""The task ``text``: a user's own labelled texts in CSV, TSV or JSON lines."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparseticket.errors import UserError
from sparseticket.models.text import TextModel
from sparseticket.tasks import register
from sparseticket.tasks.base import TaskOptions
from sparseticket.tasks.text_classification import Examples, TextClassification

SUFFIXES = (".csv", ".tsv", ".jsonl")
LONGEST_FIELD = 2**31 - 1  # characters; csv's own limit is 131,072
EVAL_NAMES = ("eval", "dev", "valid", "validation", "test")
HALF_A_LETTER = re.compile("[\ud800-\udfff]")  # a lone surrogate, which JSON can escape and nothing can encode
LAYOUT = (
    "--data takes a .csv, .tsv or .jsonl file with the columns text and label (and text_b for pairs), or a folder with "
    "one such file called train and one called eval, dev, valid or test."
)

Row = tuple[str, str | None, str]  # text, second text, label


@register("text", kind="text", recipe="neurips20/text")
def make(spec: TextModel, options: TaskOptions) -> TextClassification:
    """Classification of a user's texts; labels may be any words or numbers.

    Of a single file, the tenth whose texts hash lowest evaluates: a fixed choice that does not depend on the order of
    the rows (files are often sorted by label), and under which copies of a text stay on one side.
    """
    if options.data is None:
        raise UserError(f"the task text needs your data. {LAYOUT}")
    if options.data.is_dir():
        train, evaluation = (read_rows(path) for path in _train_and_eval(options.data))
        if {row[:2] for row in evaluation} <= {row[:2] for row in train}:
            raise UserError(f"every text to evaluate on in {options.data} is one to train on, too: evaluate on others.")
    else:
        train, evaluation = hold_out(read_rows(options.data), options.data)
    if len({second is None for _, second, _ in train + evaluation}) == 2:
        raise UserError(f"some rows of {options.data} have a text_b and others do not: give it in all of them or none.")
    trained = {label for _, _, label in train}
    labels = _in_order(trained | {label for _, _, label in evaluation})
    if len(labels) < 2:
        raise UserError(f"{options.data} has only one label ({labels[0]}): a classifier needs at least two.")
    unknown = [label for label in labels if label not in trained]
    if unknown and options.data.is_dir():
        raise UserError(
            f"{options.data} evaluates on labels that it never trains on: {', '.join(unknown[:3])}. It trains on "
            f"{', '.join(_in_order(trained)[:3])}{', …' if len(trained) > 3 else ''}: write one label one way."
        )
    splits = (_examples(rows, labels) for rows in (train, evaluation))
    task = TextClassification("text", spec, options, *splits, classes=len(labels), labels=labels)
    if unknown:  # of a single file, where the rows of a rare label may all be held out
        task.notes = (*task.notes, f"no row to train on has the label {', '.join(unknown[:3])}: it cannot be learned")
    return task


def read_rows(path: Path) -> list[Row]:
    """The rows of a file; a TSV file has no quoting, as in GLUE."""
    if not path.is_file() or path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} is no file of labelled texts. {LAYOUT}")
    read = _json_lines if path.suffix.lower() == ".jsonl" else _table
    try:
        rows = [_row(record, f"{path}, line {line}") for line, record in read(path)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} could not be read as a table of UTF-8 text: {error}") from error
    if not rows:
        raise UserError(f"{path} has no rows.")
    return rows


def _table(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    tabs = path.suffix.lower() == ".tsv"
    dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    csv.field_size_limit(LONGEST_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, **dialect)
        _check_columns(reader.fieldnames or [], str(path))
        for record in reader:
            surplus = record.get(None) or []  # where DictReader puts what has no column
            if any(surplus):
                separator = "tab" if tabs else "comma"
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(record) - 1 + len(surplus)} fields, and the header has "
                    f"{len(record) - 1}. A {separator} inside a text "
                    + ("has to be replaced." if tabs else 'needs quotes around it: "so, as here",label.')
                )
            yield reader.line_num, record


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise UserError(f"{path}, line {number}: not JSON ({error}).") from error
            if not isinstance(record, dict):
                raise UserError(f"{path}, line {number}: each line must be a JSON object with text and label.")
            _check_columns(list(record), f"{path}, line {number}")
            yield number, record


def _check_columns(found: list[str], where: str) -> None:
    missing = [name for name in ("text", "label") if name not in found]
    if missing:
        raise UserError(
            f"{where} has no column {' and no column '.join(missing)}; "
            f"found: {', '.join(map(str, found)) or 'none'}; needed: text, label (and text_b for pairs)."
        )


def _row(record: dict[str, Any], where: str) -> Row:
    text, second, label = record["text"], record.get("text_b"), record["label"]
    if not isinstance(text, str) or not isinstance(second, str | None):
        raise UserError(f"{where}: text and text_b must be texts.")
    if HALF_A_LETTER.search(text + (second or "")):
        raise UserError(f"{where}: half of a surrogate pair (\\ud800 to \\udfff) is no letter: mend the text.")
    if not isinstance(label, str | int | float) or label != label or not str(label).strip():  # not itself: NaN
        raise UserError(f"{where}: the label is missing.")
    return text, second, str(label).strip()


def hold_out(rows: list[Row], path: Path) -> tuple[list[Row], list[Row]]:
    """Training rows and the tenth that evaluates, both in the file's order."""
    if len(rows) < 10:
        raise UserError(f"{path} has {len(rows)} rows: at least 10 are needed to train on nine tenths of them.")
    keys = [hashlib.sha256(f"{text}\0{second or ''}".encode()).digest() for text, second, _ in rows]
    distinct = sorted(set(keys))
    if len(distinct) == 1:
        raise UserError(f"{path} repeats the same text in every row: give others, too, to evaluate on.")
    border = distinct[max(1, len(distinct) // 10)]
    train = [row for row, key in zip(rows, keys, strict=True) if key >= border]
    evaluation = [row for row, key in zip(rows, keys, strict=True) if key < border]
    return train, evaluation


def _train_and_eval(folder: Path) -> tuple[Path, Path]:
    found = []
    for names in (("train",), EVAL_NAMES):
        paths = [folder / f"{name}{suffix}" for name in names for suffix in SUFFIXES]
        found.append(next((path for path in paths if path.is_file()), None))
    if None in found:
        raise UserError(f"the folder {folder} has no {'train' if found[0] is None else 'evaluation'} file. {LAYOUT}")
    return found[0], found[1]


def _in_order(labels: set[str]) -> list[str]:
    """Class numbers follow the order of the labels: by value where all are whole numbers, alphabetical otherwise."""
    if all(label.removeprefix("-").isdecimal() for label in labels):
        return sorted(labels, key=int)
    return sorted(labels)


def _examples(rows: list[Row], labels: list[str]) -> Examples:
    pairs = None if rows[0][1] is None else [second or "" for _, second, _ in rows]
    return Examples([text for text, _, _ in rows], [labels.index(label) for _, _, label in rows], pairs)
