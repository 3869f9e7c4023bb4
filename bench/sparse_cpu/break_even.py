"""Measure ``export/break_even.json``: from which density on the sparse operator is faster than dense, on this machine.

For each instruction set that this CPU has (in a process of its own), pattern and density: the layers of BERT-base at
128 rows in one thread, sparse against dense in turns, the geometric mean. Where it wins at 30 % density, the fewest
rows from which on it always does. About a quarter of an hour; leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sparseticket.bench import timing
from sparseticket.bench.machine import describe
from sparseticket.bench.sessions import open_session
from sparseticket.bench.sparse_cpu.networks import LAYERS, Files, write_convolution, write_layer
from sparseticket.export import native
from sparseticket.export.break_even import TABLE
from sparseticket.files import write_json

DENSITIES = (0.7, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
PATTERNS = {"fp32": ("1x1", "2x1", "4x1", "8x1"), "convolution": ("1x1", "2x1", "4x1", "8x1"), "int8": ("4x1", "4x4")}
CONVOLUTIONS = (  # channels, outputs, kernel, stride, size of the image: of ResNet-50's four stages
    (64, 64, 3, 1, 56),
    (256, 64, 1, 1, 56),
    (128, 128, 3, 1, 28),
    (256, 256, 3, 2, 28),
    (1024, 256, 1, 1, 14),
    (512, 512, 3, 1, 7),
    (512, 2048, 1, 1, 7),
)
INSTRUCTION_SETS = {"avx2": "avx2", "avx512": "avx512", "avx512-vnni": "vnni"}  # of the library: of the table
WINS = 1.03  # as the kernels' dispatcher asks for
TYPICAL = 0.3  # density at which the fewest rows are found


def speedups(pattern: str, density: float, rows: int | None, *, int8: bool, seconds: float) -> float:
    """How many times as fast as dense (int8: as dense INT8) the operator is: layers of BERT-base, or of ResNet-50.

    ``rows`` of x; None are convolutions.
    """

    def pair(files: Files) -> tuple[Path, Path]:
        return (files.dense_int8() if int8 else files.dense()), files.sparse(int8=int8)

    return _compare(pair, pattern, density, rows, seconds)


def _compare(
    pair: Callable[[Files], tuple[Path, Path]], pattern: str, density: float, rows: int | None, seconds: float
) -> float:
    """How many times as fast as its first file a pair's second is: the geometric mean over the layers."""
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, (write, sizes, shape) in enumerate(_layers(rows)):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            write(folder / "whole.onnx", *sizes)
            files = Files(folder / "whole.onnx", folder, pattern, 1 - density)
            x = {"x": np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}
            sessions = [open_session("onnxruntime", file, "cpu", x, 1) for file in pair(files)]
            timed = [timing.Timed("", one.call) for one in sessions]
            found.append(timing.speedup(*timing.interleave(timed, seconds=seconds)).median)
    return float(np.exp(np.mean(np.log(found))))


def _layers(rows: int | None) -> Iterator[tuple[Callable[..., None], tuple[int, ...], tuple[int, ...]]]:
    """What writes a layer, its sizes, and the shape of x; convolutions where there are no ``rows``."""
    if rows is None:
        for *sizes, image in CONVOLUTIONS:
            yield write_convolution, tuple(sizes), (1, sizes[0], image, image)
    else:
        for inputs, outputs in LAYERS:
            yield write_layer, (inputs, outputs), (1, rows, inputs)


def of_convolutions(pattern: str, seconds: float) -> dict[str, Any]:
    """What the table says of ``pattern`` in convolutions: one image, no number of rows."""
    return _entry({d: speedups(pattern, d, None, int8=False, seconds=seconds) for d in DENSITIES})


def _entry(speedup: dict[float, float]) -> dict[str, Any]:
    return {"break_even": _break_even(speedup), "speedup": {str(d): round(s, 2) for d, s in speedup.items()}}


def figures(pattern: str, *, int8: bool, seconds: float) -> dict[str, Any]:
    """What the table says of ``pattern``."""
    speedup = {d: speedups(pattern, d, 128, int8=int8, seconds=seconds) for d in DENSITIES}
    return _entry(speedup) | _rows(
        {rows: speedups(pattern, TYPICAL, rows, int8=int8, seconds=seconds) for rows in ROWS}
        if speedup[TYPICAL] >= WINS
        else {}
    )


def _break_even(speedup: dict[float, float]) -> float:
    """The largest density at which it wins, on straight lines of the logarithms; 0 where it never does."""
    known = sorted(speedup)
    fine = np.exp(np.linspace(np.log(known[0]), np.log(known[-1]), 1000))
    wins = np.exp(np.interp(np.log(fine), np.log(known), np.log([speedup[d] for d in known]))) >= WINS
    return 0.0 if not wins.any() else round(float(fine[wins].max()), 2)


def _rows(speedup: dict[int, float]) -> dict[str, int]:
    """The fewest rows from which on it wins, where it does not at any number of them."""
    losing = [rows for rows, one in speedup.items() if one < 1]
    return {"rows": next(rows for rows in ROWS if rows > max(losing))} if losing and max(losing) < ROWS[-1] else {}


def measure_here(seconds: float) -> dict[str, Any]:
    """By kind of values and pattern, on the instruction set that this process uses."""
    kind = "int8" if native.isa() == "avx512-vnni" else "fp32"  # whose fp32 is that of avx512
    found = {kind: {name: figures(name, int8=kind == "int8", seconds=seconds) for name in PATTERNS[kind]}}
    if kind == "fp32":
        found["convolution"] = {name: of_convolutions(name, seconds) for name in PATTERNS["convolution"]}
    else:
        both = _compare(lambda files: (files.dense(), files.dense_int8()), "1x1", 1.0, 128, seconds)
        found["dense_int8"] = round(both, 2)
    return found


def _measured(isa: str, seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-m", __spec__.name, "--here", "--seconds", str(seconds)]
    found = subprocess.run(command, env=os.environ | {"SPARSETICKET_ISA": isa}, stdout=subprocess.PIPE, check=True)
    return json.loads(found.stdout)


def _available() -> Iterator[str]:
    fastest = native.isa()
    for isa in INSTRUCTION_SETS:
        yield isa
        if isa == fastest:
            return


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m sparseticket.bench.sparse_cpu.break_even", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each pair of files")
    parser.add_argument("--here", action="store_true", help="only this process's instruction set; printed as JSON")
    given = parser.parse_args()
    if given.here:
        print(json.dumps(measure_here(given.seconds)))
        return
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    for isa in _available():
        print(isa, flush=True)
        for kind, measured in _measured(isa, given.seconds).items():
            table[kind][INSTRUCTION_SETS[isa]] = measured
    table["measured"] = {"what": "128 rows, 1 thread, layers of BERT-base", **describe(1)}
    write_json(TABLE, table)


if __name__ == "__main__":
    main()
