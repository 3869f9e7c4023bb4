"""A pattern in one network: which masks it allows there, and how they are selected."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparseticket import masks as mask_algebra
from sparseticket.errors import UserError
from sparseticket.masks import Masks
from sparseticket.models.families import Family, families
from sparseticket.pattern import Block, NOfM, Pattern, Unstructured, Whole, parse
from sparseticket.pruning.groups import Groups, Shapes, groups_of
from sparseticket.pruning.select import global_groups, global_unstructured, mean_over_groups, n_of_m, weights_to_keep
from sparseticket.seeds import generator


@dataclass(frozen=True)
class Pruner:
    """A pattern and, where it is made of blocks or whole heads, neurons or channels, its groups in one network."""

    pattern: Pattern
    shapes: Shapes
    groups: Groups | None = None

    @classmethod
    def of(cls, pattern: str, backbone: nn.Module, weights: Mapping[str, Tensor]) -> Pruner:
        """For ``weights``: all the matrices and filters that may be pruned, by name inside ``backbone``.

        Raises:
            UserError: the network cannot have the pattern; says why.
        """
        parsed = parse(pattern)
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        if isinstance(parsed, NOfM):
            _check_divides(parsed, shapes)
        if isinstance(parsed, Block):
            _check_smaller(parsed, shapes)
            return cls(parsed, shapes, groups_of(parsed, shapes))
        if isinstance(parsed, Whole):
            found = _prunable_families(parsed, backbone, shapes)
            if absent := set(parsed.kinds) - {family.kind for family in found}:
                what = type(backbone).__name__
                raise UserError(f"pattern {parsed}: this model ({what}) has no {min(absent)} that could be pruned.")
            return cls(parsed, shapes, groups_of(parsed, shapes, found))
        return cls(parsed, shapes)

    def dense(self) -> Masks:
        """m_0: all alive, with a mask for every bias and BatchNorm entry that can die with a group."""
        if self.groups is not None:
            return self.groups.masks(torch.ones(self.groups.count, dtype=torch.bool))
        return {name: torch.ones(shape, dtype=torch.bool) for name, shape in self.shapes.items()}

    def select(self, scores: Mapping[str, Tensor], masks: Masks, sparsity: float) -> Masks:
        """Keep the best of what is alive in ``masks``, so that ``sparsity`` of all weights are pruned.

        Args:
            scores: like the weights, at least 0: the higher, the longer a weight lives.
            masks: what is alive; made by this method or by :meth:`dense`.
            sparsity: a fraction; exact to within one weight or group.
        """
        if self.groups is not None:
            mean = mean_over_groups(self.groups, scores, masks)
            return self.groups.masks(global_groups(self.groups, mean, self.kept(masks), sparsity))
        if isinstance(self.pattern, NOfM):
            return n_of_m(scores, masks, self.pattern.alive_at(sparsity), self.pattern.m)
        return global_unstructured(scores, masks, sparsity)

    def check_reachable(self, sparsity: float) -> None:
        """Raise :class:`UserError` where ``sparsity`` is more than the pattern surely has, or leaves nothing alive."""
        if self.groups is not None:
            weights_to_keep(self.groups, sparsity, surely=True)
            return
        total = sum(math.prod(shape) for shape in self.shapes.values())
        if round((1 - sparsity) * total) < 1:
            raise UserError(f"a sparsity of {sparsity} leaves none of {total:,} weights: choose a lower --sparsity.")

    def draw(self, masks: Masks, *, seed: int) -> Masks:
        """Masks of this pattern as sparse as ``masks``, to within a group: groups drawn evenly over all layers."""
        if isinstance(self.pattern, Unstructured):
            return mask_algebra.random_like(masks, seed=seed)
        draw, sparsity = generator(seed, "random-mask"), mask_algebra.sparsity(masks)
        if self.groups is not None:
            everything = torch.ones(self.groups.count, dtype=torch.bool)
            scores = torch.rand(self.groups.count, generator=draw)
            return self.groups.masks(global_groups(self.groups, scores, everything, sparsity))
        scores = {name: torch.rand(shape, generator=draw) for name, shape in self.shapes.items()}
        return self.select(scores, self.dense(), sparsity)

    def draw_per_layer(self, masks: Masks, *, seed: int) -> Masks:
        """As :meth:`draw`, with as many alive in each layer as in ``masks``."""
        if isinstance(self.pattern, NOfM):  # N of every M are alive in each layer anyway
            return self.draw(masks, seed=seed)
        draw = generator(seed, "random-mask-per-layer")
        if self.groups is None:
            return {name: _shuffled(mask.flatten(), draw).reshape(mask.shape) for name, mask in masks.items()}
        kept = self.kept(masks)
        for layer in self.layers():
            for size in self.groups.sizes[layer].unique():  # blocks at the edges are smaller
                alike = layer.start + (self.groups.sizes[layer] == size).nonzero().flatten()
                kept[alike] = _shuffled(kept[alike], draw)
        return self.groups.masks(kept)

    def layers(self) -> list[slice]:
        """Which groups each layer has: a matrix of blocks; all heads, neurons or channels of one place."""
        assert self.groups is not None
        if isinstance(self.pattern, Block):
            counts = [groups_of(self.pattern, {name: shape}).count for name, shape in self.shapes.items()]
        else:
            counts = [family.count for family in self.groups.families]
        ends = torch.tensor(counts).cumsum(0).tolist()
        return [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]

    def kept(self, masks: Masks) -> Tensor:
        """Which groups have a living weight in ``masks``, bool [count]; only where the pattern is made of groups."""
        assert self.groups is not None
        return self.groups.sums(masks) > 0

    def check(self, masks: Masks) -> None:
        """Raise :class:`UserError` that names the first tensor whose mask is not of this pattern in this network.

        That a ticket's N:M masks are N:M was checked when it was read.
        """
        if self.groups is None:
            return
        pure = self.groups.masks(self.kept(masks))
        for name in sorted(pure.keys() | masks.keys()):
            if name not in pure or name not in masks or not torch.equal(pure[name], masks[name]):
                raise UserError(
                    f"these masks are not of the pattern {self.pattern} in this network: {name} is not made of whole "
                    "groups. Use the ticket with the model that it was made for."
                )


def _shuffled(flat: Tensor, draw: torch.Generator) -> Tensor:
    return flat[torch.randperm(len(flat), generator=draw)]


def _prunable_families(pattern: Whole, backbone: nn.Module, shapes: Shapes) -> list[Family]:
    """Those of which every matrix may be pruned: of an imported ticket some may not be."""
    matrices = {name for name, tensor in backbone.state_dict().items() if tensor.ndim > 1}
    return [
        family
        for kind in pattern.kinds
        for family in families(backbone, kind)
        if all(end.name in shapes for end in family.slices if end.name in matrices)
    ]


def _check_divides(pattern: NOfM, shapes: Shapes) -> None:
    for name, shape in shapes.items():
        if shape[1] % pattern.m:
            raise UserError(
                f"pattern {pattern} needs input dimensions that are multiples of {pattern.m}: {name} has {shape[1]}."
            )


def _check_smaller(pattern: Block, shapes: Shapes) -> None:
    if all(shape[0] <= pattern.rows and shape[1] <= pattern.columns for shape in shapes.values()):
        largest = max(shapes.values(), key=lambda shape: shape[0] * shape[1])
        raise UserError(
            f"pattern {pattern} is larger than every layer of this model ({largest[0]} x {largest[1]} and less), so "
            "that only whole layers could go: choose smaller blocks."
        )
