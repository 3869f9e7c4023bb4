"""Real English that every Python brings along: tasks made from the documentation strings of the standard library."""

from __future__ import annotations

import ast
import hashlib
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from sparseticket.errors import UserError
from sparseticket.models.text import TextModel
from sparseticket.seeds import generator
from sparseticket.tasks import register
from sparseticket.tasks.base import TaskOptions
from sparseticket.tasks.mlm import MaskedLanguageModelling
from sparseticket.tasks.text_classification import Examples, TextClassification

SKIPPED = {
    "test",
    "tests",
    "idlelib",
    "idle_test",
    "lib2to3",
    "turtledemo",
    "ensurepip",
    "encodings",  # tables of characters: slow to parse, and hardly any text
    "site-packages",
    "dist-packages",
}
TOPICS = 8
MOST_A_TOPIC = 200  # the largest package has three times as many as the eighth: it would be guessed too often
SHORTEST, LONGEST = 8, 60  # words


@dataclass(frozen=True)
class Docstring:
    """A documentation string on one line, and the package of the standard library that it documents."""

    text: str
    package: str


@lru_cache(maxsize=1)
def docstrings() -> tuple[Docstring, ...]:
    """Every documentation string of the standard library's packages once, in the order of their hashes.

    The sources are parsed, never imported.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, Docstring] = {}
    for path in sorted(library.glob("*/**/*.py")):
        parts = path.relative_to(library).parts
        if not SKIPPED & set(parts) and (library / parts[0] / "__init__.py").exists():
            for text in _docstrings_in(path):
                found.setdefault(text, Docstring(text, parts[0]))
    if len(found) < 500:
        raise UserError(
            f"this Python has no sources of its standard library (looked in {library}), from which the docstring tasks "
            "are made: use another Python, or a task with --data (text, mlm)."
        )
    return tuple(sorted(found.values(), key=lambda found: _hash(found.text)))


def _docstrings_in(path: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in the sources
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError):
            return  # templates and deliberately broken files
    yield from _docstrings_under(tree)


def _docstrings_under(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    words = (ast.get_docstring(node) or "").split()
    if len(words) >= SHORTEST:
        yield " ".join(words)
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings_under(child)


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def split(texts: list[str], labels: list[int]) -> tuple[Examples, Examples]:
    """All but a fifth to train on, and the fifth that evaluates: the first ones, in the order of hashes."""
    border = len(texts) // 5
    return Examples(texts[border:], labels[border:]), Examples(texts[:border], labels[:border])


def topic_examples() -> tuple[Examples, Examples]:
    """Docstrings of the packages that have most of them; the label is the package, in alphabetical order."""
    by_package: dict[str, list[str]] = {}
    for docstring in docstrings():
        by_package.setdefault(docstring.package, []).append(docstring.text)
    largest = sorted(by_package, key=lambda package: (-len(by_package[package]), package))[:TOPICS]
    topics = sorted(largest)
    chosen = [(text, topics.index(package)) for package in topics for text in by_package[package][:MOST_A_TOPIC]]
    chosen.sort(key=lambda example: _hash(example[0]))
    return split([text for text, _ in chosen], [topic for _, topic in chosen])


def order_examples() -> tuple[Examples, Examples]:
    """Beginnings of docstrings, every second one with its words shuffled (label 0) and the others as written (1)."""
    texts, labels = [], []
    for docstring in docstrings():
        words = docstring.text.split()[:LONGEST]
        in_order = _hash(docstring.text)[-1] % 2
        if not in_order:
            places = torch.randperm(len(words), generator=generator(0, "words", docstring.text)).tolist()
            words = [words[place] for place in places]
        texts.append(" ".join(words))
        labels.append(in_order)
    return split(texts, labels)


def _no_data(name: str, options: TaskOptions) -> None:
    if options.data is not None:
        raise UserError(f"{name} makes its own data: leave --data out, or choose the task text or mlm for your own.")


@register("docstring-topic", kind="text", recipe="demo/docstring-topic")
def topic(spec: TextModel, options: TaskOptions) -> TextClassification:
    """Which package of the standard library does a docstring come from?"""
    _no_data("docstring-topic", options)
    return TextClassification("docstring-topic", spec, options, *topic_examples(), classes=TOPICS)


@register("docstring-order", kind="text", recipe="demo/docstring-order")
def order(spec: TextModel, options: TaskOptions) -> TextClassification:
    """Are the words of a docstring in order?"""
    _no_data("docstring-order", options)
    return TextClassification("docstring-order", spec, options, *order_examples(), classes=2)


@register("docstring-mlm", kind="text", recipe="demo/docstring-mlm")
def mlm(spec: TextModel, options: TaskOptions) -> MaskedLanguageModelling:
    """MLM on the docstrings; a tenth of them evaluates."""
    _no_data("docstring-mlm", options)
    texts = [docstring.text for docstring in docstrings()]
    border = len(texts) // 10
    return MaskedLanguageModelling("docstring-mlm", spec, options, texts[border:], texts[:border])
