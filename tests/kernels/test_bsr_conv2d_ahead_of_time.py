"""What the compiler makes of the block-sparse convolution, for three generations of GPUs, on a machine without one."""

import pytest
import torch
import triton
import triton.language as tl
from triton_ir import only_ir

from sparseticket.kernels.aot import SHARED_LIMIT, compile_ahead
from sparseticket.kernels.bsr_aot import TYPES
from sparseticket.kernels.conv2d import default_tiles
from sparseticket.kernels.conv2d_aot import SIZES, compile_conv2d

MANY = 32 * 56 * 56  # output pixels, enough for the largest tiles


@triton.jit
def dense_conv2d_kernel(
    X, WEIGHT, Y, images, height, width, channels, out_height, out_width, out_channels, pad_h, pad_w,
    TILE_M: tl.constexpr, TILE_O: tl.constexpr, TILE_C: tl.constexpr, KERNEL_W: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """The control: an implicit GEMM of stride 1 over every (tap, input tile) in turn, WEIGHT [O, taps, C]."""
    o_tiles = tl.cdiv(out_channels, TILE_O)
    m = (tl.program_id(0) // o_tiles).to(tl.int64) * TILE_M + tl.arange(0, TILE_M)
    o = tl.program_id(0) % o_tiles * TILE_O + tl.arange(0, TILE_O)
    image, pixel = m // (out_height * out_width), m % (out_height * out_width)
    h, w = pixel // out_width - pad_h, pixel % out_width - pad_w
    x_rows = X + ((image * height + h) * width + w)[:, None] * channels
    weight_columns = WEIGHT + o[None, :].to(tl.int64) * (KERNEL_W * KERNEL_W * channels)
    tiles_c = channels // TILE_C
    acc = tl.zeros((TILE_M, TILE_O), dtype=tl.float32)
    for step in range(0, KERNEL_W * KERNEL_W * tiles_c):
        tap_h, tap_w = step // tiles_c // KERNEL_W, step // tiles_c % KERNEL_W
        c = step % tiles_c * TILE_C + tl.arange(0, TILE_C)
        live = image < images
        if PADDED:
            live = live & (h + tap_h >= 0) & (h + tap_h < height) & (w + tap_w >= 0) & (w + tap_w < width)
        tap = (tap_h * width + tap_w).to(tl.int64) * channels
        a = tl.load(x_rows + (tap + c)[None, :], mask=live[:, None], other=0.0)
        b = tl.load(weight_columns + (step // tiles_c * channels + c)[:, None])
        acc = tl.dot(a, b, acc)
    inside = (image < images)[:, None] & (o < out_channels)[None, :]
    tl.store(Y + m[:, None] * out_channels + o[None, :], acc.to(Y.dtype.element_ty), mask=inside)


def compile_control(tiles, arch, kernel_size):
    return compile_ahead(
        dense_conv2d_kernel,
        SIZES | dict.fromkeys(["X", "WEIGHT", "Y"], TYPES[torch.float16]),
        dict(
            TILE_M=tiles.rows, TILE_O=tiles.out, TILE_C=tiles.reduce, KERNEL_W=kernel_size, PADDED=kernel_size > 1
        ),
        arch=arch, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip


@pytest.mark.parametrize("arch,kernel_size,side", [(80, 3, 128), (90, 3, 128), (120, 3, 128), (90, 1, 64)])
def test_large_tiles_are_pipelined_as_a_dense_loop_and_spill_nothing(arch, kernel_size, side):
    tiles = default_tiles((side, side), MANY, 256, torch.float16)
    ours = compile_conv2d((side, side), tiles, arch, kernel_size=kernel_size)
    assert ours.shared == compile_control(tiles, arch, kernel_size).shared <= SHARED_LIMIT[arch]
    assert ours.spilled == 0
    assert ours.uses_wgmma if arch == 90 else ours.uses_tensor_cores
    assert "cp.async.cg" in ours.ptx, "copies into shared memory are of less than 16 bytes"


def test_small_blocks_with_every_option_use_tensor_cores_and_spill_nothing():
    tiles = default_tiles((16, 16), MANY, 256, torch.float16)
    made = compile_conv2d((16, 16), tiles, 90, stride=2, residual=True, even=False)
    assert made.spilled == 0 and made.uses_tensor_cores and made.shared <= SHARED_LIMIT[120]


def test_a_residual_fits_beside_the_largest_tiles():
    tiles = default_tiles((128, 128), MANY, 256, torch.float16)
    made = compile_conv2d((128, 128), tiles, 90, kernel_size=1, residual=True)
    assert made.spilled == 0 and made.uses_wgmma


def test_fp32_fits_and_spills_nothing():
    made = compile_conv2d((128, 128), default_tiles((128, 128), MANY, 256, torch.float32), 80, torch.float32)
    assert made.spilled == 0 and made.uses_tensor_cores and made.shared <= SHARED_LIMIT[120]


def test_bf16_is_the_same_code_as_fp16():
    tiles = default_tiles((64, 64), MANY, 256, torch.float16)
    with only_ir():
        half, brain = (
            compile_conv2d((64, 64), tiles, 90, dtype, residual=True).ttir for dtype in (torch.float16, torch.bfloat16)
        )
    assert "bf16" in brain and brain.replace("bf16", "f16") == half
