"""Block-sparse linear for inference: the live blocks of a weight, packed; the dense weight is not needed any more."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseticket.kernels.activation import activate_reference, check_activation
from sparseticket.kernels.blocks import ARRAYS, BlockLayout
from sparseticket.kernels.bsr import launch_product
from sparseticket.kernels.launch import as_autocast_would, runs_kernel, without_autocast
from sparseticket.kernels.operands import check_linear
from sparseticket.kernels.operators import operator


@dataclass(frozen=True)
class PackedBlocks:
    """A weight as ``values [nnzb, BN, BK]`` in the order of ``layout.col``, contiguous; 0 beyond the weight's edges."""

    values: Tensor
    layout: BlockLayout

    @classmethod
    def from_dense(cls, weight: Tensor, layout: BlockLayout) -> PackedBlocks:
        """Pack the live blocks of ``weight [N, K]``; what it holds outside them is left out."""
        n, k = layout.shape
        if weight.shape != (n, k):
            raise ValueError(f"the layout is of a weight of {(n, k)}, and this weight is {tuple(weight.shape)}")
        block_n, block_k = layout.block
        padded = F.pad(weight.detach(), (0, -k % block_k, 0, -n % block_n))
        blocks = padded.reshape(-(-n // block_n), block_n, -1, block_k).transpose(1, 2)
        return cls(blocks[layout.row.long(), layout.col[: layout.nnzb].long()].contiguous(), layout)

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return self.values.dtype

    def tensors(self) -> dict[str, Tensor]:
        """What it is made of, by name; :meth:`with_tensors` puts it together again."""
        return {"values": self.values} | {name: getattr(self.layout, name) for name in ARRAYS}

    def with_tensors(self, tensors: dict[str, Tensor]) -> PackedBlocks:
        """The same of these tensors, which may have moved to another device."""
        arrays = {name: tensors[name] for name in ARRAYS}
        layout = BlockLayout(self.layout.shape, self.layout.block, whole=self.layout.whole, **arrays)
        return PackedBlocks(tensors["values"], layout)

    def linear(self, x: Tensor, bias: Tensor | None, activation: str, tiles: tuple[int, ...]) -> Tensor:
        """:func:`bsr_linear_packed` of this weight."""
        return bsr_linear_packed(x, self, bias, activation=activation, tiles=list(tiles) or None)

    def to_dense(self) -> Tensor:
        """The weight ``[N, K]``, bit-equal in live blocks and +0.0 elsewhere."""
        return unpack_blocks(self.values, self.layout.row, self.layout.col, self.layout.shape)


def unpack_blocks(values: Tensor, row: Tensor, col: Tensor, shape: tuple[int, int] | list[int]) -> Tensor:
    """The dense ``[N, K]`` of packed blocks."""
    (n, k), (nnzb, block_n, block_k) = shape, values.shape
    dense = values.new_zeros(-(-n // block_n), -(-k // block_k), block_n, block_k)
    dense[row.long(), col[:nnzb].long()] = values
    return dense.transpose(1, 2).reshape(dense.shape[0] * block_n, -1)[:n, :k].contiguous()


def reference_bsr_linear_packed(x: Tensor, weight: PackedBlocks, bias: Tensor | None, activation: str) -> Tensor:
    """What :func:`bsr_linear_packed` computes, in plain PyTorch."""
    return activate_reference(F.linear(x, weight.to_dense(), bias), activation)


@operator("bsr_linear_packed")
def _forward(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow: Tensor,
    col: Tensor,
    row: Tensor,
    schedule: Tensor,
    shape: list[int],
    activation: str,
    tiles: list[int],
) -> Tensor:
    n, k = shape
    if not runs_kernel(x):
        return activate_reference(F.linear(x, unpack_blocks(values, row, col, shape), bias), activation)
    block = (values.shape[1], values.shape[2])
    return launch_product(
        x, values, bias, crow, col, (n, k), block, tiles, schedule, packed=True, activation=activation
    )[0]  # fmt: skip


def bsr_linear_packed(
    x: Tensor, weight: PackedBlocks, bias: Tensor | None = None, *, activation: str = "none",
    tiles: list[int] | None = None,
) -> Tensor:  # fmt: skip
    """``act(x Wᵀ + b)`` of packed blocks; no gradients.

    Under autocast x and bias are cast to the packed weight's dtype.

    Args:
        x: ``[..., K]``, fp16, bf16 or fp32, any strides.
        weight: see :class:`PackedBlocks`; its values of x's dtype and on its device.
        bias: ``[N]``.
        activation: ``none``, ``relu`` or ``gelu`` (exact, by erf).
        tiles: :meth:`Tiles.as_ints` of the forward; without them, :func:`default_tiles`.

    Returns:
        ``[..., N]`` of x's dtype, accumulated in fp32.

    Raises:
        ValueError: shapes, dtypes or devices do not go together.
    """
    check_activation(activation)
    n, k = weight.layout.shape
    x, bias = as_autocast_would(x, bias, packed=weight.values)
    check_linear(x, (n, k), bias, index=weight.layout.col, the_packed_weight=weight.values)
    rows = x.reshape(-1, k)
    layout = weight.layout
    with without_autocast(x.device):
        y = _forward(
            rows, weight.values, bias, layout.crow, layout.col, layout.row, layout.schedule, [n, k], activation,
            tiles or [],
        )  # fmt: skip
    return y.reshape(*x.shape[:-1], n)
