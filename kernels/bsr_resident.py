"""Block-sparse products on Hopper and later: tiles are fetched by TMA, and programs stay for several block rows.

The same sums as by ``bsr.py``'s kernels; prototypes were 1.05 to 1.33 times as fast as those on an H200 (M = 4096,
blocks of 128², bf16). TMA takes a tile with one instruction, where the other kernels' threads compute an address for
every 16 bytes; it also reads zeros beyond a tensor's edges, and writes nothing there.

TMA reads a descriptor of each tensor. From Python the CPU makes it. A traced operator cannot be given one (torch 2.11),
so in compiled code each program makes its own (``ON_DEVICE``), and the CPU has only a kernel to launch. Triton asks for
memory for these: Inductor gives it; a backend of torch.compile that does not needs ``triton.set_allocator``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparseticket.kernels.activation import activate
from sparseticket.kernels.launch import (
    INTERPRETED,
    ceil_div,
    fp32_precision,
    has_compiled_form,
    is_hopper_or_later,
    is_traced,
    wrap_triton,
)
from sparseticket.kernels.schedule import groups_for, groups_of

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # before triton 3.4
    TensorDescriptor = None

ALIGNMENT = 16  # bytes, of a tensor's begin and of its rows
GROUPS_FOR_ANY_M = 4  # where M is a symbol: its value would have to be guarded, and compiled for anew


@triton.jit
def bsr_resident_kernel(
    SCHEDULE,
    A,  # descriptor of [M, R]
    B,  # of the weight, [O, R] or [R, O], or of its packed blocks, [nnzb BLOCK_O, BLOCK_R]
    C,  # of [M, O]
    PRE,  # of what went into the activation, [M, O], where a gradient will need it
    BIAS,
    start_at,  # where lists begin in SCHEDULE
    row_at,
    col_at,
    place_at,
    o_size,
    m_size,  # this and what follows is for ON_DEVICE, where A to PRE are pointers
    r_size,
    stride_a,
    rows_of_b,
    columns_of_b,
    stride_b,
    BLOCK_O: tl.constexpr,
    BLOCK_R: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_R: tl.constexpr,
    PACKED: tl.constexpr,
    TURNED: tl.constexpr,
    ON_DEVICE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    KEEP_PRE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``C[:, o] = act(Σ over live blocks of A[:, r] B[o, r] + bias[o])`` for one tile of M and a group of block rows.

    A row without blocks has an entry at column -1, before the tensors' begin, where TMA reads zeros.
    """
    if ON_DEVICE:
        A = tl.make_tensor_descriptor(A, [m_size, r_size], [stride_a, 1], [TILE_M, TILE_R])
        B = tl.make_tensor_descriptor(
            B,
            [rows_of_b, columns_of_b],
            [stride_b, 1],
            [TILE_R if TURNED else BLOCK_O, BLOCK_O if TURNED else TILE_R],
        )
        C = tl.make_tensor_descriptor(C, [m_size, o_size], [o_size, 1], [TILE_M, BLOCK_O])
        if KEEP_PRE:
            PRE = tl.make_tensor_descriptor(PRE, [m_size, o_size], [o_size, 1], [TILE_M, BLOCK_O])
    ROW, COL, PLACE = SCHEDULE + row_at, SCHEDULE + col_at, SCHEDULE + place_at
    group = tl.program_id(1)
    steps: tl.constexpr = BLOCK_R // TILE_R  # of one block
    start = tl.load(SCHEDULE + start_at + group)
    end = tl.load(SCHEDULE + start_at + group + 1)
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


@triton.jit(do_not_specialize=["nnzb"])  # each mask has another
def bsr_tma_wgrad_kernel(
    ROW,
    COL,
    DY,  # descriptor of [M, N]
    X,  # of [M, K]
    OUT,  # partial sums [splits, nnzb, BN, BK] in fp32
    m_size,
    rows_of_split,
    nnzb,
    n_size,  # this and what follows is for ON_DEVICE, where DY and X are pointers
    k_size,
    stride_dy,
    stride_x,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
    TILE_M: tl.constexpr,
    ON_DEVICE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``dW = dYᵀ X`` for one tile of one live block, over one split of M, which is of whole tiles."""
    if ON_DEVICE:
        DY = tl.make_tensor_descriptor(DY, [m_size, n_size], [stride_dy, 1], [TILE_M, TILE_N])
        X = tl.make_tensor_descriptor(X, [m_size, k_size], [stride_x, 1], [TILE_M, TILE_K])
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
    """True where this device's TMA can fetch tiles of these matrices.

    ``columns`` are those of a result of their dtype that it has to write.
    """
    if not has_tma(tensors[0].device):
        return False
    return columns * tensors[0].element_size() % ALIGNMENT == 0 and all(
        tensor.shape[0] > 0
        and tensor.shape[-1] > 0
        and tensor.stride(-1) == 1
        and tensor.stride(0) >= tensor.shape[-1]  # not expanded over rows
        and tensor.stride(0) * tensor.element_size() % ALIGNMENT == 0
        and _begins_aligned(tensor)
        for tensor in tensors
    )


def _begins_aligned(tensor: Tensor) -> bool:
    """Whether its memory begins as TMA needs it; while traced, by its offset, as there is no address yet.

    Inductor allocates aligned memory, and copies an input that is no longer aligned.
    """
    begin = tensor.storage_offset() * tensor.element_size() if is_traced(tensor) else tensor.data_ptr()
    return begin % ALIGNMENT == 0


def _makes_on_device(*tensors: Tensor) -> bool:
    """Whether the programs of this launch make their descriptors, for which they then have memory."""
    if not has_compiled_form(*tensors):
        return False
    if not INTERPRETED and not any(map(is_traced, tensors)):
        # at each launch: autograd's threads do not see what others set
        triton.set_allocator(lambda size, align, stream: torch.empty(size, dtype=torch.int8, device="cuda"))
    return True


def _given(on_device: bool, tensor: Tensor, tile: list[int]) -> Any:
    """A tensor as a kernel takes it."""
    return tensor if on_device else TensorDescriptor.from_tensor(tensor, tile)


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
    (m, r), o = a.shape, size[0]
    row_tiles = ceil_div(m, rows)
    programs = residents * multiprocessors(a.device)
    groups = groups_for(row_tiles, programs) if isinstance(m, int) else GROUPS_FOR_ANY_M
    c = a.new_empty(m, o)
    pre = torch.empty_like(c) if keep_pre else a.new_empty(0)
    if packed:
        b = b.reshape(-1, block[1])
    on_device = _makes_on_device(a, b, schedule)
    of_c = _given(on_device, c, [rows, out])
    sizes = (m, r, a.stride(0), *b.shape, b.stride(0)) if on_device else (0,) * 6
    wrap_triton(bsr_resident_kernel)[(row_tiles, groups)](
        schedule,
        _given(on_device, a, [rows, reduce]), _given(on_device, b, [reduce, out] if turned else [out, reduce]),
        of_c, _given(on_device, pre, [rows, out]) if keep_pre else of_c, c if bias is None else bias.contiguous(),
        *groups_of(schedule, groups), o, *sizes,
        BLOCK_O=block[0], BLOCK_R=block[1], TILE_M=rows, TILE_R=reduce, PACKED=packed, TURNED=turned,
        ON_DEVICE=on_device, HAS_BIAS=bias is not None, KEEP_PRE=keep_pre, ACTIVATION=activation,
        PRECISION=fp32_precision(), num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return c, pre


def launch_tma_wgrad(
    dy: Tensor, x: Tensor, into: Tensor, row: Tensor, col: Tensor, rows_of_split: int, tiles: list[int]
) -> None:
    """Partial sums of the weight gradient ``[splits, nnzb, BN, BK]``, for tensors that :func:`tma_reads`."""
    tile_n, tile_k, tile_m, warps, stages = tiles[:5]
    splits, nnzb, block_n, block_k = into.shape
    on_device = _makes_on_device(dy, x, row)
    sizes = (dy.shape[1], x.shape[1], dy.stride(0), x.stride(0)) if on_device else (0,) * 4
    wrap_triton(bsr_tma_wgrad_kernel)[(nnzb * (block_n // tile_n) * (block_k // tile_k), splits)](
        row, col, _given(on_device, dy, [tile_m, tile_n]), _given(on_device, x, [tile_m, tile_k]), into,
        dy.shape[0], rows_of_split, nnzb, *sizes,
        BLOCK_N=block_n, BLOCK_K=block_k, TILE_N=tile_n, TILE_K=tile_k, TILE_M=tile_m, ON_DEVICE=on_device,
        PRECISION=fp32_precision(), num_warps=warps, num_stages=stages,
    )  # fmt: skip


@cache
def has_tma(device: torch.device) -> bool:
    """True where this device's kernels can fetch tiles by TMA."""
    if TensorDescriptor is None:
        return False
    return INTERPRETED or is_hopper_or_later(device)


@cache
def multiprocessors(device: torch.device) -> int:
    """How many this GPU has; in the interpreter a few, so that programs stay for several rows there too."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
