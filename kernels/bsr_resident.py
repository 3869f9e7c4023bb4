"""Block-sparse products on Hopper and later: tiles are fetched by TMA, and programs stay for several block rows.

The same sums as by ``bsr.py``'s kernels; prototypes were 1.05 to 1.33 times as fast as those on an H200 (M = 4096,
blocks of 128², bf16). TMA takes a tile with one instruction, where the other kernels' threads compute an address for
every 16 bytes; it also reads zeros beyond a tensor's edges, and writes nothing there. A triton_op, as ours are,
cannot be traced with its descriptors (torch 2.11): what is compiled or exported runs the other kernels.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from sparseticket.kernels.activation import activate
from sparseticket.kernels.launch import INTERPRETED, fp32_precision
from sparseticket.kernels.schedule import groups_for, groups_of

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # before triton 3.4
    TensorDescriptor = None

ALIGNMENT = 16  # bytes, of a tensor's begin and of its rows
WITH_TMA = 9  # compute capability


@triton.jit
def bsr_resident_kernel(
    A,  # descriptor of [M, R]
    B,  # of the weight, [O, R] or [R, O], or of its packed blocks, [nnzb BLOCK_O, BLOCK_R]
    C,  # of [M, O]
    PRE,  # of what went into the activation, [M, O], where a gradient will need it
    BIAS,
    START,
    ROW,
    COL,
    PLACE,
    o_size,
    BLOCK_O: tl.constexpr,
    BLOCK_R: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_R: tl.constexpr,
    PACKED: tl.constexpr,
    TURNED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    KEEP_PRE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``C[:, o] = act(Σ over live blocks of A[:, r] B[o, r] + bias[o])`` for one tile of M and a group of block rows.

    A row without blocks has an entry at column -1, before the tensors' begin, where TMA reads zeros.
    """
    group = tl.program_id(1)
    steps: tl.constexpr = BLOCK_R // TILE_R  # of one block
    start = tl.load(START + group)
    end = tl.load(START + group + 1)
    m = tl.program_id(0) * TILE_M
    acc = tl.zeros((TILE_M, BLOCK_O), dtype=tl.float32)
    row = tl.load(ROW + start)
    col = tl.load(COL + start)
    place = tl.load(PLACE + start)
    for step in range(start * steps, end * steps):
        r_in_block = step % steps * TILE_R
        r = col * BLOCK_R + r_in_block
        a = A.load([m, r])
        if PACKED:
            b = B.load([tl.where(col < 0, -BLOCK_O, place * BLOCK_O), r_in_block]).T
        elif TURNED:
            b = B.load([r, row * BLOCK_O])
        else:
            b = B.load([row * BLOCK_O, r]).T
        row = tl.load(ROW + (step + 1) // steps)  # one ahead: see BlockLayout
        col = tl.load(COL + (step + 1) // steps)
        place = tl.load(PLACE + (step + 1) // steps)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
        of_row = tl.load(ROW + step // steps)  # not carried from above, where the compiler would end the pipeline
        last = ((step + 1) % steps == 0) & (tl.load(ROW + step // steps + 1) != of_row)
        if last:
            first = of_row * BLOCK_O
            y = acc
            if HAS_BIAS:
                o = first + tl.arange(0, BLOCK_O)
                y += tl.load(BIAS + o, mask=o < o_size, other=0.0).to(tl.float32)[None, :]
            if KEEP_PRE:
                PRE.store([m, first], y.to(PRE.dtype))
            C.store([m, first], activate(y, ACTIVATION).to(C.dtype))
            acc = tl.zeros((TILE_M, BLOCK_O), dtype=tl.float32)


@triton.jit
def bsr_tma_wgrad_kernel(
    DY,  # descriptor of [M, N]
    X,  # of [M, K]
    OUT,  # partial sums [splits, nnzb, BN, BK] in fp32
    ROW,
    COL,
    m_size,
    rows_of_split,
    nnzb,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
    TILE_M: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``dW = dYᵀ X`` for one tile of one live block, over one split of M, which is of whole tiles."""
    tiles_n: tl.constexpr = BLOCK_N // TILE_N
    tiles_k: tl.constexpr = BLOCK_K // TILE_K
    block = tl.program_id(0) // (tiles_n * tiles_k)
    tile = tl.program_id(0) % (tiles_n * tiles_k)
    split = tl.program_id(1)
    n_in_block = tile // tiles_k * TILE_N
    k_in_block = tile % tiles_k * TILE_K
    n = tl.load(ROW + block) * BLOCK_N + n_in_block
    k = tl.load(COL + block) * BLOCK_K + k_in_block
    acc = tl.zeros((TILE_N, TILE_K), dtype=tl.float32)
    first = split * rows_of_split
    for m in range(first, tl.minimum(m_size, first + rows_of_split), TILE_M):
        acc = tl.dot(DY.load([m, n]).T, X.load([m, k]), acc, input_precision=PRECISION)
    at = (split.to(tl.int64) * nnzb + block) * (BLOCK_N * BLOCK_K)
    n_places = (n_in_block + tl.arange(0, TILE_N))[:, None] * BLOCK_K
    tl.store(OUT + at + n_places + (k_in_block + tl.arange(0, TILE_K))[None, :], acc)


def tma_reads(*tensors: Tensor, columns: int = 0) -> bool:
    """True where this device's TMA can fetch tiles of these matrices, and nothing is being traced.

    ``columns`` are those of a result of their dtype that it has to write.
    """
    if any(is_fake(tensor) for tensor in tensors) or not has_tma(tensors[0].device):
        return False
    return columns * tensors[0].element_size() % ALIGNMENT == 0 and all(
        0 not in tensor.shape
        and tensor.stride(-1) == 1
        and tensor.stride(0) >= tensor.shape[-1]  # not expanded over rows
        and tensor.stride(0) * tensor.element_size() % ALIGNMENT == 0
        and tensor.data_ptr() % ALIGNMENT == 0
        for tensor in tensors
    )


def launch_resident(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    schedule: Tensor,
    size: tuple[int, int],
    block: tuple[int, int],
    tiles: list[int],
    *,
    turned: bool = False,
    packed: bool = False,
    activation: str = "none",
    keep_pre: bool = False,
) -> tuple[Tensor, Tensor]:
    """What ``bsr.launch_product`` computes; ``turned``: ``b`` is ``[R, O]``. For tensors that :func:`tma_reads`."""
    rows, out, reduce, warps, stages, residents = tiles
    if out != block[0] or reduce < 1 or block[1] % reduce:
        raise ValueError(
            f"resident tiles have to hold a block's {block[0]} columns of results and divide its {block[1]} terms, and "
            f"{tiles} do not"
        )
    (m, _), o = a.shape, size[0]
    row_tiles = triton.cdiv(m, rows)
    groups = groups_for(row_tiles, residents * _multiprocessors(a.device))
    lists = groups_of(schedule, groups)
    c = a.new_empty(m, o)
    pre = torch.empty_like(c) if keep_pre else a.new_empty(0)
    of_c = TensorDescriptor.from_tensor(c, [rows, out])
    of_b = b.reshape(-1, block[1]) if packed else b
    with torch.cuda.device_of(a):
        bsr_resident_kernel[(row_tiles, groups)](
            TensorDescriptor.from_tensor(a, [rows, reduce]),
            TensorDescriptor.from_tensor(of_b, [reduce, out] if turned else [out, reduce]),
            of_c, TensorDescriptor.from_tensor(pre, [rows, out]) if keep_pre else of_c,
            c if bias is None else bias.contiguous(), *lists, o,
            BLOCK_O=block[0], BLOCK_R=block[1], TILE_M=rows, TILE_R=reduce, PACKED=packed, TURNED=turned,
            HAS_BIAS=bias is not None, KEEP_PRE=keep_pre, ACTIVATION=activation, PRECISION=fp32_precision(),
            num_warps=warps, num_stages=stages,
        )  # fmt: skip
    return c, pre


def launch_tma_wgrad(
    dy: Tensor, x: Tensor, into: Tensor, row: Tensor, col: Tensor, rows_of_split: int, tiles: list[int]
) -> None:
    """Partial sums of the weight gradient ``[splits, nnzb, BN, BK]``, for tensors that :func:`tma_reads`."""
    tile_n, tile_k, tile_m, warps, stages = tiles[:5]
    splits, nnzb, block_n, block_k = into.shape
    programs = nnzb * (block_n // tile_n) * (block_k // tile_k)
    with torch.cuda.device_of(dy):
        bsr_tma_wgrad_kernel[(programs, splits)](
            TensorDescriptor.from_tensor(dy, [tile_m, tile_n]), TensorDescriptor.from_tensor(x, [tile_m, tile_k]),
            into, row, col, dy.shape[0], rows_of_split, nnzb,
            BLOCK_N=block_n, BLOCK_K=block_k, TILE_N=tile_n, TILE_K=tile_k, TILE_M=tile_m,
            PRECISION=fp32_precision(), num_warps=warps, num_stages=stages,
        )  # fmt: skip


@cache
def has_tma(device: torch.device) -> bool:
    """True where this device's kernels can fetch tiles by TMA."""
    if TensorDescriptor is None:
        return False
    return INTERPRETED or (device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= WITH_TMA)


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
