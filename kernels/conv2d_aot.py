"""Compile the block-sparse convolution for given tiles without a GPU."""

from __future__ import annotations

import torch

from sparseticket.kernels.aot import Compiled, compile_ahead
from sparseticket.kernels.bsr import Tiles
from sparseticket.kernels.bsr_aot import TYPES
from sparseticket.kernels.conv2d import bsr_conv2d_kernel

SIZES = dict.fromkeys(
    ["images", "height", "width", "channels", "out_height", "out_width", "out_channels", "pad_h", "pad_w"], "i32"
)


def compile_conv2d(
    block: tuple[int, int],
    tiles: Tiles,
    arch: int,
    dtype: torch.dtype = torch.float16,
    *,
    kernel_size: int = 3,
    stride: int = 1,
    residual: bool = False,
    even: bool = True,
) -> Compiled:
    """Bias and ReLU in the epilogue; padded as ResNets do (3×3 by 1, 1×1 not at all)."""
    return compile_ahead(
        bsr_conv2d_kernel,
        SIZES
        | dict.fromkeys(["X", "VALUES", "Y", "BIAS", "RESIDUAL"], TYPES[dtype])
        | dict.fromkeys(["CROW", "PLACE"], "*i32"),
        dict(
            BLOCK_O=block[0], BLOCK_C=block[1], TILE_M=tiles.rows, TILE_O=tiles.out, TILE_C=tiles.reduce,
            KERNEL_W=kernel_size, STRIDE_H=stride, STRIDE_W=stride, PADDED=kernel_size > 1, EVEN=even,
            HAS_BIAS=True, HAS_RESIDUAL=residual, ACTIVATION="relu", PRECISION="tf32",
        ),
        arch=arch, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
