"""The groups that a pattern's zeros come in, over all prunable matrices of one network.

Groups are numbered 0 … count − 1, and everything is a vector over them (BERT-base has 21 million of 4×1): the sum of
some value over each group, which of them are alive, and the masks that follow from those that are kept. ``kept`` is a
bool vector, True where a group lives; ``sizes`` are the weights of each group while all are alive, int64 [count].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseticket.masks import Masks
from sparseticket.models.families import Family
from sparseticket.pattern import Block

Shapes = Mapping[str, tuple[int, ...]]
STATISTICS = (".running_mean", ".running_var")  # not masked: with weight and bias 0, BatchNorm gives exactly 0


class BlockGroups:
    """Blocks of rows × columns, at each tap of a convolution by itself.

    Where they do not divide a matrix, the blocks at its edges are smaller; a matrix smaller than one block is one.
    """

    def __init__(self, block: Block, shapes: Shapes) -> None:
        self.block, self.shapes = block, dict(shapes)
        self.sizes = torch.cat([self._sizes_in(shape).flatten() for shape in self.shapes.values()])
        self.count = len(self.sizes)

    def layers(self) -> list[slice]:
        """Which groups each layer has: the blocks of a matrix."""
        return _slices([prod(self._grid(shape)) for shape in self.shapes.values()])

    def sums(self, values: Mapping[str, Tensor]) -> Tensor:
        """Sum of ``values`` (tensors like the matrices) over each group's weights, [count]."""
        return torch.cat([self._sum(values[name]).flatten() for name in self.shapes])

    def masks(self, kept: Tensor) -> Masks:
        """The masks in which just the ``kept`` groups live."""
        return {
            name: self._spread(kept[layer].reshape(self._grid(shape)), shape)
            for (name, shape), layer in zip(self.shapes.items(), self.layers(), strict=True)
        }

    def best_of_each_layer(self, scores: Tensor) -> Tensor:
        """Those of the highest score that must survive: one in all, for a layer may lose all its blocks."""
        return scores.argmax()[None]

    def alive_after(self, kept: Tensor, order: Tensor) -> Tensor:
        """Weights alive after the first 0, 1, … len(order) of the groups in ``order`` die, int64 [len(order) + 1]."""
        return self.sizes[kept].sum() - F.pad(self.sizes[order].cumsum(0), (1, 0))

    def _grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        rows, columns, *taps = shape
        return (-(-rows // self.block.rows), -(-columns // self.block.columns), *taps)

    def _sizes_in(self, shape: tuple[int, ...]) -> Tensor:
        grid = self._grid(shape)
        rows, columns = (
            torch.full((blocks,), side).clamp(max=length - side * torch.arange(blocks))
            for blocks, side, length in zip(grid, (self.block.rows, self.block.columns), shape, strict=False)
        )
        return torch.outer(rows, columns).reshape(grid[:2] + (1,) * (len(shape) - 2)).expand(grid)

    def _sum(self, value: Tensor) -> Tensor:
        down, across = self._grid(tuple(value.shape))[:2]
        missing_rows = down * self.block.rows - value.shape[0]
        missing_columns = across * self.block.columns - value.shape[1]
        padded = F.pad(value, (0, 0) * (value.ndim - 2) + (0, missing_columns, 0, missing_rows))
        return padded.unflatten(1, (across, -1)).unflatten(0, (down, -1)).sum((1, 3))

    def _spread(self, grid: Tensor, shape: tuple[int, ...]) -> Tensor:
        tall = grid.repeat_interleave(self.block.rows, 0)[: shape[0]]
        return tall.repeat_interleave(self.block.columns, 1)[:, : shape[1]].contiguous()


@dataclass(frozen=True)
class _End:
    """A matrix in which a family owns rows (dim 0) or columns (dim 1), ``size`` an entry."""

    family: int
    dim: int
    size: int


class WholeGroups:
    """Whole entries of families: heads, neurons, channels.

    A Bottleneck's middle filter has rows of one family and columns of another: a weight lives where both do.
    """

    def __init__(self, families: Sequence[Family], shapes: Shapes) -> None:
        self.shapes = dict(shapes)
        counts = [family.count for family in families]
        self.count = sum(counts)
        self._family_of = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
        self._counts = counts
        self._ends: dict[str, list[_End]] = {name: [] for name in self.shapes}
        self._vectors: dict[str, tuple[int, int]] = {}  # biases and BatchNorm entries: family, and entries of each
        for i, family in enumerate(families):
            for end in family.slices:
                if end.name in self._ends:
                    self._ends[end.name].append(_End(i, end.dim, end.size))
                elif not end.name.endswith(STATISTICS):
                    self._vectors[end.name] = (i, end.size)
        per_entry = [0] * len(counts)
        for name, ends in self._ends.items():
            for end in ends:
                per_entry[end.family] += prod(self.shapes[name]) // self.shapes[name][end.dim] * end.size
        self.sizes = torch.tensor(per_entry)[self._family_of]

    def layers(self) -> list[slice]:
        """Which groups each layer has: all heads, neurons or channels of one place."""
        return _slices(self._counts)

    def sums(self, values: Mapping[str, Tensor]) -> Tensor:
        """See :meth:`BlockGroups.sums`; float64."""
        total = [torch.zeros(count, dtype=torch.float64) for count in self._counts]
        for name, ends in self._ends.items():
            for end in ends:
                over = tuple(dim for dim in range(values[name].ndim) if dim != end.dim)
                total[end.family] += values[name].sum(over, dtype=torch.float64).unflatten(0, (-1, end.size)).sum(1)
        return torch.cat(total)

    def masks(self, kept: Tensor) -> Masks:
        """The masks in which just the ``kept`` groups live, with those of the biases and BatchNorms that die along."""
        of_family = kept.split(self._counts)
        masks = {}
        for name, shape in self.shapes.items():
            masks[name] = torch.ones(shape, dtype=torch.bool)
            for end in self._ends[name]:
                alive = of_family[end.family].repeat_interleave(end.size)
                masks[name] &= alive.reshape([-1 if dim == end.dim else 1 for dim in range(len(shape))])
        vectors = {name: of_family[i].repeat_interleave(size) for name, (i, size) in self._vectors.items()}
        return masks | vectors

    def best_of_each_layer(self, scores: Tensor) -> Tensor:
        """Those of the highest score that must survive: one of every family."""
        starts = torch.tensor([0, *self._counts[:-1]]).cumsum(0)
        return starts + torch.stack([of_family.argmax() for of_family in scores.split(self._counts)])

    def alive_after(self, kept: Tensor, order: Tensor) -> Tensor:
        """See :meth:`BlockGroups.alive_after`."""
        died, alive = self._family_of[order], torch.zeros(len(order) + 1, dtype=torch.int64)
        living = [int(of_family.count_nonzero()) for of_family in kept.split(self._counts)]
        for name, shape in self.shapes.items():
            sides = [torch.tensor(side) for side in shape[:2]]
            for end in self._ends[name]:
                dead = F.pad((died == end.family).cumsum(0), (1, 0))
                sides[end.dim] = (living[end.family] - dead) * end.size
            alive += sides[0] * sides[1] * prod(shape[2:])
        return alive


Groups = BlockGroups | WholeGroups


def _slices(counts: Sequence[int]) -> list[slice]:
    return [slice(end - count, end) for end, count in zip(accumulate(counts), counts, strict=True)]
