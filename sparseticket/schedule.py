"""Which sparsity each round trains at."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

from sparseticket.errors import UserError

SNAP = 0.0005  # a target this near to a step of the schedule is that step (67.23 % for 67.232 %),
SNAP_SHARE = 0.01  # and by no more than this share of what lives, or dies, at the target
MOST_ROUNDS = 1000
SYNTAX = (
    "linear:0.1 (10 % of the original a round), geometric:0.2 (20 % of the remaining a round), steps:0.3,0.5,0.7 (each "
    "round's own), one-round or one-shot"
)


def check_sparsity(sparsity: float) -> float:
    """The sparsity, when it is a share that a ticket can have: above 0 and below 1."""
    if not 0 < sparsity < 1:  # NaN fails too
        raise UserError(f"sparsity is the share of zeros, above 0 and below 1 (0.7 is 70 %), not {sparsity}.")
    return sparsity


def round_sparsities(schedule: str, target: float, *, prune_first: bool = False) -> list[float]:
    """The sparsity of each training, in order: ``[0.0, 0.1, …, target]``, or without the 0 where pruning comes first.

    The last pruning is cut to the target; a step of the schedule that is as near as ``SNAP`` is taken as it is.
    One-shot always prunes first.

    Raises:
        UserError: an unknown schedule, a step outside 0 to 1, or a target that is no sparsity.
    """
    check_sparsity(target)
    if schedule == "one-shot":
        return [target]
    if schedule == "one-round":
        return [target] if prune_first else [0.0, target]
    if schedule.startswith("steps:"):
        sparsities = [0.0, *_steps(schedule, target)]
        return sparsities[1:] if prune_first else sparsities
    kind, step = kind_and_step(schedule)
    near = min(SNAP, SNAP_SHARE * min(target, 1 - target))
    sparsities = [0.0]
    while sparsities[-1] < target:
        pruned = len(sparsities)
        following = round(step * pruned if kind == "linear" else 1 - (1 - step) ** pruned, 12)
        if following < 1 and abs(following - target) <= near:
            sparsities.append(following)
            break
        if pruned > MOST_ROUNDS:
            raise UserError(f"{schedule} takes more than {MOST_ROUNDS} rounds to {target}: take a larger step.")
        sparsities.append(min(following, target))
    return sparsities[1:] if prune_first else sparsities


def kind_and_step(schedule: str) -> tuple[str, float]:
    """``("linear", 0.1)``, for those that have a step (``linear:0.1``, ``linear:1/4``, ``geometric:0.2``).

    Raises:
        UserError: another schedule, or a step outside 0 to 1.
    """
    kind, _, text = schedule.partition(":")
    try:
        step = float(Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError):
        step = -1.0
    if kind not in ("linear", "geometric") or not 0 < step < 1:
        raise UserError(f"there is no schedule {schedule!r}. A schedule is {SYNTAX}; its step is above 0 and below 1.")
    return kind, step


def _steps(schedule: str, target: float) -> list[float]:
    try:
        steps = [check_sparsity(float(part)) for part in schedule.partition(":")[2].split(",")]
    except ValueError:
        steps = []
    if not steps or any(one >= following for one, following in pairwise(steps)):
        raise UserError(
            f"{schedule!r} is no schedule: steps are growing shares with commas between, steps:0.3,0.5,0.7."
        )
    if target > steps[-1]:
        raise UserError(f"{schedule} ends at {steps[-1]}, below the sparsity of {target}: add a step to the schedule.")
    return [*(step for step in steps if step < target), target]
