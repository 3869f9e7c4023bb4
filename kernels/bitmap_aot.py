"""Compile the product over a bitmap weight without a GPU."""

from __future__ import annotations

import torch

from sparseticket.kernels.aot import Compiled, compile_ahead
from sparseticket.kernels.bitmap import BitmapLaunch, bitmap_matmul_kernel
from sparseticket.kernels.bsr_aot import TYPES


def compile_bitmap(
    rows: int, launch: BitmapLaunch, arch: int, dtype: torch.dtype = torch.float16, *, precision: str = "tf32"
) -> Compiled:
    """The product for up to ``rows`` (16 or 64) aligned rows; with several splits, the one that stores sums."""
    partial = launch.splits > 1
    sizes = ("m_size", "n_size", "k_size", "k_tiles", "tiles_of_split", "stride_xm")
    pointers = dict.fromkeys(["X", "VALUES", "OUT", "BIAS"], TYPES[dtype])
    places = {"BITMAP": "*i64", "OFFSETS": "*i16", "STARTS": "*i64"} | ({"OUT": "*fp32"} if partial else {})
    return compile_ahead(
        bitmap_matmul_kernel,
        dict.fromkeys(sizes, "i32") | pointers | places,
        dict(TILE_M=rows, EVEN=True, HAS_BIAS=True, PARTIAL=partial, ACTIVATION="gelu", PRECISION=precision),
        arch=arch, num_warps=launch.warps, num_stages=launch.stages, ones=("stride_xk",),
    )  # fmt: skip
