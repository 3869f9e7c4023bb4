"""Where zeros may lie: the text after ``--pattern`` as a checked value. No torch: settings are read without it.

Of the text there is one form only, so that two tickets of one pattern say the same: ``neurons+heads`` is read, and
written ``heads+neurons``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sparseticket.errors import UserError

LARGEST_M = 32
SYNTAX = (
    "unstructured, N:M (2:4 is 2 alive of every 4), block:RxC (block:64x64), heads, neurons, heads+neurons or channels"
)
KINDS_OF_MODEL = {"text": ("heads", "neurons"), "vision": ("channels",)}


@dataclass(frozen=True)
class Unstructured:
    """Any weight by itself."""

    def __str__(self) -> str:
        return "unstructured"


@dataclass(frozen=True)
class NOfM:
    """``n`` alive of every ``m`` neighbours along the input dimension (dim 1; of a convolution at one tap)."""

    n: int
    m: int

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def sparsity(self) -> float:
        """The only sparsity of the pattern."""
        return 1 - self.n / self.m

    def alive_at(self, sparsity: float) -> int:
        """How many of ``m`` are alive in the round of this sparsity, on the way from m:m to n:m."""
        return self.m - round(sparsity * self.m)


@dataclass(frozen=True)
class Block:
    """Blocks of ``rows`` outputs × ``columns`` inputs of a matrix; of a convolution at one tap."""

    rows: int
    columns: int

    def __str__(self) -> str:
        return f"block:{self.rows}x{self.columns}"


@dataclass(frozen=True)
class Whole:
    """Whole heads, neurons or channels, with every end (:mod:`sparseticket.models.families`)."""

    kinds: tuple[str, ...]

    def __str__(self) -> str:
        return "+".join(self.kinds)


Pattern = Unstructured | NOfM | Block | Whole

COMBINATIONS = tuple(Whole(kinds) for kinds in (("heads",), ("neurons",), ("channels",), ("heads", "neurons")))


def parse(text: str) -> Pattern:
    """The pattern that ``text`` names.

    Raises:
        UserError: it names none; says what a pattern is.
    """
    if text == "unstructured":
        return Unstructured()
    if match := re.fullmatch(r"(\d{1,6}):(\d{1,6})", text):
        return _n_of_m(int(match[1]), int(match[2]))
    if match := re.fullmatch(r"block:(\d{1,6})x(\d{1,6})", text):
        return _block(int(match[1]), int(match[2]))
    kinds = text.split("+")
    if not all(Whole((kind,)) in COMBINATIONS for kind in kinds):
        raise UserError(f"there is no pattern {text!r}. A pattern is {SYNTAX}.")
    whole = Whole(tuple(sorted(kinds)))
    if whole not in COMBINATIONS:
        raise UserError(f"pattern {text!r} makes no sense: heads and neurons can be combined, once each.")
    return whole


def check_model(pattern: Pattern, kind: str, model: str) -> None:
    """Refuse heads in a ResNet and channels in an encoder, knowing only what ``kind`` ("text", "vision") it is of."""
    if isinstance(pattern, Whole) and (odd := [name for name in pattern.kinds if name not in KINDS_OF_MODEL[kind]]):
        raise UserError(
            f"pattern {pattern}: {model!r} is a {kind} model and has no {odd[0]}. It has "
            f"{' and '.join(KINDS_OF_MODEL[kind])}."
        )


def _n_of_m(n: int, m: int) -> NOfM:
    if not 1 <= n < m <= LARGEST_M:
        raise UserError(
            f"pattern {n}:{m} makes no sense: N:M keeps N of every M weights, N from 1 and below M, M up to "
            f"{LARGEST_M} (2:4)."
        )
    return NOfM(n, m)


def _block(rows: int, columns: int) -> Block:
    if rows * columns < 2:
        raise UserError(
            f"pattern block:{rows}x{columns} makes no sense: a block has two weights or more, rows (outputs) x columns "
            "(inputs). For single weights say unstructured."
        )
    return Block(rows, columns)
