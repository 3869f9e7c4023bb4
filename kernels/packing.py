"""Which packed weight runs a pattern for inference: one entry a pattern."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from sparseticket.kernels.blocks import BlockLayout
from sparseticket.kernels.bsr_linear import candidate_tiles
from sparseticket.kernels.bsr_packed import PackedBlocks
from sparseticket.kernels.pattern import block_of


class PackedWeight(Protocol):
    """A weight as a kernel reads it: blocks, a bitmap with values, or 2:4."""

    def tensors(self) -> dict[str, Tensor]:
        """What it is made of, by name."""

    def with_tensors(self, tensors: dict[str, Tensor]) -> PackedWeight:
        """The same of other tensors."""

    def linear(self, x: Tensor, bias: Tensor | None, activation: str, tiles: tuple[int, ...]) -> Tensor:
        """``act(x Wᵀ + b)``; without tiles, the kernel's own choice."""

    def to_dense(self) -> Tensor:
        """The weight ``[N, K]``, bit-equal."""


def kernel_for(pattern: str) -> str:
    """The name of the kernel that runs a layer of this pattern."""
    return "bsr_packed" if block_of(pattern) else {}[pattern]


def pack(weight: Tensor, mask: Tensor, pattern: str) -> PackedWeight:
    """The weight ``[N, K]`` under its mask, as the kernel of its pattern reads it."""
    block = block_of(pattern)
    return PackedBlocks.from_dense(weight, BlockLayout.from_mask(mask, block))


def packed_candidates(pattern: str, dtype: torch.dtype, *, thorough: bool) -> list[tuple[int, ...]]:
    """Tiles worth measuring; the empty tuple is the kernel's own choice."""
    block = block_of(pattern)
    if not thorough:
        return [()]
    return [(), *(tuple(tiles.as_ints()) for tiles in candidate_tiles(block, "forward", dtype))]
