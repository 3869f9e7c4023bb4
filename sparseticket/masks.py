"""Masks and their algebra. A mask is a bool tensor shaped like its weight: True is alive, False is pruned.

Matrices and filters are counted, and nothing else: masks of one dimension are those of biases and BatchNorm entries,
which die with a head, a neuron or a channel, and are in no sparsity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparseticket.errors import UserError
from sparseticket.seeds import generator

Masks = dict[str, Tensor]


def pack(mask: Tensor) -> Tensor:
    """Pack a bool mask into ``ceil(numel / 8)`` uint8: row-major, least significant bit first, padding bits 0."""
    return torch.from_numpy(np.packbits(mask.detach().cpu().flatten().numpy(), bitorder="little"))


def unpack(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The bool mask of ``shape`` that :func:`pack` packed.

    Raises:
        ValueError: ``packed`` is not a 1-D uint8 tensor of just the right length, or a padding bit is set.
    """
    count = int(np.prod(shape, dtype=np.int64))
    if packed.dtype != torch.uint8 or packed.ndim != 1 or packed.numel() != (count + 7) // 8:
        raise ValueError(
            f"{tuple(packed.shape)} of {packed.dtype} cannot hold the {count} bits of shape {tuple(shape)}"
        )
    bits = np.unpackbits(packed.cpu().numpy(), bitorder="little")
    if bits[count:].any():
        raise ValueError("a padding bit is set")
    return torch.from_numpy(bits[:count].astype(bool)).reshape(shape)


def ones(weights: Mapping[str, Tensor]) -> Masks:
    """The dense mask m_0 of these weights, on the CPU."""
    return {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights.items()}


def counted(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of matrices and filters."""
    return {name: mask for name, mask in masks.items() if mask.ndim > 1}


def size(masks: Masks) -> int:
    """How many weights the masks cover."""
    return sum(mask.numel() for mask in counted(masks).values())


def alive(masks: Masks) -> int:
    """How many weights are alive (nnz)."""
    return sum(int(mask.count_nonzero()) for mask in counted(masks).values())


def sparsity(masks: Masks) -> float:
    """Share of pruned weights, 0 to 1, over all matrices and filters together."""
    return 1 - alive(masks) / size(masks)


def is_subset(inner: Masks, outer: Masks) -> bool:
    """True where everything alive in ``inner`` is alive in ``outer``: what a pruning must give."""
    _check_same(inner, outer)
    return not any((inner[name] & ~outer[name]).any() for name in inner)


def intersect(a: Masks, b: Masks) -> Masks:
    """Alive in both."""
    _check_same(a, b)
    return {name: a[name] & b[name] for name in a}


def complement(masks: Masks) -> Masks:
    """What was pruned is alive, and the other way round."""
    return {name: ~mask for name, mask in masks.items()}


def flip(masks: Masks, share: float, *, seed: int) -> Masks:
    """Prune ``share`` of the living and revive as many of the dead, drawn evenly: the sparsity stays (CVPR 2021).

    For unstructured masks: it draws single weights.

    Raises:
        UserError: ``share`` is not within 0 to 1, or there are fewer dead weights than would be revived.
    """
    if not 0 <= share <= 1:
        raise UserError(f"the share of a flip must lie between 0 and 1, not {share}")
    flat = torch.cat([mask.flatten() for mask in masks.values()])
    draw = generator(seed, "flip")
    living, dead = flat.nonzero().flatten(), (~flat).nonzero().flatten()
    count = round(share * len(living))
    if count > len(dead):
        raise UserError(f"a flip of {share} would revive {count} weights, and only {len(dead)} are pruned")
    flat[living[torch.randperm(len(living), generator=draw)[:count]]] = False
    flat[dead[torch.randperm(len(dead), generator=draw)[:count]]] = True
    return _split(flat, masks)


def random_like(masks: Masks, *, seed: int) -> Masks:
    """As many alive in all, placed evenly over all tensors together: the random mask of the papers' tables.

    For unstructured masks; ``sparseticket.pruning.Pruner.draw`` draws groups.
    """
    flat = torch.zeros(size(masks), dtype=torch.bool)
    flat[torch.randperm(len(flat), generator=generator(seed, "random-mask"))[: alive(masks)]] = True
    return _split(flat, masks)


@dataclass(frozen=True)
class Overlap:
    """Intersection over union of two masks' living weights, beside what two independent masks would have."""

    iou: float
    chance: float


def overlap(a: Masks, b: Masks) -> Overlap:
    """Overlap of two tickets over all tensors together.

    Chance is that of two masks with a's and b's number of living weights in each tensor, placed independently: with
    densities p and q in a tensor of n weights, n·p·q are alive in both and n·(p + q − p·q) in either.
    """
    _check_same(a, b)
    both = either = chance_both = chance_either = 0.0
    for name, mask in counted(a).items():
        n, in_a, in_b = mask.numel(), int(mask.sum()), int(b[name].sum())
        both += int((mask & b[name]).sum())
        either += int((mask | b[name]).sum())
        chance_both += in_a * in_b / n
        chance_either += in_a + in_b - in_a * in_b / n
    return Overlap(both / either if either else 1.0, chance_both / chance_either if chance_either else 1.0)


def _split(flat: Tensor, like: Masks) -> Masks:
    pieces = flat.split([mask.numel() for mask in like.values()])
    return {name: piece.reshape(mask.shape) for piece, (name, mask) in zip(pieces, like.items(), strict=True)}


def _check_same(a: Masks, b: Masks) -> None:
    if a.keys() != b.keys():
        odd = sorted(a.keys() ^ b.keys())
        raise UserError(f"the two masks do not cover the same tensors: {odd[0]} is in one only ({len(odd)} such)")
    for name in a:
        if a[name].shape != b[name].shape:
            raise UserError(f"{name} is {tuple(a[name].shape)} in one mask and {tuple(b[name].shape)} in the other")


def layer_order(name: str) -> list[tuple[int, str]]:
    """A key that sorts parameters' names as layers follow each other: layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in name.split(".")]
