"""Linear with few rows over a weight packed as bitmap and live values: ``y = act(x Wᵀ + b)``, for inference.

With few rows (M ≤ 64) the weight is the traffic. Packed, it is 1.27 bits a weight beside the live values: at 90 %
sparsity 0.18 of 16-bit dense, at 70 % 0.38. A program loads it sparse and computes dense: each thread takes eight
neighbours of a row, finds the first one's value by counting the bits before it, and reads what is alive ("load as
sparse, compute as dense": Xia et al., "Flash-LLM", VLDB 2023; bitmap and counting: Fan et al., "SpInfer", EuroSys
2025). Unpacking takes instructions too, about 12 a lane and weight on sm_90, alive or not; so it pays only for weights
large enough to be bound by memory. Where too few blocks of rows would fill a GPU, K is split, and a second kernel adds
the splits, always in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from sparseticket.kernels.activation import activate, activate_reference, check_activation
from sparseticket.kernels.launch import (
    FLOATS,
    as_autocast_would,
    ceil_div,
    fp32_precision,
    runs_kernel,
    without_autocast,
    wrap_triton,
)
from sparseticket.kernels.operands import check_linear
from sparseticket.kernels.operators import operator
from sparseticket.kernels.words import pack_words, popcount, unpack_words

MOST_ROWS = 64  # of x
SIDE = tl.constexpr(64)  # of a tile of the weight: the bits of one row of it are an int64
PROGRAMS = 528  # four for each multiprocessor of an H100: with fewer blocks of rows than that, K is split
ARRAYS = ("values", "bitmap", "offsets", "starts")


@dataclass(frozen=True)
class BitmapWeight:
    """A weight ``[N, K]`` by tiles of 64 x 64, one after the other along K, each in one run as a GPU will read it.

    Attributes:
        shape: ``(N, K)``; the tiles at the edges are filled up with dead entries.
        values: ``[nnz + 1]``, live values tile by tile, inside a tile by row and column; one entry of padding.
        bitmap: int64 ``[blocks of rows, tiles of K, 64]``, what is alive in a tile's row, from the lowest bit on.
        offsets: int16, of the same shape: how many of the tile's values come before that row.
        starts: int64 ``[blocks of rows, tiles of K]``, where a tile's values begin.
    """

    shape: tuple[int, int]
    values: Tensor
    bitmap: Tensor
    offsets: Tensor
    starts: Tensor

    @classmethod
    def from_dense(cls, weight: Tensor, mask: Tensor) -> BitmapWeight:
        """Pack what a bool mask leaves of a weight, both ``[N, K]``, on its device; a live 0 stays a live entry.

        Raises:
            ValueError: they are not of one shape and device, or the weight is not fp16, bf16 or fp32, or empty.
        """
        if weight.ndim != 2 or 0 in weight.shape or weight.dtype not in FLOATS:
            raise ValueError(
                f"a weight to pack is [N, K] of fp16, bf16 or fp32, not {weight.dtype} of {tuple(weight.shape)}"
            )
        if mask.dtype != torch.bool or mask.shape != weight.shape or mask.device != weight.device:
            raise ValueError(
                f"{mask.dtype} {tuple(mask.shape)} on {mask.device} is no mask of {tuple(weight.shape)} on "
                f"{weight.device}"
            )
        alive = _by_tile(mask)
        values = F.pad(_by_tile(weight.detach())[alive], (0, 1))
        per_row = alive.sum(-1)
        per_tile = per_row.sum(-1)
        return cls(
            (weight.shape[0], weight.shape[1]),
            values,
            pack_words(alive).view(torch.int64).squeeze(-1),
            (per_row.cumsum(-1) - per_row).to(torch.int16),
            per_tile.flatten().cumsum(0).view_as(per_tile) - per_tile,
        )

    def to_dense(self) -> Tensor:
        """The weight ``[N, K]``, bit-equal where it is alive, +0.0 elsewhere."""
        return _dense(self.values, self.bitmap, self.offsets, self.starts, *self.shape)

    def to(self, device: torch.device | str) -> BitmapWeight:
        """The same on another device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in ARRAYS})

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return self.values.dtype

    def tensors(self) -> dict[str, Tensor]:
        """What it is made of, by name; :meth:`with_tensors` puts it together again."""
        return {name: getattr(self, name) for name in ARRAYS}

    def with_tensors(self, tensors: dict[str, Tensor]) -> BitmapWeight:
        """The same of these tensors, which may have moved to another device."""
        return BitmapWeight(self.shape, **{name: tensors[name] for name in ARRAYS})

    def linear(self, x: Tensor, bias: Tensor | None, activation: str, tiles: tuple[int, ...]) -> Tensor:
        """:func:`bitmap_linear` of this weight."""
        return bitmap_linear(x, self, bias, activation=activation, launch=BitmapLaunch(*tiles) if tiles else None)

    @property
    def density(self) -> float:
        """Share of entries that are alive, 0 to 1."""
        return (len(self.values) - 1) / (self.shape[0] * self.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of all its arrays."""
        return sum(getattr(self, name).nbytes for name in ARRAYS)


def _by_tile(matrix: Tensor) -> Tensor:
    """``[N, K]`` as ``[blocks of rows, tiles of K, 64, 64]``, filled up with 0."""
    side = SIDE.value
    padded = F.pad(matrix, (0, -matrix.shape[1] % side, 0, -matrix.shape[0] % side))
    return padded.unflatten(1, (-1, side)).unflatten(0, (-1, side)).transpose(1, 2).contiguous()


def _dense(values: Tensor, bitmap: Tensor, offsets: Tensor, starts: Tensor, n: int, k: int) -> Tensor:
    alive = unpack_words(bitmap.unsqueeze(-1).view(torch.int32), SIDE.value)
    place = starts[..., None, None] + offsets.long().unsqueeze(-1) + alive.cumsum(-1) - 1
    tiles = torch.where(alive, values[place.clamp(min=0)], 0)
    return tiles.transpose(1, 2).flatten(2).flatten(0, 1)[:n, :k]


@triton.jit
def bitmap_matmul_kernel(
    X,  # [M, K]
    VALUES,
    BITMAP,
    OFFSETS,
    STARTS,
    OUT,  # y [M, N], or partial sums [splits, M, N] in fp32
    BIAS,
    m_size,
    n_size,
    k_size,
    k_tiles,
    tiles_of_split,
    stride_xm,
    stride_xk,
    TILE_M: tl.constexpr,
    EVEN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PARTIAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``yᵀ = W xᵀ`` for one block of rows of W and one split of K; its tiles are read one ahead, their places two."""
    block = tl.program_id(0)
    split = tl.program_id(1)
    n = block * SIDE + tl.arange(0, SIDE)
    m = tl.arange(0, TILE_M)
    k_in_tile = tl.arange(0, SIDE)
    x_columns = X + m[None, :].to(tl.int64) * stride_xm
    first = split * tiles_of_split
    last = tl.minimum(k_tiles, first + tiles_of_split)
    acc = tl.zeros((SIDE, TILE_M), dtype=tl.float32)
    bits, offset, start = _places(BITMAP, OFFSETS, STARTS, first, block, k_tiles, last)
    w = _gather(VALUES, bits, offset, start)
    bits, offset, start = _places(BITMAP, OFFSETS, STARTS, first + 1, block, k_tiles, last)
    for tile in range(first, last):
        k = tile * SIDE + k_in_tile
        x_live = (m < m_size)[None, :]
        if not EVEN:
            x_live = x_live & (k < k_size)[:, None]
        x = tl.load(x_columns + k[:, None].to(tl.int64) * stride_xk, mask=x_live, other=0.0)
        w_next = _gather(VALUES, bits, offset, start)
        bits, offset, start = _places(BITMAP, OFFSETS, STARTS, tile + 2, block, k_tiles, last)
        acc = tl.dot(w, x, acc, input_precision=PRECISION)
        w = w_next
    live = (m < m_size)[None, :] & (n < n_size)[:, None]
    place = m[None, :].to(tl.int64) * n_size + n[:, None]
    if PARTIAL:
        tl.store(OUT + split.to(tl.int64) * m_size * n_size + place, acc, mask=live)
    else:
        if HAS_BIAS:
            acc += tl.load(BIAS + n, mask=n < n_size, other=0.0).to(tl.float32)[:, None]
        tl.store(OUT + place, activate(acc, ACTIVATION).to(OUT.dtype.element_ty), mask=live)


@triton.jit
def _places(BITMAP, OFFSETS, STARTS, tile, block, k_tiles, last):
    """What is alive in a tile of the weight, and where its values are; nothing is, in one beyond the last."""
    at = block.to(tl.int64) * k_tiles + tile
    row = at * SIDE + tl.arange(0, SIDE)
    inside = tl.full((SIDE,), tile, tl.int32) < last
    bits = tl.load(BITMAP + row, mask=inside, other=0)
    offset = tl.load(OFFSETS + row, mask=inside, other=0)
    start = tl.load(STARTS + at * (tile < last))  # any that there is: nothing is read by it
    return bits, offset, start


@triton.jit
def _gather(VALUES, bits, offset, start):
    """A tile of the weight, dense: each thread takes eight neighbours, whose values follow each other."""
    shift = tl.arange(0, 8)[None, :] * 8
    bits = bits[:, None]
    before = bits & ((tl.full((1, 8), 1, tl.int64) << shift) - 1)
    rank = offset.to(tl.int32)[:, None] + popcount(before.to(tl.int32)) + popcount((before >> 32).to(tl.int32))
    eight = (bits >> shift).to(tl.int32)
    at = VALUES + start + rank
    w0, at = _take(at, eight, 1)
    w1, at = _take(at, eight, 2)
    w2, at = _take(at, eight, 4)
    w3, at = _take(at, eight, 8)
    w4, at = _take(at, eight, 16)
    w5, at = _take(at, eight, 32)
    w6, at = _take(at, eight, 64)
    w7, at = _take(at, eight, 128)
    even = tl.join(tl.join(w0, w4), tl.join(w2, w6))
    odd = tl.join(tl.join(w1, w5), tl.join(w3, w7))
    return tl.reshape(tl.join(even, odd), (SIDE, SIDE))


@triton.jit
def _take(at, eight, BIT: tl.constexpr):
    """The value at ``at`` where the bit is alive, else 0; and where the next one lies."""
    alive = (eight & BIT) != 0
    return tl.load(at, mask=alive, other=0.0), at + alive.to(tl.int32)


@triton.jit
def bitmap_sum_kernel(
    PARTIALS,  # [splits, M, N]
    OUT,  # [M, N]
    BIAS,
    size,  # M N
    n_size,
    SPLITS: tl.constexpr,
    TILE_N: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """The second pass: add the splits, always in the same order, then bias and activation."""
    first = tl.program_id(0).to(tl.int64) * TILE_N
    place = first + tl.arange(0, TILE_N)
    live = place < size
    total = tl.zeros((TILE_N,), dtype=tl.float32)
    for split in tl.static_range(SPLITS):  # unrolled, so that all loads are on their way at once
        total += tl.load(PARTIALS + tl.cast(split, tl.int64) * size + place, mask=live, other=0.0)
    if HAS_BIAS:
        n = ((first % n_size).to(tl.int32) + tl.arange(0, TILE_N)) % n_size  # 64-bit division once a program
        total += tl.load(BIAS + n, mask=live, other=0.0).to(tl.float32)
    tl.store(OUT + place, activate(total, ACTIVATION).to(OUT.dtype.element_ty), mask=live)


class BitmapLaunch(NamedTuple):
    """In how many splits of K, and with how many warps and stages, the kernel runs."""

    splits: int
    warps: int
    stages: int


def default_launch(n: int, k: int) -> BitmapLaunch:
    """Enough programs to fill a GPU, of four tiles of K or more each; at most 64 KB of shared memory."""
    blocks, tiles = ceil_div(n, SIDE.value), ceil_div(k, SIDE.value)
    return BitmapLaunch(max(1, min(ceil_div(PROGRAMS, blocks), tiles // 4)), 8, 3)


def candidate_launches(n: int, k: int) -> list[BitmapLaunch]:
    """What is worth measuring for a weight of ``[N, K]``, whatever M."""
    most = ceil_div(k, SIDE.value)
    splits = sorted({min(most, max(1, default_launch(n, k).splits * by // 2)) for by in (1, 2, 3, 4, 6)} | {1})
    return [BitmapLaunch(s, warps, stages) for s in splits for warps in (4, 8) for stages in (2, 3)]


@operator("bitmap_linear")
def _forward(
    x: Tensor,
    values: Tensor,
    bitmap: Tensor,
    offsets: Tensor,
    starts: Tensor,
    bias: Tensor | None,
    n: int,
    activation: str,
    launch: list[int],
) -> Tensor:
    m, k = x.shape
    if not runs_kernel(x):
        return activate_reference(F.linear(x, _dense(values, bitmap, offsets, starts, n, k), bias), activation)
    y = x.new_empty(m, n)
    if m == 0:
        return y
    splits, warps, stages = launch
    blocks, tiles = starts.shape
    tiles_of_split = ceil_div(tiles, splits)
    splits = ceil_div(tiles, tiles_of_split)
    partial = splits > 1
    into = x.new_empty(splits, m, n, dtype=torch.float32) if partial else y
    given = bias.contiguous() if bias is not None else y
    wrap_triton(bitmap_matmul_kernel)[(blocks, splits)](
        x, values, bitmap, offsets, starts, into, given, m, n, k, tiles, tiles_of_split, x.stride(0), x.stride(1),
        TILE_M=16 if m <= 16 else 64, EVEN=k % SIDE.value == 0, HAS_BIAS=bias is not None,
        PARTIAL=partial, ACTIVATION=activation, PRECISION=fp32_precision(), num_warps=warps, num_stages=stages,
    )  # fmt: skip
    if partial:
        wrap_triton(bitmap_sum_kernel)[(ceil_div(m * n, 512),)](
            into, y, given, m * n, n,
            SPLITS=splits, TILE_N=512, HAS_BIAS=bias is not None, ACTIVATION=activation, num_warps=4,
        )  # fmt: skip
    return y


def bitmap_linear(
    x: Tensor,
    weight: BitmapWeight,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    launch: BitmapLaunch | None = None,
) -> Tensor:
    """``act(x Wᵀ + b)`` for at most 64 rows; inference only, it has no gradients.

    Under autocast x and bias are cast to the dtype of the packed weight.

    Args:
        x: ``[..., K]``, fp16, bf16 or fp32 as the weight's values, any strides, at most 64 rows in all.
        weight: packed, on the device of ``x``.
        bias: ``[N]``.
        activation: ``none``, ``relu`` or ``gelu`` (exact, by erf).
        launch: without it, :func:`default_launch`.

    Returns:
        ``[..., N]`` of x's dtype, accumulated in fp32.

    Raises:
        ValueError: there are more than 64 rows, or shapes, dtypes or devices do not go together.
    """
    check_activation(activation)
    x, bias = as_autocast_would(x, bias, packed=weight.values)
    n, k = weight.shape
    check_linear(x, (n, k), bias, index=weight.bitmap, the_packed_weight=weight.values)
    rows = x.reshape(-1, k)
    if rows.shape[0] > MOST_ROWS:
        raise ValueError(
            f"bitmap_linear is for at most {MOST_ROWS} rows, and these are {rows.shape[0]}: keep the dense weight for "
            "them, F.linear(x, weight.to_dense())"
        )
    with without_autocast(x.device):
        y = _forward(
            rows, *(getattr(weight, name) for name in ARRAYS), bias, n, activation, list(launch or default_launch(n, k))
        )
    return y.reshape(*x.shape[:-1], n)


class BitmapLinear(torch.nn.Module):
    """A linear whose weight is packed for at most 64 rows, for inference; ``state_dict`` holds the packed arrays."""

    def __init__(self, weight: BitmapWeight, bias: Tensor | None = None, *, activation: str = "none") -> None:
        check_activation(activation)
        super().__init__()
        self.shape, self.activation = weight.shape, activation
        for name in ARRAYS:
            self.register_buffer(name, getattr(weight, name))
        self.register_buffer("bias", None if bias is None else bias.detach())

    @classmethod
    def from_linear(cls, linear: torch.nn.Linear, mask: Tensor, *, activation: str = "none") -> BitmapLinear:
        """Pack what a bool mask ``[N, K]`` leaves of ``linear``; raises ValueError where it does not fit."""
        return cls(BitmapWeight.from_dense(linear.weight, mask), linear.bias, activation=activation)

    @property
    def packed(self) -> BitmapWeight:
        """The weight, for :meth:`BitmapWeight.to_dense` and the functional form."""
        return BitmapWeight(self.shape, self.values, self.bitmap, self.offsets, self.starts)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., K]`` to ``[..., N]``, at most 64 rows."""
        return bitmap_linear(x, self.packed, self.bias, activation=self.activation)
