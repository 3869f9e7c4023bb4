"""Compile the masked product for given tiles without a GPU."""

from __future__ import annotations

import torch

from sparseticket.kernels.aot import Compiled, compile_ahead
from sparseticket.kernels.bsr import Tiles
from sparseticket.kernels.bsr_aot import TYPES
from sparseticket.kernels.masked import masked_matmul_kernel


def compile_masked(
    which: str, tiles: Tiles, arch: int, dtype: torch.dtype = torch.float16, *, precision: str = "tf32"
) -> Compiled:
    """The ``forward`` or ``dgrad`` product of aligned, contiguous tensors, with a bias."""
    forward = which == "forward"
    wide, one = ("stride_wo", "stride_wr") if forward else ("stride_wr", "stride_wo")
    sizes = ("m_size", "o_size", "r_size", "words_a_row", "stride_am", wide)
    pointers = dict.fromkeys(["A", "W", "C", "BIAS", "PRE"], TYPES[dtype]) | {"WORDS": "*i32"}
    return compile_ahead(
        masked_matmul_kernel,
        dict.fromkeys(sizes, "i32") | pointers,
        dict(
            TILE_M=tiles.rows, TILE_O=tiles.out, TILE_R=tiles.reduce, K_IS_SUMMED=forward, EVEN=True, HAS_BIAS=True,
            KEEP_PRE=False, ACTIVATION="none", PRECISION=precision,
        ),
        arch=arch, num_warps=tiles.warps, num_stages=tiles.stages, ones=("stride_ar", one),
    )  # fmt: skip
