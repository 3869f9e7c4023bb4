"""Are these masks of that pattern, as far as masks alone can say? (What a head is, only the network knows.)"""

from __future__ import annotations

import torch
from torch import Tensor

from sparseticket.masks import Masks, counted
from sparseticket.pattern import Block, NOfM, Pattern, Whole
from sparseticket.pruning.groups import BlockGroups


def check_masks(pattern: Pattern, masks: Masks) -> None:
    """Raise :class:`ValueError` that names the first tensor whose mask is not of ``pattern``.

    Heads, neurons and channels: a matrix is alive where its row and its column are, and a bias where its row is.
    :meth:`sparseticket.pruning.Pruner.check` says the rest, given the network.
    """
    matrices = counted(masks)
    vectors = [name for name in masks if name not in matrices]
    if vectors and not isinstance(pattern, Whole):
        raise ValueError(f"it masks {vectors[0]}, which no {pattern} pattern prunes")
    if isinstance(pattern, NOfM):
        _check_n_of_m(pattern, matrices)
    if isinstance(pattern, Block):
        groups = BlockGroups(pattern, {name: tuple(mask.shape) for name, mask in matrices.items()})
        _check_equal(pattern, groups.masks(groups.sums(matrices) > 0), matrices)
    if isinstance(pattern, Whole):
        _check_equal(pattern, {name: _rows(mask) & _columns(mask) for name, mask in matrices.items()}, matrices)
        biases = {name: matrices.get(f"{name.removesuffix('.bias')}.weight") for name in vectors}
        rows = {name: _rows(weight).flatten() for name, weight in biases.items() if weight is not None}
        _check_equal(pattern, rows, masks)


def _check_n_of_m(pattern: NOfM, matrices: Masks) -> None:
    found: set[int] = set()
    for name, mask in matrices.items():
        if mask.shape[1] % pattern.m:
            raise ValueError(f"{name} of shape {tuple(mask.shape)} has no {pattern} pattern")
        found |= set(mask.unflatten(1, (-1, pattern.m)).sum(2).unique().tolist())
        if len(found) > 1 or not min(found) >= pattern.n:
            raise ValueError(f"the mask of {name} is not {pattern}, nor a round on the way to it")


def _rows(mask: Tensor) -> Tensor:
    return mask.flatten(1).any(1).reshape(-1, *(1,) * (mask.ndim - 1))


def _columns(mask: Tensor) -> Tensor:
    return mask.transpose(0, 1).flatten(1).any(1).reshape(1, -1, *(1,) * (mask.ndim - 2))


def _check_equal(pattern: Pattern, pure: Masks, masks: Masks) -> None:
    for name, mask in pure.items():
        if mask.shape[:1] != masks[name].shape[:1] or not torch.equal(mask.expand_as(masks[name]), masks[name]):
            raise ValueError(f"the mask of {name} is not made of whole groups of {pattern}")
