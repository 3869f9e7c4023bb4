"""Arms: ways to compute the same thing, timed in turns; one that cannot run says why and stops no other."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sparseticket.bench.gpu.clocks import CLOCKS, FOUR, Mode
from sparseticket.bench.gpu.lab import Lab

DENSE, AGAIN = "dense", "dense again"  # the second shows the noise: the A/A column
Call = Callable[[], object]
Times = dict[str, dict[str, Any]]  # by arm: milliseconds and ratios by mode, peak MB; or why it could not run


@dataclass(frozen=True)
class Arm:
    """Something to call. ``held`` is the bytes of weights and states that it keeps for that."""

    call: Call
    held: int = 0


def time_arms(lab: Lab, make: Mapping[str, Callable[[], Arm]], modes: Sequence[Mode] = FOUR) -> Times:
    """Make every arm and time them in turns, in an order drawn anew each round; the first is the baseline.

    Returns:
        For each arm ``{mode: {"ms": median, "ratio": median over rounds of baseline / arm}, "peak_mb": …}``, where the
        peak is what it holds and what a call takes on top, and ``failed`` says why a mode is missing; or ``{"error":
        …}``.
    """
    found: Times = {}
    arms: dict[str, Arm] = {}
    for name, build in make.items():
        try:
            arms[name] = build()
            arms[name].call()
            found[name] = {"peak_mb": _peak_mb(lab, arms[name])}
        except Exception as error:
            found[name] = {"error": why(error)}
            arms.pop(name, None)
    baseline = next(iter(make))
    if baseline not in arms:
        raise RuntimeError(f"the baseline does not run: {found[baseline]['error']}")
    for mode in modes:
        for name, times in _in_turns(lab, arms, mode, found).items():
            paired = [base / own for base, own in zip(times[0], times[1], strict=True)]
            found[name][mode] = {"ms": statistics.median(times[1]), "ratio": statistics.median(paired)}
    return found


def median_of(runs: Sequence[Times]) -> Times:
    """Each number's median over masks, and the range of its ratio; an arm that failed under one of them fails."""
    merged: Times = {}
    for name in runs[0]:
        mine = [run[name] for run in runs if name in run]
        if broken := next((one for one in mine if "error" in one), None):
            merged[name] = broken
            continue
        merged[name] = {"peak_mb": statistics.median(one["peak_mb"] for one in mine)}
        merged[name] |= {"failed": failed} if (failed := _failed(mine)) else {}
        for mode in (key for key in mine[0] if key in CLOCKS and key not in failed):
            ratios = [one[mode]["ratio"] for one in mine]
            merged[name][mode] = {
                "ms": statistics.median(one[mode]["ms"] for one in mine),
                "ratio": statistics.median(ratios),
                "from": min(ratios),
                "to": max(ratios),
            }
    return merged


def _failed(runs: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Why an arm lacks a mode under one of its masks."""
    return {mode: reason for run in runs for mode, reason in run.get("failed", {}).items()}


def ratio(times: Times, ours: str, other: str = DENSE, mode: Mode = "cold graph") -> float:
    """How many times as fast ``ours`` is as ``other``.

    Raises:
        RuntimeError: one of them could not run; says why.
    """
    for name in (ours, other):
        if mode not in times[name]:
            raise RuntimeError(f"{name}: {times[name].get('error') or times[name]['failed'][mode]}")
    return times[ours][mode]["ratio"] / times[other][mode]["ratio"]


def why(error: BaseException) -> str:
    """One line of an error."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]


def _in_turns(
    lab: Lab, arms: Mapping[str, Arm], mode: Mode, found: Times
) -> dict[str, tuple[list[float], list[float]]]:
    """For each arm that runs in this mode, milliseconds of the baseline and its own, round by round."""
    clock, baseline, calls = lab.clock(mode), next(iter(arms)), {}
    for name, arm in arms.items():
        try:
            calls[name] = clock.prepared(arm.call)
            clock.time(calls[name])
        except Exception as error:  # what cannot be captured as a graph still runs from Python
            found[name].setdefault("failed", {})[mode] = why(error)
            calls.pop(name, None)
    if baseline not in calls:
        for name in calls:
            found[name].setdefault("failed", {})[mode] = f"{baseline}: {found[baseline]['failed'][mode]}"
        return {}
    order, times = list(calls), {name: [] for name in calls}
    draw = random.Random(0)
    for _ in range(lab.rounds):
        draw.shuffle(order)
        for name in order:
            times[name].append(clock.time(calls[name]))
    return {name: (times[baseline], own) for name, own in times.items()}


def _peak_mb(lab: Lab, arm: Arm) -> float:
    if lab.device != "cuda":
        return 0.0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    arm.call()
    torch.cuda.synchronize()
    return (arm.held + torch.cuda.max_memory_allocated() - before) / 1e6


def ratio_or_reason(times: Times, ours: str, other: str = DENSE, mode: Mode = "cold graph") -> float | str:
    """:func:`ratio`, or why there is none."""
    try:
        return ratio(times, ours, other, mode)
    except RuntimeError as error:
        return str(error)


def least(values: Sequence[float | str]) -> float | str:
    """The least, or the first reason why there is none."""
    return next((value for value in values if isinstance(value, str)), None) or min(values)
