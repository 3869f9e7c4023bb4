"""Compile the kernels for few rows without a GPU."""

from __future__ import annotations

import torch

from sparseticket.kernels.aot import Compiled, compile_ahead
from sparseticket.kernels.bitmap import (
    SUMMED_ROWS,
    SUMMED_TOGETHER,
    BitmapLaunch,
    bitmap_matmul_kernel,
    bitmap_sum_kernel,
)
from sparseticket.kernels.bsr_aot import TYPES
from sparseticket.kernels.fours import WARPS


def compile_bitmap(
    rows: int, launch: BitmapLaunch, arch: int, dtype: torch.dtype = torch.float16, *, precision: str = "tf32"
) -> Compiled:
    """The product for up to ``rows`` (16 or 64) aligned rows, the same whatever the number of splits."""
    sizes = ("m_size", "k_size", "blocks", "k_tiles", "tiles_of_split", "stride_xm")
    pointers = dict.fromkeys(["X", "LEADING", "COLUMNS_OF_X"], TYPES[dtype])
    return compile_ahead(
        bitmap_matmul_kernel,
        dict.fromkeys(sizes, "i32") | pointers | {"POSITIONS": "*u8", "PARTIALS": "*fp32"},
        dict(TILE_M=rows, EVEN=True, PRECISION=precision, OVERLAPS=launch.overlap == 1),
        arch=arch, num_warps=launch.warps, num_stages=launch.stages, ones=("stride_xk",),
    )  # fmt: skip


def compile_bitmap_sum(rows: int, launch: BitmapLaunch, arch: int, dtype: torch.dtype = torch.float16) -> Compiled:
    """The second pass over all splits, with bias and GELU."""
    pointers = dict.fromkeys(["COLUMNS_OF_X", "REST", "OUT", "BIAS"], TYPES[dtype])
    others = {"PARTIALS": "*fp32", "COLUMNS": "*i32", "STARTS": "*i64"}
    tiles = dict(SPLITS=launch.splits, TILE_M=rows, TILE_N=SUMMED_ROWS, TOGETHER=SUMMED_TOGETHER)
    return compile_ahead(
        bitmap_sum_kernel,
        dict.fromkeys(("m_size", "n_size", "rows"), "i32") | pointers | others,
        tiles | dict(HAS_BIAS=True, ACTIVATION="gelu", OVERLAPS=launch.overlap == 1),
        arch=arch, num_warps=WARPS, num_stages=3,
    )  # fmt: skip
