"""Compile every configuration that could run, for three generations of GPUs and without one: ``make aot``.

A configuration that a committed table lists, or that an operator takes by default, has to fit its GPU's shared memory
and to spill no register. One that is only worth measuring may be too large for one of the GPUs (it drops out there), or
spill on one and be the best on another (256 x 128 does on sm_120, not on sm_90): it is named, and measuring decides.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch

from sparseticket.kernels import bitmap, bsr, conv2d, masked, tensor_table
from sparseticket.kernels.aot import FEWEST_ACCUMULATORS, SHARED_LIMIT, Compiled
from sparseticket.kernels.bitmap_aot import compile_bitmap, compile_bitmap_sum
from sparseticket.kernels.blocks import SIDES
from sparseticket.kernels.bsr_aot import compile_product, compile_wgrad, compile_wgrad_sum, compile_zero_dead_blocks
from sparseticket.kernels.conv2d_aot import compile_conv2d
from sparseticket.kernels.dispatch import PASSES, TABLES, Choice, Measured, Table
from sparseticket.kernels.launch import HOPPER
from sparseticket.kernels.masked_aot import compile_masked
from sparseticket.kernels.optimizers_aot import DEFAULTS, KERNELS, compile_optimizer
from sparseticket.kernels.pattern import block_of

ROWS = (16, 32, 512, 4096)  # each another default
DTYPE = torch.float16  # bf16 is the same code, which tests hold
ARCH_OF = {"a100": 80, "h100": 90, "h200": 90, "gh200": 90, "rtx-50": 120, "rtx-pro-6000": 120}  # by a table's name
SHAPE = (4096, 1024)  # of a weight, where candidates depend on it


@dataclass(frozen=True)
class Configuration:
    """One compilation. ``required``: a table lists it or it is a default, so that it has to fit and not to spill."""

    name: str
    arch: int
    compile: Callable[[], Compiled]
    required: bool


@dataclass(frozen=True)
class Verdict:
    """What became of it; ``problem`` is None where all is well."""

    name: str
    problem: str | None
    fails: bool


def judge(one: Configuration) -> Verdict:
    """Compile it, and say what is wrong. A required one fails if it spills or does not fit."""
    name = f"sm_{one.arch} {one.name}"
    try:
        made = one.compile()
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        return Verdict(name, f"does not compile: {text.splitlines()[0]}", True)
    if made.selected_in_flight >= FEWEST_ACCUMULATORS:
        return Verdict(name, "reads results of a product that may still run", True)
    spilled = f"spills {made.spilled} bytes" if made.spilled else None
    if made.shared > SHARED_LIMIT[one.arch]:
        return Verdict(name, f"needs {made.shared >> 10} KB of {SHARED_LIMIT[one.arch] >> 10}", one.required)
    return Verdict(name, spilled, one.required and made.spilled > 0)


def configurations(only: str = "") -> Iterator[Configuration]:
    """Each once: those of tables, then defaults, then candidates; ``only`` is what a name has to contain."""
    seen = set()
    for arch, name, compiler, required in (*_of_tables(), *_defaults(), *_candidates()):
        if (arch, name) not in seen and only in f"sm_{arch} {name}":
            seen.add((arch, name))
            yield Configuration(name, arch, partial(compiler, arch=arch), required)


Found = Iterator[tuple[int, str, Callable[..., Compiled], bool]]


def _everywhere(name: str, compiler: Callable[..., Compiled], required: bool, *, from_hopper: bool = False) -> Found:
    for arch in (arch for arch in SHARED_LIMIT if arch >= 10 * HOPPER or not from_hopper):
        yield arch, name, compiler, required


def _product(
    which: str, block: tuple[int, int], tiles: bsr.Tiles, dtype: torch.dtype, *, on_device: bool = False
) -> tuple[str, Callable]:
    """``forward``, ``dgrad``, ``wgrad``, ``packed`` or ``packed+gelu``."""
    made = " on device" if on_device else ""
    name = f"bsr {which} {block[0]}x{block[1]} {_of(tiles)} {str(dtype)[6:]}{made}"
    how = {"dtype": dtype, "on_device": on_device}
    if which == "wgrad":
        return name, partial(compile_wgrad, block, tiles, **how)
    if which.startswith("packed"):
        which, how = "forward", how | {"packed": True, "activation": which.partition("+")[2] or "none"}
    return name, partial(compile_product, which, block, tiles, **how)


def _convolution(block: tuple[int, int], tiles: bsr.Tiles, kernel: int) -> tuple[str, Callable]:
    name = f"conv2d {kernel}x{kernel} {block[0]}x{block[1]} {_of(tiles)}"
    return name, partial(compile_conv2d, block, tiles, dtype=DTYPE, kernel_size=kernel, residual=True)


def _masked(which: str, tiles: bsr.Tiles, dtype: torch.dtype) -> tuple[str, Callable]:
    return f"masked {which} {_of(tiles)} {str(dtype)[6:]}", partial(compile_masked, which, tiles, dtype=dtype)


def _bitmap(rows: int, launch: bitmap.BitmapLaunch) -> tuple[str, Callable]:
    name = f"bitmap {rows} rows {launch.warps}-{launch.stages}{' overlapping' * launch.overlap}"  # whatever the splits
    return name, partial(compile_bitmap, rows, launch, dtype=DTYPE)


def _bitmap_sum(rows: int, launch: bitmap.BitmapLaunch) -> tuple[str, Callable]:
    name = f"bitmap sum of {launch.splits} {rows} rows{' overlapping' * launch.overlap}"
    return name, partial(compile_bitmap_sum, rows, launch, dtype=DTYPE)


def _defaults() -> Found:
    for m in ROWS:
        for dtype in (DTYPE, torch.float32):
            for which in ("forward", "dgrad"):
                yield from _everywhere(*_masked(which, masked.default_tiles(m, dtype), dtype), True)
            for side in SIDES:
                tiles = bsr.default_tiles((side, side), m, dtype)
                passes = dict(zip(PASSES, tiles, strict=True)) | {"packed+gelu": tiles[0]}
                for which, of_pass in passes.items():
                    yield from _everywhere(*_product(which, (side, side), of_pass, dtype), True)
        for side in SIDES:
            tiles = conv2d.default_tiles((side, side), m, 1024, DTYPE)
            for kernel in (1, 3):
                yield from _everywhere(*_convolution((side, side), tiles, kernel), True)
    for side in SIDES:
        for splits in range(1, bsr.MOST_SPLITS + 1):
            found = partial(compile_wgrad_sum, (side, side), splits, dtype=DTYPE)
            yield from _everywhere(f"bsr sum of {splits} {side}x{side} float16", found, True)
        zeros = partial(compile_zero_dead_blocks, (side, side), dtype=DTYPE)
        yield from _everywhere(f"bsr zeros {side}x{side} float16", zeros, True)
    for rows in (16, bitmap.MOST_ROWS):
        for overlap, splits in product((0, 1), (1, bitmap.MOST_SPLITS // 2, bitmap.MOST_SPLITS)):
            launch = bitmap.default_launch(*SHAPE, DTYPE)._replace(splits=splits, overlap=overlap)
            for one in (_bitmap(rows, launch), _bitmap_sum(rows, launch)):
                yield from _everywhere(*one, True, from_hopper=overlap == 1)
    for name, chunking in DEFAULTS.items():
        yield from _everywhere(*_optimizer(name, chunking), True)


def _candidates() -> Found:
    for side in SIDES:
        block = (side, side)
        for which in PASSES:
            for tiles in bsr.candidate_tiles(block, which, DTYPE):
                yield from _candidate_product(which, block, tiles)
        for activation, which in (("none", "packed"), ("gelu", "packed+gelu")):
            for tiles in bsr.candidate_tiles(block, "forward", DTYPE, activation=activation):
                yield from _candidate_product(which, block, tiles)
        for tiles in conv2d.candidate_tiles(block, DTYPE):
            yield from _everywhere(*_convolution(block, tiles, 3), False)
    for tiles in masked.candidate_tiles(DTYPE):
        for which in ("forward", "dgrad"):
            yield from _everywhere(*_masked(which, tiles, DTYPE), False)
    for launch in bitmap.candidate_launches(*SHAPE, DTYPE):
        for rows in (16, bitmap.MOST_ROWS):
            yield from _everywhere(*_bitmap(rows, launch), False)
    for name in KERNELS:
        for chunking in tensor_table.candidates():
            yield from _everywhere(*_optimizer(name, chunking), False)


def _candidate_product(which: str, block: tuple[int, int], tiles: bsr.Tiles) -> Found:
    tma = tiles.residents > 0
    for on_device in (False, True) if tma else (False,):
        yield from _everywhere(*_product(which, block, tiles, DTYPE, on_device=on_device), False, from_hopper=tma)


def _optimizer(name: str, chunking: tensor_table.Chunking) -> tuple[str, Callable]:
    return f"{name} {chunking.chunk}-{chunking.num_warps}", partial(compile_optimizer, name, chunking)


def _of_tables() -> Found:
    for path in sorted(TABLES.glob("*.json")):
        arch = next((arch for part, arch in ARCH_OF.items() if part in path.stem), None)
        for cell in Table.load(path).cells:
            if cell.choice != Choice() and cell.best.tiles:
                for name, compiler in _of_cell(cell):
                    yield from ((a, name, compiler, True) for a in ([arch] if arch else SHARED_LIMIT))


def _of_cell(cell: Measured) -> Iterator[tuple[str, Callable]]:
    """A kernel that was picked with tiles of its own; the defaults are compiled anyway."""
    kernel, dtype, block = cell.best.kernel, getattr(torch, cell.case.dtype), block_of(cell.case.pattern.split()[0])
    if kernel == "bitmap":
        rows, launch = 16 if cell.m <= 16 else bitmap.MOST_ROWS, bitmap.BitmapLaunch(*cell.best.tiles)
        yield from (_bitmap(rows, launch), _bitmap_sum(rows, launch))
    elif kernel == "bsr_conv2d":
        yield _convolution(block, bsr.Tiles(*cell.best.tiles), int(cell.case.pattern.split()[1][0]))
    elif kernel in ("bsr_packed", "bsr_linear"):
        gelu = "+gelu" if cell.case.epilogue.endswith("gelu") else ""
        which = f"packed{gelu}" if kernel == "bsr_packed" else cell.case.which
        tiles = bsr.Tiles(*cell.best.tiles)
        on_device = tiles.residents > 0 and cell.case.launched == "compiled"
        yield _product(which, block, tiles, dtype, on_device=on_device)


def _of(tiles: bsr.Tiles) -> str:
    return "-".join(map(str, tiles.as_ints()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile on all cores; print what is wrong; exit with 1 where that must not be."""
    parser = argparse.ArgumentParser(prog="python -m sparseticket.kernels.aot_check", description=__doc__)
    parser.add_argument("--only", default="", help="what a configuration's name has to contain, as 'sm_90 conv2d'")
    given = parser.parse_args(arguments)
    todo = list(configurations(given.only))
    failed = 0
    processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for verdict in pool.map(judge, todo):
            if verdict.problem:
                print(f"{'FAILS' if verdict.fails else 'candidate'}: {verdict.name}: {verdict.problem}", flush=True)
            failed += verdict.fails
    print(f"{len(todo)} configurations compiled, {failed} fail")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
