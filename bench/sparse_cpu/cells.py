"""What is measured, and how fast the sparse operator has to be there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SPARSITIES = (0.7, 0.8, 0.9, 0.95)
THREADS = (1, 2)
LENGTHS = (1, 8, 17, 65, 100, 128, 384, 1024)
PARTS = ("layers", "lengths", "bert", "int8", "load", "resnet")
PATTERNS = {
    "layers": ("1x1", "4x1"),
    "bert": ("1x1", "4x1"),
    "int8": ("4x1", "4x4"),
    "load": ("1x1", "4x1"),
    "resnet": ("1x1", "4x1"),
}

# (part, pattern, threads): at least so many times as fast at SPARSITIES as dense fp32 (int8: as dense INT8)
MARKS = {
    ("layers", "1x1", 1): (1.2, 1.8, 3.4, 5.3),
    ("layers", "4x1", 1): (3.0, 4.3, 6.8, 9.5),
    ("bert", "1x1", 1): (1.15, 1.55, 2.4, 3.0),
    ("bert", "1x1", 2): (1.05, 1.4, 2.1, 2.6),
    ("bert", "4x1", 1): (2.1, 2.6, 3.3, 3.8),
    ("bert", "4x1", 2): (1.9, 2.3, 2.9, 3.3),
    ("int8", "4x1", 1): (1.05, 1.15, 1.35, 1.55),
    ("int8", "4x4", 1): (1.2, 1.4, 1.7, 1.85),
    ("resnet", "4x1", 1): (None, None, 1.3, 1.6),
}
LEAST_AT_ANY_LENGTH = 0.95


@dataclass(frozen=True)
class Cell:
    """One network, one kind of zeros, one setting; ``rows`` are tokens of the one text."""

    part: str
    pattern: str
    sparsity: float
    threads: int = 1
    rows: int = 128

    @property
    def key(self) -> str:
        """Its name in the results."""
        return f"{self.part}, {self.pattern}, {self.sparsity:.0%}, {self.rows} rows, {self.threads} threads"

    @property
    def is_bert(self) -> bool:
        return self.part in ("bert", "int8", "load")

    @property
    def network(self) -> str:
        """Cells of one network, with the same zeros, share its files."""
        return "bert" if self.is_bert else self.part

    @property
    def mark(self) -> float | None:
        """What is wanted of it, where something is."""
        if self.part == "lengths":
            return LEAST_AT_ANY_LENGTH
        marks = MARKS.get((self.part, self.pattern, self.threads))
        return dict(zip(SPARSITIES, marks, strict=True)).get(self.sparsity) if marks else None


def cells(parts: Sequence[str], sparsities: Sequence[float], threads: Sequence[int]) -> Iterator[Cell]:
    """Of BERT those with the same zeros one after the other, so that its files are made once."""
    for pattern in PATTERNS["layers"]:
        yield from (Cell("layers", pattern, s, t) for s in sparsities for t in threads if "layers" in parts)
    if "lengths" in parts:
        yield from (Cell("lengths", "4x1", sparsities[0], t, rows) for t in threads for rows in LENGTHS)
    for pattern in PATTERNS["resnet"]:
        yield from (Cell("resnet", pattern, s, t, 1) for s in sparsities for t in threads if "resnet" in parts)
    for pattern in ("1x1", "4x1", "4x4"):
        for sparsity in sparsities:
            for part in ("load", "bert", "int8"):
                if part in parts and pattern in PATTERNS[part] and (part != "load" or sparsity == sparsities[0]):
                    counts = threads if part != "load" else (1,)
                    yield from (Cell(part, pattern, sparsity, count) for count in counts)
