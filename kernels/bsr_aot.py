"""Compile the block-sparse kernels for given tiles without a GPU, and the dense control that they are held against."""

from __future__ import annotations

from functools import cache

import torch

from sparseticket.kernels.aot import Compiled, compile_ahead
from sparseticket.kernels.bsr import (
    SLICE,
    Tiles,
    bsr_matmul_kernel,
    bsr_wgrad_kernel,
    bsr_wgrad_sum_kernel,
    zero_dead_blocks_kernel,
)
from sparseticket.kernels.bsr_resident import bsr_resident_kernel, bsr_tma_wgrad_kernel
from sparseticket.kernels.dense_control import dense_matmul_kernel

TYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
SIZES = {"m_size": "i32", "o_size": "i32", "r_size": "i32", "stride_am": "i32"}
STRIDES = {"forward": ("stride_bo", "stride_br"), "dgrad": ("stride_br", "stride_bo")}  # the second one is 1


def compile_product(
    which: str,
    block: tuple[int, int],
    tiles: Tiles,
    arch: int,
    dtype: torch.dtype = torch.float16,
    *,
    packed: bool = False,
    precision: str = "tf32",
    activation: str = "none",
) -> Compiled:
    """The ``forward`` or ``dgrad`` product of aligned, contiguous tensors, with a bias."""
    if tiles.residents:
        return _compile_resident(which, block, tiles, arch, dtype, packed, precision, activation)
    wide, one = STRIDES[which]
    block_o, block_r = block if which == "forward" else block[::-1]
    pointers = dict.fromkeys(["A", "B", "C", "BIAS", "PRE"], TYPES[dtype]) | {"START": "*i32", "INDEX": "*i32"}
    return compile_ahead(
        bsr_matmul_kernel,
        SIZES | pointers | {wide: "i32"},
        dict(
            BLOCK_O=block_o, BLOCK_R=block_r, TILE_M=tiles.rows, TILE_O=tiles.out, TILE_R=tiles.reduce, PACKED=packed,
            EVEN=True, HAS_BIAS=True, KEEP_PRE=False, ACTIVATION=activation, PRECISION=precision,
        ),
        arch=arch, num_warps=tiles.warps, num_stages=tiles.stages, ones=("stride_ar", one),
    )  # fmt: skip


@cache
def compile_dense(which: str, tiles: Tiles, arch: int, dtype: torch.dtype = torch.float16) -> Compiled:
    """The control: the same tiles over a dense weight."""
    wide, one = STRIDES[which]
    return compile_ahead(
        dense_matmul_kernel,
        SIZES | dict.fromkeys("ABC", TYPES[dtype]) | {wide: "i32"},
        dict(TILE_M=tiles.rows, TILE_O=tiles.out, TILE_R=tiles.reduce, PRECISION="tf32"),
        arch=arch, num_warps=tiles.warps, num_stages=tiles.stages, ones=("stride_ar", one),
    )  # fmt: skip


def compile_wgrad(block: tuple[int, int], tiles: Tiles, arch: int, dtype: torch.dtype = torch.float16) -> Compiled:
    """The weight gradient, written straight into the dense gradient; with TMA, its partial sums."""
    if tiles.residents:
        return _compile_tma_wgrad(block, tiles, arch, dtype)
    ints = ("m_size", "n_size", "k_size", "rows_of_split", "nnzb", "stride_dm", "stride_xm")
    pointers = dict.fromkeys(["DY", "X", "OUT"], TYPES[dtype]) | {"ROW": "*i32", "COL": "*i32"}
    return compile_ahead(
        bsr_wgrad_kernel,
        dict.fromkeys(ints, "i32") | pointers,
        dict(
            BLOCK_N=block[0], BLOCK_K=block[1], TILE_N=tiles.rows, TILE_K=tiles.out, TILE_M=tiles.reduce,
            PARTIAL=False, PRECISION="tf32",
        ),
        arch=arch, num_warps=tiles.warps, num_stages=tiles.stages, ones=("stride_dn", "stride_xk"),
    )  # fmt: skip


def compile_wgrad_sum(block: tuple[int, int], splits: int, arch: int, dtype: torch.dtype = torch.float16) -> Compiled:
    """The second pass of a weight gradient over so many splits of M."""
    types = dict.fromkeys(("n_size", "k_size", "nnzb"), "i32") | {
        "PARTIALS": "*fp32",
        "OUT": TYPES[dtype],
        "CROW": "*i32",
        "COL": "*i32",
    }
    constants = dict(SPLITS=splits, BLOCK_N=block[0], BLOCK_K=block[1], TILE_N=SLICE)
    return compile_ahead(bsr_wgrad_sum_kernel, types, constants, arch=arch, num_warps=4, num_stages=3)


def compile_zero_dead_blocks(block: tuple[int, int], arch: int, dtype: torch.dtype = torch.float16) -> Compiled:
    """The zeros behind a dense weight gradient."""
    types = dict.fromkeys(("n_size", "k_size", "stride_n"), "i32") | {
        "GRAD": TYPES[dtype],
        "CROW": "*i32",
        "COL": "*i32",
    }
    constants = dict(BLOCK_N=block[0], BLOCK_K=block[1], TILE_N=SLICE)
    return compile_ahead(
        zero_dead_blocks_kernel, types, constants, arch=arch, num_warps=4, num_stages=1, ones=("stride_k",)
    )


def _compile_resident(
    which: str,
    block: tuple[int, int],
    tiles: Tiles,
    arch: int,
    dtype: torch.dtype,
    packed: bool,
    precision: str,
    activation: str,
) -> Compiled:
    block_o, block_r = block if which == "forward" else block[::-1]
    turned = which == "dgrad"
    of_b = (tiles.reduce, block_o) if turned else (block_o, tiles.reduce)
    of_c = _descriptor(dtype, tiles.rows, block_o)
    return compile_ahead(
        bsr_resident_kernel,
        {"A": _descriptor(dtype, tiles.rows, tiles.reduce), "B": _descriptor(dtype, *of_b), "C": of_c, "PRE": of_c}
        | dict.fromkeys(("START", "ROW", "COL", "PLACE"), "*i32") | {"BIAS": TYPES[dtype], "o_size": "i32"},
        dict(
            BLOCK_O=block_o, BLOCK_R=block_r, TILE_M=tiles.rows, TILE_R=tiles.reduce, PACKED=packed, TURNED=turned,
            HAS_BIAS=True, KEEP_PRE=False, ACTIVATION=activation, PRECISION=precision,
        ),
        arch=arch, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip


def _compile_tma_wgrad(block: tuple[int, int], tiles: Tiles, arch: int, dtype: torch.dtype) -> Compiled:
    pointers = {"DY": _descriptor(dtype, tiles.reduce, tiles.rows), "X": _descriptor(dtype, tiles.reduce, tiles.out)}
    return compile_ahead(
        bsr_tma_wgrad_kernel,
        pointers | {"OUT": "*fp32", "ROW": "*i32", "COL": "*i32"}
        | dict.fromkeys(("m_size", "rows_of_split", "nnzb"), "i32"),
        dict(
            BLOCK_N=block[0], BLOCK_K=block[1], TILE_N=tiles.rows, TILE_K=tiles.out, TILE_M=tiles.reduce,
            PRECISION="tf32",
        ),
        arch=arch, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip


def _descriptor(dtype: torch.dtype, rows: int, columns: int) -> str:
    return f"tensordesc<{TYPES[dtype][1:]}[{rows},{columns}]>"
