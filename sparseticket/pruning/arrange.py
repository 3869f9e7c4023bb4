"""Which entries of an axis belong together in a bin, so that a pattern keeps much: pairs of bins trade their members.

An axis has entries (rows or columns of matrices), each with a vector of features: its magnitude in every place across
from it. The pattern sees bins of ``size`` neighbouring entries, and what it keeps is convex in what a bin holds:

- blocks: a block lives when the magnitudes of its bin there sum to more than a threshold (that of the last block which
  lives in its matrix), so a bin is worth the sum of relu(sum − threshold) over its features;
- N:M: the sum of the N largest of its M members, feature by feature.

Both are searched alike: bins meet each other as in a round-robin tournament, and a pair makes the exchange of two
members that gains most. For blocks this begins from entries sorted by magnitude and, where bins are large, annealed
re-splits of pairs under a softened threshold: the objective is convex, so a split by its gradient never loses by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

LARGE = 16  # of bins this large the gradient says enough to split them by; it did nothing for blocks of 4×1
SOFT_SWEEPS = 6
ROUNDS = 64  # of exchanges: on a MiniLM FFN at 4×1 they gain 85 % of what the 383 in which all bins meet do
GAIN = 1e-6  # of what a pair is worth: below it is rounding


@dataclass(frozen=True)
class Blocks:
    """A bin's worth is what exceeds ``threshold``, feature by feature; ``spread`` is how much sums differ; both [m]."""

    threshold: Tensor
    spread: Tensor

    def without_one(self, members: Tensor) -> tuple[Tensor, Tensor]:
        """For bins [P, size, m] with each member away: their worth, and above what a newcomer adds to it."""
        rest = members.sum(1, keepdim=True) - members
        return torch.zeros_like(rest), self.threshold - rest

    def worth(self, members: Tensor) -> Tensor:
        """The worth of bins [P, size, m], as [P]."""
        return (members.sum(1) - self.threshold).relu().sum(-1)


@dataclass(frozen=True)
class BestOf:
    """A bin's worth is the sum of its ``best`` largest members, feature by feature."""

    best: int

    def without_one(self, members: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Blocks.without_one`."""
        largest = members.topk(self.best + 1, dim=1).values
        last, next_one = largest[:, self.best - 1, None], largest[:, self.best, None]
        total = largest[:, : self.best].sum(1, keepdim=True)
        is_kept = members >= last
        return torch.where(is_kept, total - members + next_one, total), torch.where(is_kept, next_one, last)

    def worth(self, members: Tensor) -> Tensor:
        """See :meth:`Blocks.worth`."""
        return members.topk(self.best, dim=1).values.sum((1, 2))


def arrange(features: Tensor, size: int, runs: int, measure: Blocks | BestOf) -> Tensor:
    """An order of the entries whose bins are worth much.

    Args:
        features: fp32 [n, m], not negative.
        size: entries of a bin. What is left over at the end of a run stays where it is.
        runs: the entries are this many equal runs, and change places inside theirs only.
        measure: what a bin is worth.

    Returns:
        int64 [n]: place i goes to entry ``order[i]``.
    """
    order = torch.arange(len(features)).reshape(runs, -1)
    bins = order.shape[1] // size
    if bins < 2:
        return order.flatten()
    movable = order[:, : bins * size].clone()
    if isinstance(measure, Blocks):
        by_magnitude = features.sum(1)[movable].argsort(dim=1, descending=True, stable=True)
        movable = movable.gather(1, by_magnitude)
    members = movable.reshape(runs, bins, size)
    if isinstance(measure, Blocks):
        for sweep in range(SOFT_SWEEPS if size >= LARGE else 0):
            softness = measure.spread * 0.5**sweep
            for left, right in _rounds(bins):
                _split(features, members, left, right, measure.threshold, softness)
    for _ in range(max(1, ROUNDS // bins)):
        rounds = islice(_rounds(bins), ROUNDS)
        gained = sum(_swap(features, members, left, right, measure) for left, right in rounds)
        if not gained:
            break
    order[:, : bins * size] = members.flatten(1)
    return order.flatten()


def _rounds(bins: int) -> Iterator[tuple[list[int], list[int]]]:
    """Rounds of disjoint pairs in which every bin meets every other once (the circle method)."""
    places = list(range(bins + bins % 2))  # with an odd number, who meets the last one rests
    for _ in range(len(places) - 1):
        half = len(places) // 2
        pairs = [(a, b) for a, b in zip(places[:half], reversed(places[half:]), strict=True) if max(a, b) < bins]
        yield [min(pair) for pair in pairs], [max(pair) for pair in pairs]
        places = [places[0], places[-1], *places[1:-1]]


def _split(
    features: Tensor, members: Tensor, left: list[int], right: list[int], threshold: Tensor, softness: Tensor
) -> None:
    """Split the members of each pair anew along the gradient of the softened worth, sigmoid((sum − threshold) / T)."""
    both = torch.cat([members[:, left], members[:, right]], 2)
    size, values = members.shape[2], features[both]
    slope = [torch.sigmoid((part.sum(2) - threshold) / softness) for part in values.split(size, 2)]
    preference = (values @ (slope[0] - slope[1]).unsqueeze(-1)).squeeze(-1)
    both = both.gather(2, preference.argsort(dim=2, descending=True, stable=True))
    members[:, left], members[:, right] = both[:, :, :size], both[:, :, size:]


def _swap(features: Tensor, members: Tensor, left: list[int], right: list[int], measure: Blocks | BestOf) -> int:
    """Let each pair exchange the two members that gain most, where any do; returns how many pairs did."""
    runs, _, size = members.shape
    a, b = (members[:, side].reshape(-1, size) for side in (left, right))
    of_a, of_b = features[a], features[b]
    before = measure.worth(of_a) + measure.worth(of_b)
    gain = _after(of_a, of_b, measure) + _after(of_b, of_a, measure).transpose(1, 2) - before[:, None, None]
    best, place = gain.flatten(1).max(1)
    chosen = (best > GAIN * before).nonzero().flatten()
    i, j = place[chosen] // size, place[chosen] % size
    a[chosen, i], b[chosen, j] = b[chosen, j], a[chosen, i]
    members[:, left], members[:, right] = a.reshape(runs, -1, size), b.reshape(runs, -1, size)
    return len(chosen)


def _after(of_bin: Tensor, newcomers: Tensor, measure: Blocks | BestOf) -> Tensor:
    """What bins [P, size, m] are worth when member i makes room for newcomer j, as [P, i, j]."""
    base, above = measure.without_one(of_bin)
    columns = [
        base[:, i].sum(-1, keepdim=True) + (newcomers - above[:, i, None]).relu().sum(-1) for i in range(base.shape[1])
    ]
    return torch.stack(columns, 1)
