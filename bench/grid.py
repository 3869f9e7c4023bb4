"""The cells of a comparison: each number of threads with each batch size and each sequence length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparseticket.bench.candidates import Candidate
from sparseticket.bench.inputs import Feeds, make_feeds
from sparseticket.errors import UserError

ALL = "all"


@dataclass(frozen=True)
class Cell:
    """One setting that every candidate is timed in; ``tokens`` is None for images."""

    batch: int
    tokens: int | None
    threads: int
    feeds: Feeds

    @property
    def words(self) -> str:
        return f"{self.feeds.words}, {self.threads} thread{'s' if self.threads > 1 else ''}"


def whole_numbers(option: str, text: str, *, or_all: bool = False) -> list[int | str]:
    """Read ``1,8`` (or ``1,all``) as given to ``option``; :class:`UserError` where it is something else."""
    found: list[int | str] = []
    for part in text.split(","):
        word = part.strip()
        if or_all and word == ALL:
            found.append(ALL)
        elif word.isascii() and word.removeprefix("-").isdigit():
            found.append(int(word))
        else:
            example = "1,all" if or_all else "1,8"
            raise UserError(f"{option} {text} makes no sense: give numbers with commas between, as in {example}.")
    return found


def make_cells(
    found: Sequence[Candidate],
    *,
    batch: Sequence[int],
    seq_length: Sequence[int] | None,
    threads: Sequence[int | str],
    all_threads: int,
) -> list[Cell]:
    """Every cell with its inputs, made before anything is measured; the same setting named twice is one cell.

    Raises:
        UserError: a number below 1, or inputs that a candidate does not take.
    """
    for name, values in (("--batch", batch), ("--seq-length", seq_length or ()), ("--threads", threads)):
        for value in values:
            if value != ALL and value < 1:
                raise UserError(f"{name} {value} makes no sense: give 1 or more.")
    needs = {one.name: one.needs for one in found}
    if seq_length and all(one.image for one in needs.values()):
        raise UserError("--seq-length is for text, and these models take images: leave it out.")
    counts = dict.fromkeys(all_threads if one == ALL else one for one in threads)
    feeds = {
        (rows, length): make_feeds(needs, batch=rows, length=length)
        for rows in batch
        for length in (seq_length or [None])
    }
    return [Cell(rows, one.tokens, count, one) for count in counts for (rows, _), one in feeds.items()]
