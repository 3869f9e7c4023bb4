"""Verdicts over seeds, as both papers read them: matching is within one standard deviation of dense."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

ENOUGH = 3  # runs; fewer give no verdict


@dataclass(frozen=True)
class Arm:
    """The values of one arm of a comparison, one a seed, as fractions."""

    values: list[float]

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation (ddof 1); None for a single value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def table(self) -> dict[str, Any]:
        """As transfer.json has it."""
        return {"values": self.values, "mean": self.mean, "std": self.std, "n": len(self.values)}


@dataclass(frozen=True)
class Verdict:
    """``matching``: mean(ticket) ≥ mean(dense) − std(dense); ``strict``: ≥ mean(dense). None where nobody can say."""

    matching: bool | None
    strict: bool | None
    reason: str | None = None

    def __str__(self) -> str:
        if self.reason:
            return f"no verdict: {self.reason}"
        return "matching" + (", strictly" if self.strict else "") if self.matching else "not matching"


def judge(ticket: Arm, dense: Arm) -> Verdict:
    """The verdict on a ticket, beside dense networks that share its seeds."""
    fewest = min(len(ticket.values), len(dense.values))
    if fewest < ENOUGH:
        return Verdict(None, None, f"{fewest} runs are too few to say; a verdict takes {ENOUGH} (--seeds {ENOUGH})")
    return Verdict(ticket.mean >= dense.mean - dense.std, ticket.mean >= dense.mean)
