"""Verdicts over seeds, as both papers read them: matching is within one standard deviation of dense."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

ENOUGH = 3  # runs; fewer give no verdict
TIE = 2e-7  # metrics come as float32, which rounds by up to 3e-8: of 349 equal means on SST-2, 86 seemed to differ


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
    """``matching``: mean(ticket) ≥ mean(dense) − std(dense); ``strict``: ≥ mean(dense). None where nobody can say.

    ``winning`` is matching with θ = θ_p, the pre-trained weights: None where nobody can say, or nobody asked.
    """

    matching: bool | None
    strict: bool | None
    reason: str | None = None
    winning: bool | None = None

    def __str__(self) -> str:
        if self.reason:
            return f"no verdict: {self.reason}"
        if not self.matching:
            return "not matching"
        return ("winning" if self.winning else "matching") + (", strictly" if self.strict else "")

    def table(self) -> dict[str, Any]:
        """As JSON files have it."""
        return asdict(self)


def judge(ticket: Arm, dense: Arm, *, at_theta_p: bool | None = None) -> Verdict:
    """The verdict on a ticket, beside dense networks that share its seeds; ``at_theta_p``: it began with θ_p."""
    fewest = min(len(ticket.values), len(dense.values))
    if fewest < ENOUGH:
        runs = "1 run is" if fewest == 1 else f"{fewest} runs are"
        return Verdict(None, None, f"{runs} too few to say; a verdict takes {ENOUGH} (--seeds {ENOUGH})")
    if dense.mean <= 0:
        return Verdict(None, None, "dense networks score nothing, so there is nothing to match; train them longer")
    if len({*ticket.values, *dense.values}) == 1:
        return Verdict(None, None, f"all runs have the same value, {dense.mean:.4f}: nothing tells the networks apart")
    matching = at_least(ticket.mean, dense.mean - dense.std)
    winning = None if at_theta_p is None else matching and at_theta_p
    return Verdict(matching, at_least(ticket.mean, dense.mean), winning=winning)


def at_least(mean: float, other: float) -> bool:
    """``mean >= other`` for means of a metric, whose rounding must not decide between equal ones."""
    return mean >= other - TIE


@dataclass(frozen=True)
class Universal:
    """Matching on every task of a set: ``universal`` is None where no task fails and some have no verdict.

    It is None too where a ``reason`` forbids the word.
    """

    universal: bool | None
    matching: list[str]
    failing: list[str]
    undecided: list[str]
    reason: str | None = None


def judge_universal(verdicts: Mapping[str, Verdict], *, reason: str | None = None) -> Universal:
    """The verdict on a ticket over a set of tasks, by name, unless a ``reason`` forbids it. One task is no set."""
    by_answer = {
        answer: [task for task, verdict in verdicts.items() if verdict.matching is answer]
        for answer in (True, False, None)
    }
    if reason is None and len(verdicts) < 2:
        reason = "one task is no set"
    universal = None if reason else False if by_answer[False] else None if by_answer[None] else True
    return Universal(universal, by_answer[True], by_answer[False], by_answer[None], reason)


@dataclass(frozen=True)
class Highest:
    """Of a sweep over sparsities: the highest that matches, and strictly; None where none does.

    ``gaps`` are lower sparsities that do not match: where there are any, the curve is not monotonous, and one lucky
    mean may have decided. ``undecided`` have no verdict.
    """

    matching: float | None
    strict: float | None
    gaps: list[float]
    undecided: list[float]


def highest_matching(sweep: Sequence[tuple[float, Verdict]]) -> Highest:
    """The highest matching sparsity of (sparsity, verdict) pairs, in any order."""
    matching = max((sparsity for sparsity, verdict in sweep if verdict.matching), default=None)
    strict = max((sparsity for sparsity, verdict in sweep if verdict.strict), default=None)
    gaps = sorted(s for s, verdict in sweep if verdict.matching is False and matching is not None and s < matching)
    return Highest(matching, strict, gaps, sorted(s for s, verdict in sweep if verdict.matching is None))
