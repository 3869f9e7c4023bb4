"""SQuAD v1.1 as published (train-v1.1.json, dev-v1.1.json) or from the hub: passages, questions, answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sparseticket.errors import UserError
from sparseticket.hub import load_splits

FILES = {"train": "train-v1.1.json", "validation": "dev-v1.1.json"}
NEEDED = "--data takes the folder with SQuAD's own train-v1.1.json and dev-v1.1.json"


@dataclass(frozen=True)
class Answer:
    """A piece of a passage: ``passage[start : start + len(text)] == text``, unless the data is wrong."""

    start: int
    text: str


@dataclass(frozen=True)
class Question:
    """A question on the passage of that number, and the answers that people gave: one to train, more to evaluate."""

    text: str
    passage: int
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Passages:
    """Each passage once, and all questions on them."""

    texts: list[str]
    questions: list[Question]


Record = tuple[str, str, tuple[Answer, ...]]  # passage, question, answers


def read(data: Path | None) -> tuple[Passages, Passages]:
    """What to train and to evaluate on, from the hub or from a folder (SQuAD's, or one with it in ``SQuAD``)."""
    if data is None:
        splits = load_splits("rajpurkar/squad", "plain_text", otherwise=f"Or {NEEDED}.")
        train, evaluation = (_collect(_hub_records(splits[split])) for split in FILES)
        return train, evaluation
    folder = data / "SQuAD" if (data / "SQuAD").is_dir() else data
    train, evaluation = (_read_file(folder / name) for name in FILES.values())
    return train, evaluation


def _hub_records(rows: object) -> Iterator[Record]:
    for passage, question, answers in zip(rows["context"], rows["question"], rows["answers"], strict=True):
        yield passage, question, tuple(map(Answer, answers["answer_start"], answers["text"]))


def _read_file(path: Path) -> Passages:
    if not path.is_file():
        raise UserError(f"there is no {path}: {NEEDED}.")
    try:
        found = _collect(_file_records(json.loads(path.read_text(encoding="utf-8-sig"))))
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} is not laid out as SQuAD v1.1 is ({reason}). {NEEDED}.") from error
    if not found.questions:
        raise UserError(f"{path} has no questions.")
    if unanswered := next((question for question in found.questions if not question.answers), None):
        raise UserError(
            f"{path} has a question without an answer ({unanswered.text!r}): SQuAD v2.0 has such, and v1.1 is needed."
        )
    return found


def _file_records(content: dict) -> Iterator[Record]:
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                answers = tuple(Answer(int(given["answer_start"]), str(given["text"])) for given in asked["answers"])
                yield str(paragraph["context"]), str(asked["question"]), answers


def _collect(records: Iterable[Record]) -> Passages:
    numbers: dict[str, int] = {}
    questions = [
        Question(question, numbers.setdefault(passage, len(numbers)), answers) for passage, question, answers in records
    ]
    return Passages(list(numbers), questions)
