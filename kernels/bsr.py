"""Block-sparse linear: ``y = act(x Wᵀ + b)`` where W is zero outside some blocks, with both gradients.

In training W stays the dense parameter and kernels read its live blocks by stride; the gradient of W is dense and
exactly 0 in dead blocks. In inference its live blocks may be packed as ``values [nnzb, BN, BK]``. It pays where blocks
are big (64 or 128 a side) and rows are many; whether it does on a GPU, the dispatcher's table says.

Forward and input gradient are one kernel: both sum, for each block of outputs, over that block's live neighbours; only
strides and index arrays differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from sparseticket.kernels.activation import (
    activate,
    activate_and_keep,
    activate_reference,
    check_activation,
    linear_gradients,
)
from sparseticket.kernels.blocks import ARRAYS, BlockLayout, expand_blocks
from sparseticket.kernels.bsr_resident import launch_resident, launch_tma_wgrad, tma_reads
from sparseticket.kernels.launch import as_autocast_would, ceil_div, fp32_precision, runs_kernel, wrap_triton
from sparseticket.kernels.operands import check_linear
from sparseticket.kernels.operators import operator

MOST_SPLITS = 8
WGRAD_PROGRAMS = 264  # two for each multiprocessor of an H100: with fewer live tiles than that, M is split
SLICE = 16  # rows of a block that one program adds or zeroes


@dataclass(frozen=True)
class Tiles:
    """How one pass is cut up: a program makes ``rows x out`` results, ``reduce`` terms of the sum at a time.

    For the weight gradient ``rows x out`` is a piece of a block (rows of N, columns of K), and ``reduce`` rows of M.
    ``residents`` is how many programs stay on each multiprocessor and fetch their tiles by TMA (for the weight gradient
    any number is just TMA); with 0, and wherever TMA cannot run, there is one program for each ``rows x out``.
    """

    rows: int
    out: int
    reduce: int
    warps: int
    stages: int
    residents: int = 0

    @staticmethod
    def are_resident(ints: Sequence[int]) -> bool:
        """True for the ints of tiles that are fetched by TMA."""
        return len(ints) > 5

    def as_ints(self) -> list[int]:
        """The form in which an operator takes it."""
        return [self.rows, self.out, self.reduce, self.warps, self.stages, *[self.residents] * bool(self.residents)]


DENSE_PASS = [0]  # in the place of a pass's tiles: it runs as a dense product. [] is default_tiles


@triton.jit
def bsr_matmul_kernel(
    A,  # [M, R]
    B,  # the weight, or its packed blocks
    C,  # [M, O]
    BIAS,
    PRE,  # what went into the activation, [M, O], where a gradient will need it
    START,
    INDEX,
    m_size,
    o_size,
    r_size,
    stride_am,
    stride_ar,
    stride_bo,
    stride_br,
    BLOCK_O: tl.constexpr,
    BLOCK_R: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_O: tl.constexpr,
    TILE_R: tl.constexpr,
    PACKED: tl.constexpr,
    EVEN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    KEEP_PRE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``C[:, o] = act(Σ over live blocks of A[:, r] B[o, r] + bias[o])`` for one tile of M and O."""
    pid_o = tl.program_id(1)
    steps: tl.constexpr = BLOCK_R // TILE_R  # of one block
    block_o = pid_o * TILE_O // BLOCK_O
    start = tl.load(START + block_o)
    end = tl.load(START + block_o + 1)
    m = tl.program_id(0) * TILE_M + tl.arange(0, TILE_M)
    o = pid_o * TILE_O + tl.arange(0, TILE_O)
    r_in_tile = tl.arange(0, TILE_R)
    a_rows = A + m[:, None].to(tl.int64) * stride_am
    if PACKED:  # noqa: SIM108  (a choice at compile time)
        b_columns = B + (o % BLOCK_O)[None, :] * BLOCK_R
    else:
        b_columns = B + o[None, :].to(tl.int64) * stride_bo
    acc = tl.zeros((TILE_M, TILE_O), dtype=tl.float32)
    index = tl.load(INDEX + start)
    for step in range(start * steps, end * steps):
        r_in_block = step % steps * TILE_R + r_in_tile
        r = index * BLOCK_R + r_in_block
        a_live = (m < m_size)[:, None]
        if not EVEN:
            a_live = a_live & (r < r_size)[None, :]
        a = tl.load(a_rows + r[None, :].to(tl.int64) * stride_ar, mask=a_live, other=0.0)
        if PACKED:
            b = tl.load(b_columns + tl.cast(step // steps, tl.int64) * (BLOCK_O * BLOCK_R) + r_in_block[:, None])
        elif EVEN:
            b = tl.load(b_columns + r[:, None].to(tl.int64) * stride_br)
        else:
            b_live = (r < r_size)[:, None] & (o < o_size)[None, :]
            b = tl.load(b_columns + r[:, None].to(tl.int64) * stride_br, mask=b_live, other=0.0)
        index = tl.load(INDEX + (step + 1) // steps)  # one ahead: see BlockLayout
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    if HAS_BIAS:
        acc += tl.load(BIAS + o, mask=o < o_size, other=0.0).to(tl.float32)[None, :]
    place = m[:, None].to(tl.int64) * o_size + o[None, :]
    live = (m < m_size)[:, None] & (o < o_size)[None, :]
    if KEEP_PRE:
        tl.store(PRE + place, acc.to(PRE.dtype.element_ty), mask=live)
    tl.store(C + place, activate(acc, ACTIVATION).to(C.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["nnzb"])  # each mask has another
def bsr_wgrad_kernel(
    DY,  # [M, N]
    X,  # [M, K]
    OUT,  # the gradient [N, K], or partial sums [splits, nnzb, BN, BK] in fp32
    ROW,
    COL,
    m_size,
    n_size,
    k_size,
    rows_of_split,
    nnzb,
    stride_dm,
    stride_dn,
    stride_xm,
    stride_xk,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
    TILE_M: tl.constexpr,
    PARTIAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``dW = dYᵀ X`` for one tile of one live block, over one split of M."""
    tiles_n: tl.constexpr = BLOCK_N // TILE_N
    tiles_k: tl.constexpr = BLOCK_K // TILE_K
    block = tl.program_id(0) // (tiles_n * tiles_k)
    tile = tl.program_id(0) % (tiles_n * tiles_k)
    split = tl.program_id(1)
    n_in_block = tile // tiles_k * TILE_N + tl.arange(0, TILE_N)
    k_in_block = tile % tiles_k * TILE_K + tl.arange(0, TILE_K)
    n = tl.load(ROW + block) * BLOCK_N + n_in_block
    k = tl.load(COL + block) * BLOCK_K + k_in_block
    m_in_tile = tl.arange(0, TILE_M)
    dy_columns = DY + n[:, None].to(tl.int64) * stride_dn
    x_columns = X + k[None, :].to(tl.int64) * stride_xk
    acc = tl.zeros((TILE_N, TILE_K), dtype=tl.float32)
    first = split * rows_of_split
    last = tl.minimum(m_size, first + rows_of_split)
    for begin in range(first, last, TILE_M):
        m = begin + m_in_tile
        dy_live = (m < last)[None, :] & (n < n_size)[:, None]
        x_live = (m < last)[:, None] & (k < k_size)[None, :]
        dy = tl.load(dy_columns + m[None, :].to(tl.int64) * stride_dm, mask=dy_live, other=0.0)
        x = tl.load(x_columns + m[:, None].to(tl.int64) * stride_xm, mask=x_live, other=0.0)
        acc = tl.dot(dy, x, acc, input_precision=PRECISION)
    if PARTIAL:
        at = (split.to(tl.int64) * nnzb + block) * (BLOCK_N * BLOCK_K)
        tl.store(OUT + at + n_in_block[:, None] * BLOCK_K + k_in_block[None, :], acc)
    else:
        live = (n < n_size)[:, None] & (k < k_size)[None, :]
        tl.store(OUT + n[:, None].to(tl.int64) * k_size + k[None, :], acc.to(OUT.dtype.element_ty), mask=live)


@triton.jit
def _block_at(CROW, COL, block_row, column):
    """Which live block lies there, or -1."""
    found = tl.full((32,), -1, dtype=tl.int32)
    end = tl.load(CROW + block_row + 1)
    for begin in range(tl.load(CROW + block_row), end, 32):
        place = begin + tl.arange(0, 32)
        here = tl.load(COL + place, mask=place < end, other=-1) == column
        found = tl.maximum(found, tl.where(here, place, -1))
    return tl.max(found, 0)


@triton.jit(do_not_specialize=["nnzb"])  # each mask has another
def bsr_wgrad_sum_kernel(
    PARTIALS,  # [splits, nnzb, BN, BK]
    OUT,  # [N, K]
    CROW,
    COL,
    n_size,
    k_size,
    nnzb,
    SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILE_N: tl.constexpr,
):
    """The second pass: add the splits of one slice of a block, always in the same order; 0 where it is dead."""
    first = tl.program_id(0) * TILE_N
    column = tl.program_id(1)
    block = _block_at(CROW, COL, first // BLOCK_N, column)
    n_in_block = first % BLOCK_N + tl.arange(0, TILE_N)
    inside = n_in_block[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    total = tl.zeros((TILE_N, BLOCK_K), dtype=tl.float32)
    if block >= 0:
        for split in tl.static_range(SPLITS):  # unrolled, so that all loads are on their way at once
            at = (tl.cast(split, tl.int64) * nnzb + block) * (BLOCK_N * BLOCK_K)
            total += tl.load(PARTIALS + at + inside)
    n = first + tl.arange(0, TILE_N)
    k = column * BLOCK_K + tl.arange(0, BLOCK_K)
    live = (n < n_size)[:, None] & (k < k_size)[None, :]
    tl.store(OUT + n[:, None].to(tl.int64) * k_size + k[None, :], total.to(OUT.dtype.element_ty), mask=live)


@triton.jit
def zero_dead_blocks_kernel(
    GRAD,  # [N, K]
    CROW,
    COL,
    n_size,
    k_size,
    stride_n,
    stride_k,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILE_N: tl.constexpr,
):
    """Write 0 into one slice of a block where it is dead; nothing of the gradient is read."""
    first = tl.program_id(0) * TILE_N
    column = tl.program_id(1)
    if _block_at(CROW, COL, first // BLOCK_N, column) < 0:
        n = first + tl.arange(0, TILE_N)
        k = column * BLOCK_K + tl.arange(0, BLOCK_K)
        inside = (n < n_size)[:, None] & (k < k_size)[None, :]
        place = n[:, None].to(tl.int64) * stride_n + k[None, :].to(tl.int64) * stride_k
        tl.store(GRAD + place, tl.zeros((TILE_N, BLOCK_K), dtype=GRAD.dtype.element_ty), mask=inside)


def default_tiles(block: tuple[int, int], m: int, dtype: torch.dtype) -> tuple[Tiles, Tiles, Tiles]:
    """Tiles of forward, input gradient and weight gradient that run on every GPU (at most 96 KB of shared memory).

    What the dispatcher measured on a GPU is better; this is for a layer called alone.
    """
    wide = 2 if dtype == torch.float32 else 1  # twice the bytes: half the tile
    return _default_tiles(tuple(block), 16 if m <= 16 else 32 if m <= 32 else 64 if m <= 512 else 128 // wide, wide)


@cache
def _default_tiles(block: tuple[int, int], rows: int, wide: int) -> tuple[Tiles, Tiles, Tiles]:
    block_n, block_k = block

    def product(out: int, reduce: int) -> Tiles:
        out, reduce = min(out, 128 // wide), min(reduce, 64 // wide)
        return Tiles(rows, out, reduce, 8 if rows * out >= 128 * 128 else 4, 3)

    wgrad = Tiles(min(block_n, 64), min(block_k, 128 // wide), 64 // wide, 4, 3)
    return product(block_n, block_k), product(block_k, block_n), wgrad


def candidate_tiles(block: tuple[int, int], which: str, dtype: torch.dtype, *, activation: str = "none") -> list[Tiles]:
    """What is worth measuring for one pass (``forward``, ``dgrad``, ``wgrad``) of this block, whatever M."""
    most = (256 if activation != "gelu" else 128) * 128  # results a program; erf of 256 x 128 spills 136 bytes on sm_90
    block_n, block_k = block
    size = torch.finfo(dtype).bits // 8
    out, reduce = (block_k, block_n) if which == "dgrad" else (block_n, block_k)
    if which == "wgrad":
        pieces = dict.fromkeys(((block_n, block_k), (min(block_n, 64), block_k), (block_n, min(block_k, 64))))
        shapes = [(n, k, m) for n, k in pieces for m in (32, 64, 128)]
    else:
        shapes = [(m, out, r) for m in (16, 64, 128, 256) for r in (32, 64, 128) if r <= reduce] or [
            (m, out, reduce) for m in (16, 64, 128)
        ]
    found = []
    for rows, columns, depth in shapes:
        warps = 8 if rows * columns >= 128 * 128 else 4
        stage = (rows + columns) * depth * size
        stages = [s for s in (3, 4) if s * stage <= 227 * 1024] or [2]
        if rows * columns <= most // (2 if dtype == torch.float32 else 1):
            found += [Tiles(rows, columns, depth, warps, s) for s in stages]
    return found + _resident_tiles(block, which, size, most)


def _resident_tiles(block: tuple[int, int], which: str, size: int, most: int) -> list[Tiles]:
    """Those with TMA, for 16 bits."""
    if size != 2:
        return []
    if which == "wgrad":
        pieces = dict.fromkeys(((min(block[0], 64), block[1]), (block[0], min(block[1], 64))))
        return [Tiles(n, k, 64, 4, stages, 1) for n, k in pieces for stages in (3, 4)]
    out, reduce = (block[1], block[0]) if which == "dgrad" else block
    shapes = ((64, 4, 4, 2), (64, 4, 3, 2), (64, 4, 4, 1), (128, 4, 2, 2), (128, 8, 4, 1), (256, 8, 3, 1))
    shapes = [shape for shape in shapes if shape[0] * out <= min(most, most // 8 * shape[1])]  # of a warp too
    return [Tiles(m, out, min(reduce, 64), warps, stages, residents) for m, warps, stages, residents in shapes]


def launch_product(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    start: Tensor,
    index: Tensor,
    size: tuple[int, int],
    block: tuple[int, int],
    tiles: list[int],
    schedule: Tensor,
    *,
    turned: bool = False,
    packed: bool = False,
    activation: str = "none",
    keep_pre: bool = False,
) -> tuple[Tensor, Tensor]:
    """``[M, O]`` (and what went into the activation) of ``a [M, R]``; ``size`` and ``block`` are (O, R)'s.

    ``b`` is ``[O, R]``, ``[R, O]`` if ``turned``, or blocks of ``[BO, BR]``.
    """
    if Tiles.are_resident(tiles) and tma_reads(a, b, columns=size[0]):
        how = {"turned": turned, "packed": packed, "activation": activation, "keep_pre": keep_pre}
        return launch_resident(a, b, bias, schedule, size, block, tiles, **how)
    if not tiles or Tiles.are_resident(tiles):
        tiles = default_tiles(block, a.shape[0], a.dtype)[0].as_ints()
    rows, out, reduce, warps, stages = tiles
    (m, _), (o, r) = a.shape, size
    b_o, b_r = (0, 1) if packed else (b.stride(1), b.stride(0)) if turned else b.stride()
    c = a.new_empty(m, o)
    pre = torch.empty_like(c) if keep_pre else a.new_empty(0)
    if m == 0:
        return c, pre
    check_tiles(tiles, (out, block[0]), (reduce, block[1]))
    bias = None if bias is None else bias.contiguous()
    wrap_triton(bsr_matmul_kernel)[(ceil_div(m, rows), ceil_div(o, out))](
        a, b, c, bias if bias is not None else c, pre, start, index,
        m, o, r, a.stride(0), a.stride(1), b_o, b_r,
        BLOCK_O=block[0], BLOCK_R=block[1], TILE_M=rows, TILE_O=out, TILE_R=reduce,
        PACKED=packed, EVEN=o % block[0] == 0 and r % block[1] == 0, HAS_BIAS=bias is not None, KEEP_PRE=keep_pre,
        ACTIVATION=activation, PRECISION=fp32_precision(), num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return c, pre


def _launch_wgrad(
    dy: Tensor,
    x: Tensor,
    crow: Tensor,
    col: Tensor,
    row: Tensor,
    shape: tuple[int, int],
    block: tuple[int, int],
    tiles: list[int],
) -> Tensor:
    """The dense gradient ``[N, K]`` of ``dy [M, N]`` and ``x [M, K]``, exactly 0 outside live blocks."""
    with_tma = Tiles.are_resident(tiles) and tma_reads(dy, x)
    if not with_tma and (not tiles or Tiles.are_resident(tiles)):
        tiles = default_tiles(block, dy.shape[0], dy.dtype)[2].as_ints()
    tile_n, tile_k, tile_m, warps, stages = tiles[:5]
    (n, k), (block_n, block_k), m, nnzb = shape, block, dy.shape[0], len(col) - 1
    check_tiles(tiles, (tile_n, block_n), (tile_k, block_k))
    if m == 0 or nnzb == 0:
        return dy.new_zeros(n, k)
    programs = nnzb * (block_n // tile_n) * (block_k // tile_k)
    splits = min(ceil_div(WGRAD_PROGRAMS, programs), MOST_SPLITS)  # not of M, or each M would compile anew
    rows_of_split = ceil_div(ceil_div(m, splits), tile_m) * tile_m
    partial = splits > 1 or with_tma
    grad = dy.new_empty(n, k) if partial else dy.new_zeros(n, k)
    into = dy.new_empty(splits, nnzb, block_n, block_k, dtype=torch.float32) if partial else grad
    if with_tma:
        launch_tma_wgrad(dy, x, into, row, col, rows_of_split, tiles)
    else:
        wrap_triton(bsr_wgrad_kernel)[(programs, splits)](
            dy, x, into, row, col, m, n, k, rows_of_split, nnzb,
            dy.stride(0), dy.stride(1), x.stride(0), x.stride(1),
            BLOCK_N=block_n, BLOCK_K=block_k, TILE_N=tile_n, TILE_K=tile_k, TILE_M=tile_m,
            PARTIAL=partial, PRECISION=fp32_precision(), num_warps=warps, num_stages=stages,
        )  # fmt: skip
    if partial:
        wrap_triton(bsr_wgrad_sum_kernel)[(ceil_div(n, SLICE), ceil_div(k, block_k))](
            into, grad, crow, col, n, k, nnzb,
            SPLITS=splits, BLOCK_N=block_n, BLOCK_K=block_k, TILE_N=SLICE, num_warps=4,
        )  # fmt: skip
    return grad


def _dense_wgrad(dy: Tensor, x: Tensor, crow: Tensor, col: Tensor, block: list[int]) -> Tensor:
    """The same from a dense product, whose dead blocks are then written over: their mask is never expanded."""
    grad = dy.T @ x
    n, k = grad.shape
    wrap_triton(zero_dead_blocks_kernel)[(ceil_div(n, SLICE), ceil_div(k, block[1]))](
        grad, crow, col, n, k, grad.stride(0), grad.stride(1),
        BLOCK_N=block[0], BLOCK_K=block[1], TILE_N=SLICE, num_warps=4,
    )  # fmt: skip
    return grad


def check_tiles(tiles: list[int], *pieces: tuple[int, int]) -> None:
    """Raise ValueError where a tile does not divide its side of the block: it would read beyond it."""
    if any(tile < 1 or side % tile for tile, side in pieces):
        raise ValueError(f"tiles {tiles} do not divide a block: {pieces}")


def reference_bsr_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, activation: str = "none"
) -> Tensor:
    """What :func:`bsr_linear` computes, in plain PyTorch: ``mask`` is the layout's :meth:`BlockLayout.dense_mask`."""
    return activate_reference(F.linear(x, weight.masked_fill(~mask, 0), bias), activation)


@operator("bsr_linear")
def bsr_linear_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    crow: Tensor,
    col: Tensor,
    row: Tensor,
    ccol: Tensor,
    row_t: Tensor,
    schedule: Tensor,
    schedule_t: Tensor,
    block: list[int],
    activation: str,
    keep_pre: bool,
    forward_tiles: list[int],
    dgrad_tiles: list[int],
    wgrad_tiles: list[int],
) -> tuple[Tensor, Tensor]:
    n, k = weight.shape
    if not runs_kernel(x) or forward_tiles == DENSE_PASS:
        if not runs_kernel(x):
            weight = weight.masked_fill(~expand_blocks(row, col, block, (n, k)), 0)
        return activate_and_keep(F.linear(x, weight, bias), activation, keep_pre)
    return launch_product(
        x, weight, bias, crow, col, (n, k), (block[0], block[1]), forward_tiles, schedule,
        activation=activation, keep_pre=keep_pre,
    )  # fmt: skip


@operator("bsr_linear_dgrad")
def bsr_linear_dgrad(
    dy: Tensor, weight: Tensor, row: Tensor, col: Tensor, ccol: Tensor, row_t: Tensor, schedule_t: Tensor,
    block: list[int], tiles: list[int],
) -> Tensor:  # fmt: skip
    n, k = weight.shape
    if not runs_kernel(dy):
        return dy @ weight.masked_fill(~expand_blocks(row, col, block, (n, k)), 0)
    if tiles == DENSE_PASS:
        return dy @ weight
    turned_block = (block[1], block[0])
    return launch_product(dy, weight, None, ccol, row_t, (k, n), turned_block, tiles, schedule_t, turned=True)[0]


@operator("bsr_linear_wgrad")
def bsr_linear_wgrad(
    dy: Tensor, x: Tensor, crow: Tensor, col: Tensor, row: Tensor, shape: list[int], block: list[int],
    tiles: list[int],
) -> Tensor:  # fmt: skip
    n, k = shape
    if not runs_kernel(dy):
        return (dy.T @ x).masked_fill(~expand_blocks(row, col, block, (n, k)), 0)
    if tiles == DENSE_PASS:
        return _dense_wgrad(dy, x, crow, col, block)
    return _launch_wgrad(dy, x, crow, col, row, (n, k), (block[0], block[1]), tiles)


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, *indices, block, activation, _, _, dgrad_tiles, wgrad_tiles = inputs
    needs_x, needs_weight, _ = ctx.needs_input_grad[:3]
    ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None, output[1], *indices)
    ctx.set_materialize_grads(False)
    ctx.shape, ctx.block, ctx.activation = list(weight.shape), block, activation
    ctx.dgrad_tiles, ctx.wgrad_tiles = dgrad_tiles, wgrad_tiles


def _backward(ctx: torch.autograd.function.FunctionCtx, dy: Tensor | None, _: Tensor | None) -> tuple:
    x, weight, pre, crow, col, row, ccol, row_t, _, schedule_t = ctx.saved_tensors
    gradients = linear_gradients(
        dy, pre, ctx.activation, ctx.needs_input_grad[:3],
        lambda dy: bsr_linear_dgrad(dy, weight, row, col, ccol, row_t, schedule_t, ctx.block, ctx.dgrad_tiles),
        lambda dy: bsr_linear_wgrad(dy, x, crow, col, row, ctx.shape, ctx.block, ctx.wgrad_tiles),
    )  # fmt: skip
    return *gradients, *[None] * 13


bsr_linear_forward.register_autograd(_backward, setup_context=_setup_context)


def bsr_linear(
    x: Tensor,
    weight: Tensor,
    layout: BlockLayout,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    tiles: Sequence[Sequence[int]] | None = None,
) -> Tensor:
    """``act(x Wᵀ + b)`` with only the live blocks of W; differentiable in ``x``, ``weight`` and ``bias``.

    Under autocast the three are cast to its dtype first, as by ``F.linear``.

    Args:
        x: ``[..., K]``, fp16, bf16 or fp32, any strides.
        weight: ``[N, K]``, dense storage, any strides. What it holds outside live blocks is not read; where a pass runs
            as a dense product (``tiles``) it must be 0 there.
        layout: which blocks are alive, on the device of ``x``.
        bias: ``[N]``.
        activation: ``none``, ``relu`` or ``gelu`` (exact, by erf).
        tiles: of forward, input gradient and weight gradient, as :meth:`Tiles.as_ints`; :data:`DENSE_PASS` runs that
            pass as a dense product. An empty list, or none, is :func:`default_tiles`.

    Returns:
        ``[..., N]`` of x's dtype, accumulated in fp32. The gradient of ``weight`` is dense, exactly 0 in dead blocks.

    Raises:
        ValueError: shapes, dtypes or devices do not go together.
        TypeError: the layout is none.
    """
    check_activation(activation)
    x, weight, bias = as_autocast_would(x, weight, bias)
    if not isinstance(layout, BlockLayout):
        raise TypeError(f"the layout is what BlockLayout.from_mask makes of a mask, not a {type(layout).__name__}")
    if weight.shape != layout.shape:
        raise ValueError(f"the layout is of a weight of {layout.shape}, and this weight is {tuple(weight.shape)}")
    check_linear(x, layout.shape, bias, index=layout.col, weight=weight)
    rows = x.reshape(-1, x.shape[-1])
    # an empty list is chosen for inside the operator: no guard on M where this is traced
    forward, dgrad, wgrad = map(list, tiles or ([], [], []))
    keep_pre = activation != "none" and torch.is_grad_enabled()
    y, _ = bsr_linear_forward(
        rows, weight, bias, *(getattr(layout, name) for name in ARRAYS), list(layout.block),
        activation, keep_pre, forward, dgrad, wgrad,
    )  # fmt: skip
    return y.reshape(*x.shape[:-1], weight.shape[0])
