"""The shape of a mask's zeros, as kernels can use it: read off the mask itself."""

from __future__ import annotations

import itertools
import re

import torch
from torch import Tensor

from sparseticket.kernels.blocks import SIDES, BlockLayout
from sparseticket.kernels.semi_structured import SIDE_MULTIPLE

UNSTRUCTURED, SEMI_STRUCTURED = "unstructured", "2:4"


def pattern_of(mask: Tensor) -> str:
    """``block:RxC`` with the largest blocks that are each wholly alive or wholly dead, ``2:4``, or ``unstructured``.

    Args:
        mask: bool ``[N, K]``; or ``[O, I, kh, kw]`` of a convolution, whose blocks lie at each tap by itself.
    """
    n, k = mask.shape[:2]
    largest_first = sorted(itertools.product(SIDES, SIDES), key=lambda block: (-block[0] * block[1], block))
    for block in largest_first if _is_whole(mask, (16, 16)) else ():  # what is whole in larger ones is in these
        if block[0] < 2 * n and block[1] < 2 * k and _is_whole(mask, block):
            return f"block:{block[0]}x{block[1]}"
    fits = mask.ndim == 2 and n % SIDE_MULTIPLE == 0 == k % SIDE_MULTIPLE
    if fits and bool((mask.reshape(-1, 4).sum(1) <= 2).all()):
        return SEMI_STRUCTURED
    return UNSTRUCTURED


def block_of(pattern: str) -> tuple[int, int] | None:
    """The block of ``block:RxC``; None of any other pattern."""
    match = re.fullmatch(r"block:(\d+)x(\d+)", pattern)
    return (int(match[1]), int(match[2])) if match else None


def density_of(mask: Tensor, pattern: str) -> float:
    """Share that a kernel for this pattern works on, 0 to 1: of the blocks, or of the entries."""
    block = block_of(pattern)
    if block is None:
        return int(torch.count_nonzero(mask)) / mask.numel()
    densities = [BlockLayout.from_mask(matrix, block).density for matrix in _matrices(mask)]
    return sum(densities) / len(densities)


def _is_whole(mask: Tensor, block: tuple[int, int]) -> bool:
    return all(BlockLayout.from_mask(matrix, block).whole for matrix in _matrices(mask))


def _matrices(mask: Tensor) -> list[Tensor]:
    """The mask itself, or that of each tap of a convolution."""
    return [mask] if mask.ndim == 2 else list(mask.flatten(2).movedim(2, 0))
