"""The dense product that a sparse kernel's pipelining is compared with: the same tiles, no indices."""

import triton
import triton.language as tl


@triton.jit
def dense_matmul_kernel(
    A, B, C, m_size, o_size, r_size, stride_am, stride_ar, stride_bo, stride_br,
    TILE_M: tl.constexpr, TILE_O: tl.constexpr, TILE_R: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * TILE_M + tl.arange(0, TILE_M)
    o = tl.program_id(1) * TILE_O + tl.arange(0, TILE_O)
    r_in_tile = tl.arange(0, TILE_R)
    acc = tl.zeros((TILE_M, TILE_O), dtype=tl.float32)
    for begin in range(0, r_size, TILE_R):
        r = begin + r_in_tile
        a_tile = A + m[:, None].to(tl.int64) * stride_am + r[None, :] * stride_ar
        a = tl.load(a_tile, mask=(m < m_size)[:, None], other=0.0)
        b = tl.load(B + o[None, :].to(tl.int64) * stride_bo + r[:, None] * stride_br)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    live = (m < m_size)[:, None] & (o < o_size)[None, :]
    tl.store(C + m[:, None].to(tl.int64) * o_size + o[None, :], acc.to(C.dtype.element_ty), mask=live)
