"""Linear with few rows over an unstructured sparse weight: ``y = act(x Wᵀ + b)``, for inference.

With few rows (M ≤ 64) the weight is the traffic. Packed by fours (``fours.py``: live values, and a map of two bits for
each four weights) it is 0.32 of 16-bit dense at 90 % sparsity. A program loads it sparse and computes dense ("load as
sparse, compute as dense": Xia et al., "Flash-LLM", VLDB 2023). K is split, so that a GPU is full; a second kernel adds
the splits, always in the same order, and what fours leave over: of the live values 14 % at 90 % sparsity, 37 % at 70 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from sparseticket.kernels.activation import activate, activate_reference, check_activation
from sparseticket.kernels.fours import DEPTH, ROWS, WARPS, Fours, check_fours, dense_tile, pack_fours, unpack_fours
from sparseticket.kernels.launch import (
    FLOATS,
    as_autocast_would,
    ceil_div,
    fp32_precision,
    has_compiled_form,
    is_hopper_or_later,
    runs_kernel,
    without_autocast,
    wrap_triton,
)
from sparseticket.kernels.operands import check_linear
from sparseticket.kernels.operators import operator

MOST_ROWS = 64  # of x
PROGRAMS = 528  # four for each multiprocessor of an H100: with fewer blocks of rows than that, K is split
MOST_SPLITS = 32  # the second kernel adds them unrolled
SUMMED_ROWS = 16  # of W, by a program of the second kernel
SUMMED_TOGETHER = 4  # of what is left over of a row: with 8, and 8 rows, it takes 1.3 times the instructions


@dataclass(frozen=True)
class BitmapWeight:
    """A weight of ``shape`` ``(N, K)``, packed by fours."""

    shape: tuple[int, int]
    fours: Fours

    @classmethod
    def from_dense(cls, weight: Tensor, mask: Tensor) -> BitmapWeight:
        """Pack what a bool mask leaves of a weight, both ``[N, K]``, on its device.

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
        return cls((weight.shape[0], weight.shape[1]), pack_fours(weight.detach(), mask))

    def to_dense(self) -> Tensor:
        """The weight ``[N, K]``, bit-equal where it is alive, +0.0 elsewhere."""
        return unpack_fours(self.fours, *self.shape)

    def to(self, device: torch.device | str) -> BitmapWeight:
        """The same on another device."""
        return BitmapWeight(self.shape, Fours(*(array.to(device) for array in self.fours)))

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return self.fours.leading.dtype

    def tensors(self) -> dict[str, Tensor]:
        """What it is made of, by name; :meth:`with_tensors` puts it together again."""
        return self.fours._asdict()

    def with_tensors(self, tensors: dict[str, Tensor]) -> BitmapWeight:
        """The same of these tensors, which may have moved to another device."""
        return BitmapWeight(self.shape, Fours(**tensors))

    def linear(self, x: Tensor, bias: Tensor | None, activation: str, tiles: tuple[int, ...]) -> Tensor:
        """:func:`bitmap_linear` of this weight."""
        return bitmap_linear(x, self, bias, activation=activation, launch=BitmapLaunch(*tiles) if tiles else None)

    @property
    def nbytes(self) -> int:
        """Bytes of all its arrays."""
        return sum(array.nbytes for array in self.fours)


@triton.jit
def bitmap_matmul_kernel(
    X,  # [M, K]
    LEADING,
    POSITIONS,
    PARTIALS,  # [splits, blocks of rows of W times 64, TILE_M] in fp32
    COLUMNS_OF_X,  # [tiles of K times 128, TILE_M]
    m_size,
    k_size,
    blocks,
    k_tiles,
    tiles_of_split,
    stride_xm,
    stride_xk,
    TILE_M: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """``W xᵀ`` of a block of rows of W and a split of K; behind those, one program a tile of K copies x, turned."""
    if OVERLAPS:
        tl.extra.cuda.gdc_launch_dependents()
    block = tl.program_id(0)
    split = tl.program_id(1)
    m = tl.arange(0, TILE_M)
    first = split * tiles_of_split
    last = tl.minimum(k_tiles, first + tiles_of_split)
    if block < blocks:
        acc = tl.zeros((ROWS, TILE_M), dtype=tl.float32)
        for tile in range(first, last):
            x = _columns(X, tile, m, m_size, k_size, stride_xm, stride_xk, EVEN)
            w = dense_tile(LEADING, POSITIONS, block.to(tl.int64) * k_tiles + tile)
            acc = tl.dot(w, x, acc, input_precision=PRECISION)
        row = (split.to(tl.int64) * blocks + block) * ROWS + tl.arange(0, ROWS)
        tl.store(PARTIALS + row[:, None] * TILE_M + m[None, :], acc)
    else:
        tile = first + block - blocks
        if tile < last:
            x = _columns(X, tile, m, m_size, k_size, stride_xm, stride_xk, EVEN)
            k = tile * DEPTH + tl.arange(0, DEPTH)
            tl.store(COLUMNS_OF_X + k[:, None] * TILE_M + m[None, :], x)


@triton.jit
def _columns(X, tile, m, m_size, k_size, stride_xm, stride_xk, EVEN: tl.constexpr):
    """The columns of x, ``[128, TILE_M]``, for one tile of K, 0 beyond its edges."""
    k = tile * DEPTH + tl.arange(0, DEPTH)
    live = (m < m_size)[None, :]
    if not EVEN:
        live = live & (k < k_size)[:, None]
    place = m[None, :].to(tl.int64) * stride_xm + k[:, None].to(tl.int64) * stride_xk
    return tl.load(X + place, mask=live, other=0.0)


@triton.jit
def bitmap_sum_kernel(
    PARTIALS,
    COLUMNS_OF_X,
    REST,
    COLUMNS,
    STARTS,
    OUT,  # y [M, N]
    BIAS,
    m_size,
    n_size,
    rows,  # of a split in PARTIALS
    SPLITS: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    TOGETHER: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """The second pass: add the splits and what is left over, always in the same order, then bias and activation."""
    n = tl.program_id(0) * TILE_N + tl.arange(0, TILE_N)
    m = tl.arange(0, TILE_M)
    inside = n < n_size
    begin = tl.load(STARTS + tl.program_id(0) * TILE_N)  # 64 bits once a program; rows count from there in 32
    start = (tl.load(STARTS + n, mask=inside, other=begin) - begin).to(tl.int32)
    stop = (tl.load(STARTS + n + 1, mask=inside, other=begin) - begin).to(tl.int32)
    at = start[:, None, None] + tl.arange(0, TOGETHER)[None, :, None]
    live = at < stop[:, None, None]
    value, column = _rest(REST + begin, COLUMNS + begin, at, live)
    if OVERLAPS:
        tl.extra.cuda.gdc_wait()  # for the first kernel; until here, nothing of it was read
    total = tl.zeros((TILE_N, TILE_M), dtype=tl.float32)
    place = n[:, None].to(tl.int64) * TILE_M + m[None, :]
    for split in tl.static_range(SPLITS):  # unrolled, so that all loads are on their way at once
        total += tl.load(PARTIALS + tl.cast(split, tl.int64) * rows * TILE_M + place, mask=inside[:, None], other=0.0)
    rest = tl.zeros((TILE_N, TOGETHER, TILE_M), dtype=tl.float32)
    # unrolled for the same reason: a row's rest is read in few rounds, and each takes as long as L2 does
    for _ in tl.range(0, tl.cdiv(tl.max(stop - start, 0), TOGETHER), loop_unroll_factor=4):
        x = tl.load(COLUMNS_OF_X + column * TILE_M + m[None, None, :], mask=live, other=0.0)
        rest += value.to(tl.float32) * x.to(tl.float32)
        at += TOGETHER
        live = at < stop[:, None, None]
        value, column = _rest(REST + begin, COLUMNS + begin, at, live)
    total += tl.sum(rest, 1)
    if HAS_BIAS:
        total += tl.load(BIAS + n, mask=inside, other=0.0).to(tl.float32)[:, None]
    y = OUT + m[None, :].to(tl.int64) * n_size + n[:, None]
    tl.store(y, activate(total, ACTIVATION).to(OUT.dtype.element_ty), mask=inside[:, None] & (m < m_size)[None, :])


@triton.jit
def _rest(REST, COLUMNS, at, live):
    """Values that are left over, and their columns."""
    return tl.load(REST + at, mask=live, other=0.0), tl.load(COLUMNS + at, mask=live, other=0)


class BitmapLaunch(NamedTuple):
    """In how many splits of K, with how many warps and stages, and how near to each other the two kernels run."""

    splits: int
    warps: int
    stages: int
    overlap: int = 0  # 1: where it can, the second kernel begins while the first runs, and waits for its results


def default_launch(n: int, k: int, dtype: torch.dtype) -> BitmapLaunch:
    """Enough programs to fill a GPU, of two tiles of K or more each."""
    blocks, tiles = ceil_div(n, ROWS.value), ceil_div(k, DEPTH.value)
    splits = max(1, min(ceil_div(PROGRAMS, blocks), tiles // 2, MOST_SPLITS // 2))
    # fp32 of 64 rows spills registers with 4 warps, and with 3 stages it does not fit sm_120
    return BitmapLaunch(splits, 8, 2) if dtype == torch.float32 else BitmapLaunch(splits, WARPS, 3)


def candidate_launches(n: int, k: int, dtype: torch.dtype) -> list[BitmapLaunch]:
    """What is worth measuring for a weight of ``[N, K]``, whatever M: half to twice the default's splits, and none."""
    tiles, default = ceil_div(k, DEPTH.value), default_launch(n, k, dtype)
    wanted = {1} | {max(1, default.splits * by // 2) for by in (1, 2, 3, 4)}
    splits = sorted({_filled(tiles, each) for each in wanted})
    return [default._replace(splits=each, stages=stages) for each in splits for stages in (2, 3, 4)]


def _filled(tiles: int, splits: int) -> int:
    """How many of these splits get a tile."""
    return ceil_div(tiles, ceil_div(tiles, splits))


@operator("bitmap_linear")
def _forward(
    x: Tensor,
    leading: Tensor,
    positions: Tensor,
    rest: Tensor,
    columns: Tensor,
    starts: Tensor,
    bias: Tensor | None,
    n: int,
    activation: str,
    launch: list[int],
) -> Tensor:
    m, k = x.shape
    if not runs_kernel(x):
        weight = unpack_fours(Fours(leading, positions, rest, columns, starts), n, k)
        return activate_reference(F.linear(x, weight, bias), activation)
    y = x.new_empty(m, n)
    if m == 0:
        return y
    splits, warps, stages, overlap = launch
    # programmatic dependent launch, which came with Hopper; Inductor cannot launch so
    overlaps = overlap == 1 and is_hopper_or_later(x.device) and not has_compiled_form(x)
    blocks, tiles = leading.shape[:2]
    splits = _filled(tiles, splits)
    tiles_of_split = ceil_div(tiles, splits)
    tile_m = 16 if m <= 16 else MOST_ROWS
    rows = blocks * ROWS.value
    partials = x.new_empty(splits, rows, tile_m, dtype=torch.float32)
    columns_of_x = x.new_empty(tiles * DEPTH.value, tile_m)
    wrap_triton(bitmap_matmul_kernel)[(blocks + tiles_of_split, splits)](
        x, leading, positions, partials, columns_of_x, m, k, blocks, tiles, tiles_of_split, x.stride(0), x.stride(1),
        TILE_M=tile_m, EVEN=k % DEPTH.value == 0, PRECISION=fp32_precision(), OVERLAPS=overlaps,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    wrap_triton(bitmap_sum_kernel)[(ceil_div(n, SUMMED_ROWS),)](
        partials, columns_of_x, rest, columns, starts, y, y if bias is None else bias.contiguous(), m, n, rows,
        SPLITS=splits, TILE_M=tile_m, TILE_N=SUMMED_ROWS, TOGETHER=SUMMED_TOGETHER, HAS_BIAS=bias is not None,
        ACTIVATION=activation, OVERLAPS=overlaps, num_warps=WARPS, **({"launch_pdl": True} if overlaps else {}),
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

    Under autocast x and bias are cast to the dtype of the packed weight. Where x is infinite or NaN, so is y: what is
    dead or left over is multiplied as 0, which may make a NaN of dense's infinity.

    Args:
        x: ``[..., K]``, fp16, bf16 or fp32 as the weight's values, any strides, at most 64 rows in all.
        weight: packed, on the device of ``x``.
        bias: ``[N]``.
        activation: ``none``, ``relu`` or ``gelu`` (exact, by erf).
        launch: without it, :func:`default_launch`.

    Returns:
        ``[..., N]`` of x's dtype, accumulated in fp32.

    Raises:
        ValueError: there are more than 64 rows, shapes, dtypes or devices do not go together, the packed arrays are not
            contiguous, or the launch cannot be.
    """
    check_activation(activation)
    if launch is not None and min(launch.splits, launch.warps, launch.stages) < 1:
        raise ValueError(f"a launch has a split, a warp and a stage or more, not {launch}")
    if not all(array.is_contiguous() for array in weight.fours):
        raise ValueError("the packed arrays have to be contiguous: pack the weight again")
    x, bias = as_autocast_would(x, bias, packed=weight.fours.leading)
    n, k = weight.shape
    check_linear(x, (n, k), bias, index=weight.fours.positions, the_packed_weight=weight.fours.leading)
    rows = x.reshape(-1, k)
    if rows.shape[0] > MOST_ROWS:
        raise ValueError(
            f"bitmap_linear is for at most {MOST_ROWS} rows, and these are {rows.shape[0]}: keep the dense weight for "
            "them, F.linear(x, weight.to_dense())"
        )
    with without_autocast(x.device):
        y = _forward(rows, *weight.fours, bias, n, activation, list(launch or default_launch(n, k, rows.dtype)))
    return y.reshape(*x.shape[:-1], n)


class BitmapLinear(torch.nn.Module):
    """A linear whose weight is packed for at most 64 rows, for inference; ``state_dict`` holds the packed arrays.

    It may be loaded into a module of another mask, but not of another shape.
    """

    def __init__(self, weight: BitmapWeight, bias: Tensor | None = None, *, activation: str = "none") -> None:
        check_activation(activation)
        super().__init__()
        self.shape, self.activation = weight.shape, activation
        for name, array in weight.tensors().items():
            self.register_buffer(name, array)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    @classmethod
    def from_linear(cls, linear: torch.nn.Linear, mask: Tensor, *, activation: str = "none") -> BitmapLinear:
        """Pack what a bool mask ``[N, K]`` leaves of ``linear``; raises ValueError where it does not fit."""
        return cls(BitmapWeight.from_dense(linear.weight, mask), linear.bias, activation=activation)

    @property
    def packed(self) -> BitmapWeight:
        """The weight, for :meth:`BitmapWeight.to_dense` and the functional form."""
        return BitmapWeight(self.shape, Fours(*(getattr(self, name) for name in Fours._fields)))

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *others: Any) -> None:
        given = {name: state.get(prefix + name) for name in Fours._fields}
        if all(isinstance(array, Tensor) for array in given.values()):
            try:
                check_fours(Fours(**given), *self.shape)
            except ValueError as error:
                raise ValueError(f"{prefix.rstrip('.') or 'this module'} cannot be loaded: {error}") from error
            for name in ("rest", "columns"):  # as many as another mask leaves over
                self.register_buffer(name, getattr(self, name).new_empty(given[name].shape))
        super()._load_from_state_dict(state, prefix, *others)

    def extra_repr(self) -> str:
        """The weight's shape and dtype."""
        return f"{self.shape[1]}, {self.shape[0]}, {self.leading.dtype}, activation={self.activation!r}"

    def forward(self, x: Tensor) -> Tensor:
        """``[..., K]`` to ``[..., N]``, at most 64 rows."""
        return bitmap_linear(x, self.packed, self.bias, activation=self.activation)
