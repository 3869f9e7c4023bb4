"""The shape of a mask's zeros, as kernels can use it: read off the mask itself."""

from __future__ import annotations

import itertools
import re

import torch
from torch import Tensor

from sparseticket.kernels.blocks import SIDES, BlockLayout

UNSTRUCTURED, SEMI_STRUCTURED = "unstructured", "2:4"


def pattern_of(mask: Tensor) -> str:
    """``block:RxC`` with the largest blocks that are each wholly alive or wholly dead, ``2:4``, or ``unstructured``.

    Args:
        mask: bool ``[N, K]``.
    """
    blocks = itertools.product(SIDES, SIDES) if BlockLayout.from_mask(mask, (16, 16)).whole else ()
    for block in sorted(blocks, key=lambda block: (-block[0] * block[1], block)):
        if block[0] < 2 * mask.shape[0] and block[1] < 2 * mask.shape[1] and BlockLayout.from_mask(mask, block).whole:
            return f"block:{block[0]}x{block[1]}"
    if mask.shape[1] % 4 == 0 and bool((mask.reshape(-1, 4).sum(1) <= 2).all()):
        return SEMI_STRUCTURED
    return UNSTRUCTURED


def block_of(pattern: str) -> tuple[int, int] | None:
    """The block of ``block:RxC``; None of any other pattern."""
    match = re.fullmatch(r"block:(\d+)x(\d+)", pattern)
    return (int(match[1]), int(match[2])) if match else None


def density_of(mask: Tensor, pattern: str) -> float:
    """Share that a kernel for this pattern works on, 0 to 1: of the blocks, or of the entries."""
    block = block_of(pattern)
    return BlockLayout.from_mask(mask, block).density if block else int(torch.count_nonzero(mask)) / mask.numel()
