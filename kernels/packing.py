"""Which packed weight runs a pattern for inference: one entry a pattern."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sparseticket.kernels.bitmap import MOST_ROWS, BitmapWeight, candidate_launches
from sparseticket.kernels.blocks import BlockLayout
from sparseticket.kernels.bsr import candidate_tiles
from sparseticket.kernels.bsr_packed import PackedBlocks
from sparseticket.kernels.pattern import SEMI_STRUCTURED, block_of
from sparseticket.kernels.plan import ANY
from sparseticket.kernels.semi_structured import SemiStructuredWeight


class PackedWeight(Protocol):
    """A weight as a kernel reads it: blocks, fours, or 2:4."""

    @property
    def dtype(self) -> torch.dtype:
        """Of its values, and so of what it multiplies."""

    def tensors(self) -> dict[str, Tensor]:
        """What it is made of, by name."""

    def with_tensors(self, tensors: dict[str, Tensor]) -> PackedWeight:
        """The same of other tensors."""

    def linear(self, x: Tensor, bias: Tensor | None, activation: str, tiles: tuple[int, ...]) -> Tensor:
        """``act(x Wᵀ + b)``; without tiles, the kernel's own choice."""

    def to_dense(self) -> Tensor:
        """The weight ``[N, K]``, bit-equal."""


@dataclass(frozen=True)
class Packing:
    """How one pattern runs in inference.

    Attributes:
        kernel: its name in the dispatcher's table.
        pack: the packed weight, from the dense one and its mask.
        tiles: what is worth measuring beside the kernel's own choice.
        most_rows: with more, the layer runs dense.
    """

    kernel: str
    pack: Callable[[Tensor, Tensor], PackedWeight]
    tiles: list[tuple[int, ...]]
    most_rows: int = ANY


def packing_for(pattern: str, shape: tuple[int, int], dtype: torch.dtype, *, activation: str = "none") -> Packing:
    """What runs a weight ``shape`` of this pattern, with this activation behind it."""
    if block := block_of(pattern):

        def pack_blocks(weight: Tensor, mask: Tensor) -> PackedBlocks:
            return PackedBlocks.from_dense(weight, BlockLayout.from_mask(mask, block))

        tiles = candidate_tiles(block, "forward", dtype, activation=activation)
        return Packing("bsr_packed", pack_blocks, [tuple(one.as_ints()) for one in tiles])
    if pattern == SEMI_STRUCTURED:
        return Packing("semi_structured", SemiStructuredWeight.from_dense, [])
    launches = [tuple(launch) for launch in candidate_launches(*shape, dtype)]
    return Packing("bitmap", BitmapWeight.from_dense, launches, MOST_ROWS)
