"""Compile the block-sparse kernels for given tiles without a GPU."""

from __future__ import annotations

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
    on_device: bool = False,
) -> Compiled:
    """The ``forward`` or ``dgrad`` product of aligned, contiguous tensors, with a bias.

    ``on_device``: with TMA, descriptors are made by the programs, as in compiled code.
    """
    if tiles.residents:
        return _compile_resident(which, block, tiles, arch, dtype, packed, precision, activation, on_device)
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


def compile_wgrad(
    block: tuple[int, int], tiles: Tiles, arch: int, dtype: torch.dtype = torch.float16, *, on_device: bool = False
) -> Compiled:
    """The weight gradient, written straight into the dense gradient; with TMA, its partial sums."""
    if tiles.residents:
        return _compile_tma_wgrad(block, tiles, arch, dtype, on_device)
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
    on_device: bool,
) -> Compiled:
    block_o, block_r = block if which == "forward" else block[::-1]
    turned = which == "dgrad"
    of_b = (tiles.reduce, block_o) if turned else (block_o, tiles.reduce)
    tiles_of = {"A": (tiles.rows, tiles.reduce), "B": of_b, "C": (tiles.rows, block_o), "PRE": (tiles.rows, block_o)}
    given = {name: TYPES[dtype] if on_device else _descriptor(dtype, *tile) for name, tile in tiles_of.items()}
    lists = ("start_at", "row_at", "col_at", "place_at")
    sizes = ("o_size", "m_size", "r_size", "stride_a", "rows_of_b", "columns_of_b", "stride_b")
    return compile_ahead(
        bsr_resident_kernel,
        given | dict.fromkeys((*lists, *sizes), "i32") | {"SCHEDULE": "*i32", "BIAS": TYPES[dtype]},
        dict(
            BLOCK_O=block_o, BLOCK_R=block_r, TILE_M=tiles.rows, TILE_R=tiles.reduce, PACKED=packed, TURNED=turned,
            ON_DEVICE=on_device, HAS_BIAS=True, KEEP_PRE=False, ACTIVATION=activation, PRECISION=precision,
        ),
        arch=arch, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip


def _compile_tma_wgrad(
    block: tuple[int, int], tiles: Tiles, arch: int, dtype: torch.dtype, on_device: bool
) -> Compiled:
    tiles_of = {"DY": (tiles.reduce, tiles.rows), "X": (tiles.reduce, tiles.out)}
    given = {name: TYPES[dtype] if on_device else _descriptor(dtype, *tile) for name, tile in tiles_of.items()}
    sizes = ("m_size", "rows_of_split", "nnzb", "n_size", "k_size", "stride_dy", "stride_x")
    return compile_ahead(
        bsr_tma_wgrad_kernel,
        given | {"OUT": "*fp32", "ROW": "*i32", "COL": "*i32"} | dict.fromkeys(sizes, "i32"),
        dict(
            BLOCK_N=block[0], BLOCK_K=block[1], TILE_N=tiles.rows, TILE_K=tiles.out, TILE_M=tiles.reduce,
            ON_DEVICE=on_device,
            PRECISION="tf32",
        ),
        arch=arch, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip


def _descriptor(dtype: torch.dtype, rows: int, columns: int) -> str:
    return f"tensordesc<{TYPES[dtype][1:]}[{rows},{columns}]>"
