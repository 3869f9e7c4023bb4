"""The times of one cell: its candidates take turns, and each is compared with the first."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np

from sparseticket.bench import timing
from sparseticket.bench.alone import measure_alone
from sparseticket.bench.sessions import WITHOUT_LIBRARY, open_session
from sparseticket.bench.sparse_cpu.cells import Cell
from sparseticket.bench.sparse_cpu.networks import Files
from sparseticket.bench.sparse_cpu.peer import DEEPSPARSE, DeepSparse

DENSE, DENSE_INT8, SPARSE, SPARSE_INT8 = "dense", "dense int8", "sparse", "sparse int8"
LOADS = 3  # of each file, in turns


def measure(
    cell: Cell, files: Files, feeds: dict[str, np.ndarray], seconds: float, python: Path | None
) -> dict[str, Any]:
    """Records by candidate: percentiles in milliseconds, bytes of the file, and the speed-up over the first of them.

    ``python`` runs DeepSparse; None leaves it out.
    """
    if cell.part == "load":
        return _load(files, feeds)
    candidates = {
        "layers": {DENSE: files.dense, DENSE_INT8: files.dense_int8, SPARSE: files.sparse},
        "lengths": {DENSE: files.dense, SPARSE: files.sparse},
        "resnet": {DENSE: files.dense, SPARSE: files.sparse},
        "bert": {DENSE: files.dense, DENSE_INT8: files.dense_int8, SPARSE: files.sparse},
        "int8": {DENSE_INT8: files.dense_int8, DENSE: files.dense, SPARSE_INT8: lambda: files.sparse(int8=True)},
    }[cell.part]
    made = {name: make() for name, make in candidates.items()}
    sessions = {name: open_session("onnxruntime", file, "cpu", feeds, cell.threads) for name, file in made.items()}
    timed = [timing.Timed(name, one.call, one.synchronize) for name, one in sessions.items()]
    if python is None or cell.part != "bert":
        return _times(timed, made, seconds)
    with DeepSparse(python, files.for_deepsparse(), feeds, cell.threads) as peer:
        return _times([*timed, timing.Timed(DEEPSPARSE, peer.call)], made, seconds)


def _times(timed: list[timing.Timed], made: dict[str, Path], seconds: float) -> dict[str, Any]:
    samples = timing.interleave(timed, seconds=seconds * len(timed))
    records = {}
    for one, times in zip(timed, samples, strict=True):
        ratio = timing.speedup(samples[0], times)
        records[one.name] = {
            **timing.percentiles(times),
            "n": int(times.size),
            "speedup": ratio.median,
            "speedup_low": ratio.low,
            "speedup_high": ratio.high,
            **({"bytes": made[one.name].stat().st_size} if one.name in made else {}),
        }
    return records


def _load(files: Files, feeds: dict[str, np.ndarray]) -> dict[str, Any]:
    """Milliseconds to load and peak memory, medians, each in processes of their own."""
    asked = {
        DENSE: ("onnxruntime", files.dense()),
        SPARSE: ("onnxruntime", files.sparse()),
        "sparse, no library": (WITHOUT_LIBRARY, files.sparse()),
    }
    found: dict[str, list[Any]] = {name: [] for name in asked}
    for _ in range(LOADS):
        for name, (runtime, file) in asked.items():
            file.read_bytes()  # a cold disk is not its fault
            found[name].append(measure_alone(runtime, file, "cpu", feeds, 1, name=name))
    return {
        name: {
            "load_ms": statistics.median(one.load_ms for one in alone),
            "memory_bytes": statistics.median(one.memory_bytes for one in alone),
            "bytes": asked[name][1].stat().st_size,
        }
        for name, alone in found.items()
    }
