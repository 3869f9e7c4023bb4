"""Regrouping: permutations under which a pattern keeps more of a ticket's magnitude (ICML 2022, section 3.3).

"Coarsening the Granularity: Towards Structurally Sparse Lottery Tickets" (Chen et al., arXiv 2202.04736) permutes each
layer by itself with a hypergraph partitioner, which then has to gather activations while the network runs. Here only
axes are permuted that the network absorbs (:mod:`sparseticket.permute`), by :mod:`sparseticket.pruning.arrange`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseticket.models.families import Slice
from sparseticket.pattern import Block, NOfM
from sparseticket.permute import Axis
from sparseticket.pruning.arrange import BestOf, Blocks, arrange
from sparseticket.pruning.groups import BlockGroups

# the axes of a matrix depend on each other: a second pass gave MiniLM 0.03 % of the magnitude, random weights of
# BERT-base's shape in blocks of 64×64 0.6 %; a third pass MiniLM 0.01 %
PASSES = 2
FEATURES = 512  # an evenly spaced sample of an axis' places is enough to compare orders by; all count in what is kept
OnAxis = Callable[[int, int, float], None]


@dataclass(frozen=True)
class _Move:
    """One search: axes that are reordered together, in units of ``unit`` neighbouring entries that stay together."""

    axes: tuple[str, ...]
    bin: int
    unit: int = 1
    runs: int = 1


class Regrouping:
    """Magnitudes of a ticket's living weights, reordered step by step; a step that keeps no more is taken back."""

    def __init__(
        self,
        magnitudes: Mapping[str, Tensor],
        axes: Mapping[str, Axis],
        pattern: Block | NOfM,
        living: Mapping[str, int] | None = None,
    ) -> None:
        """``living`` is how many blocks of each matrix will live, by its name (of N:M it is known)."""
        self.pattern, self.living = pattern, dict(living or {})
        self.magnitudes = dict(magnitudes)
        self.total = sum(float(magnitude.sum()) for magnitude in magnitudes.values())
        self.axes = {name: axis for name, axis in axes.items() if any(end.name in magnitudes for end in axis.ends)}
        self.permutations = {name: torch.arange(axis.count) for name, axis in self.axes.items()}
        self._worth = {name: self._worth_in(magnitude) for name, magnitude in magnitudes.items()}
        self.kept = self._kept(self._worth)

    def run(self, on_axis: OnAxis = lambda done, total, kept: None) -> dict[str, Tensor]:
        """Search every axis twice; returns the permutations that change something, int32.

        ``on_axis`` is told how many axes are done, of how many, and the share of the magnitude that is kept by then.
        """
        names = list(self.axes) * PASSES
        for done, name in enumerate(names, start=1):
            for move in self._moves(name):
                self._try(move)
            on_axis(done, len(names), self.kept)
        return {
            name: permutation.to(torch.int32)
            for name, permutation in self.permutations.items()
            if not torch.equal(permutation, torch.arange(len(permutation)))
        }

    def _moves(self, name: str) -> Iterator[_Move]:
        axis = self.axes[name]
        sizes = sorted({self._bins(end)[0] for end in axis.ends if end.name in self.magnitudes} - {1}, reverse=True)
        if axis.heads is None:
            runs = 1  # of two sizes, the smaller rearranges inside the bins of the larger
            for size in sizes:
                yield _Move((name,), size, runs=runs)
                runs = axis.count // size if axis.count % size == 0 else axis.count
            return
        head = axis.count // axis.heads
        for size in sizes:
            if size > head and size % head == 0 and axis.partner in self.axes:
                yield _Move((name, axis.partner), size // head, unit=head)
            elif head % size == 0:
                yield _Move((name,), size, runs=axis.heads)

    def _try(self, move: _Move) -> None:
        ends = [end for name in move.axes for end in self.axes[name].ends if end.name in self.magnitudes]
        seen = [end for end in ends if self._bins(end)[0] == move.bin * move.unit]
        of_end = [self._features(end, move.unit) for end in seen]
        features = torch.cat(of_end, 1)
        sample = slice(None, None, -(-features.shape[1] // FEATURES))
        measure = self._measure([(end.name, found.shape[1]) for end, found in zip(seen, of_end, strict=True)], sample)
        order = arrange(features[:, sample].contiguous(), move.bin, move.runs, measure)
        order = (order[:, None] * move.unit + torch.arange(move.unit)).flatten()
        changed = {}
        for end in ends:
            changed[end.name] = changed.get(end.name, self.magnitudes[end.name]).index_select(end.dim, order)
        worth = self._worth | {name: self._worth_in(magnitude) for name, magnitude in changed.items()}
        kept = self._kept(worth)
        if kept > self.kept:
            self.magnitudes |= changed
            self._worth, self.kept = worth, kept
            for name in move.axes:
                self.permutations[name] = self.permutations[name][order]

    def _bins(self, end: Slice) -> tuple[int, int]:
        """The size of the pattern's bins along an end's own dimension, and across it."""
        rows, columns = (1, self.pattern.m) if isinstance(self.pattern, NOfM) else astuple(self.pattern)
        return (rows, columns) if end.dim == 0 else (columns, rows)

    def _features(self, end: Slice, unit: int) -> Tensor:
        """Magnitudes by entry (or unit of entries) and place across: sums over the pattern's bins there, a tap each."""
        magnitude = self.magnitudes[end.name].movedim(end.dim, 0)
        entries = magnitude.reshape(*magnitude.shape[:2], -1)
        across = self._bins(end)[1]
        padded = F.pad(entries, (0, 0, 0, -entries.shape[1] % across))
        return padded.unflatten(1, (-1, across)).sum(2).flatten(1).unflatten(0, (-1, unit)).sum(1)

    def _measure(self, features: list[tuple[str, int]], sample: slice) -> Blocks | BestOf:
        """What bins are worth, for the sampled ones of so many features from each matrix."""
        if isinstance(self.pattern, NOfM):
            return BestOf(self.pattern.n)
        found = [
            (self._threshold(name), float(self._worth[name].std(correction=0)) or 1.0, count)
            for name, count in features
        ]
        threshold, spread = (
            torch.cat([torch.full((entry[2],), entry[i]) for entry in found])[sample].contiguous() for i in (0, 1)
        )
        return Blocks(threshold, spread)

    def _threshold(self, name: str) -> float:
        living = self.living[name]
        return float(self._worth[name].topk(living).values[-1]) if living else torch.inf

    def _worth_in(self, magnitude: Tensor) -> Tensor:
        """Each block's magnitude in one matrix; of N:M what the pattern keeps of it."""
        if isinstance(self.pattern, NOfM):
            return magnitude.movedim(1, -1).unflatten(-1, (-1, self.pattern.m)).topk(self.pattern.n).values.sum()[None]
        return BlockGroups(self.pattern, {"": tuple(magnitude.shape)}).sums({"": magnitude})

    def _kept(self, worth: Mapping[str, Tensor]) -> float:
        """The share of the magnitude that the pattern keeps, 0 to 1."""
        if not self.total:
            return 0.0
        best = (
            of_one if isinstance(self.pattern, NOfM) else of_one.topk(self.living[name]).values
            for name, of_one in worth.items()
        )
        return sum(float(of_one.double().sum()) for of_one in best) / self.total
