"""The clock: candidates take turns, so that whatever slows the machine down slows all of them down."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

WARM_UP_CALLS = 3
CALLS_PER_TURN = 4
RESAMPLES = 2000


@dataclass(frozen=True)
class Timed:
    """Something to call. ``synchronize`` waits for a device that works on after ``call`` has returned."""

    name: str
    call: Callable[[], object]
    synchronize: Callable[[], object] | None = None


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as the baseline, with the 95 % interval of the median over rounds."""

    median: float
    low: float
    high: float


def interleave(
    candidates: Sequence[Timed],
    *,
    seconds: float = 10.0,
    min_rounds: int = 10,
    max_rounds: int = 10_000,
) -> list[np.ndarray]:
    """Time ``candidates`` in rounds; in each round every one has a turn, in an order drawn anew.

    A turn is one call that is not counted (it brings the weights back into the caches) and ``CALLS_PER_TURN`` that
    are. It goes on for ``seconds`` of wall-clock time, and for at least ``min_rounds``.

    Returns:
        For each candidate its times in milliseconds, float64 [rounds, CALLS_PER_TURN].
    """
    for candidate in candidates:
        for _ in range(WARM_UP_CALLS):
            _time_one(candidate)
    order = np.random.default_rng(0)
    samples: list[list[list[float]]] = [[] for _ in candidates]
    until = time.perf_counter() + seconds
    while len(samples[0]) < max_rounds and (len(samples[0]) < min_rounds or time.perf_counter() < until):
        for index in order.permutation(len(candidates)):
            _time_one(candidates[index])
            samples[index].append([_time_one(candidates[index]) for _ in range(CALLS_PER_TURN)])
    return [np.array(one) for one in samples]


def percentiles(samples: np.ndarray) -> dict[str, float]:
    """``p50_ms``, ``p90_ms``, ``p95_ms``, ``p99_ms`` of times in milliseconds, interpolated linearly."""
    values = np.percentile(samples, [50, 90, 95, 99])
    return dict(zip(("p50_ms", "p90_ms", "p95_ms", "p99_ms"), map(float, values), strict=True))


def speedup(baseline: np.ndarray, candidate: np.ndarray) -> Ratio:
    """How many times as fast ``candidate`` is, from times [rounds, calls] of the same rounds.

    The ratio is taken within each round, where both met the same machine; its median over rounds is the speed-up, and
    a bootstrap over rounds gives the interval.
    """
    ratios = np.median(baseline, axis=1) / np.median(candidate, axis=1)
    drawn = np.random.default_rng(0).choice(ratios, size=(RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return Ratio(float(np.median(ratios)), float(low), float(high))


def _time_one(candidate: Timed) -> float:
    start = time.perf_counter_ns()
    candidate.call()
    if candidate.synchronize is not None:
        candidate.synchronize()
    return (time.perf_counter_ns() - start) / 1e6
