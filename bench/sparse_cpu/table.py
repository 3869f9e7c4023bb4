"""The measured cells beside what was wanted."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

from rich.console import Console
from rich.table import Table

from sparseticket.bench.sparse_cpu.cells import Cell
from sparseticket.bench.sparse_cpu.measure import SPARSE, SPARSE_INT8

MEAN = "geometric mean"


def geometric_mean(by_layer: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of several layers' speed-ups, by candidate."""
    names = next(iter(by_layer.values()))
    return {
        name: {"speedup": prod(one[name]["speedup"] for one in by_layer.values()) ** (1 / len(by_layer))}
        for name in names
    }


def show(cells: dict[str, Any], console: Console) -> None:
    """Print a line for each cell: the times and speed-ups of all, and the mark of the sparse one."""
    speeds = Table(title="against the first of each line, in ONNX Runtime on this CPU")
    for heading in ("cell", "candidates", "wanted"):
        speeds.add_column(heading)
    for key, found in cells.items():
        speeds.add_row(key, "\n".join(_candidates(found)), _wanted(Cell(**found["cell"]), found["measured"]))
    console.print(speeds)


def _candidates(found: dict[str, Any]) -> Iterator[str]:
    measured = found["measured"]
    for name, one in measured.get(MEAN, measured).items():
        if "load_ms" in one:
            yield f"{name}: loads in {one['load_ms'] / 1000:.2f} s, {one['memory_bytes'] / 1e6:.0f} MB at its peak"
        elif "p50_ms" in one:
            interval = f"{one['speedup_low']:.2f}-{one['speedup_high']:.2f}"
            yield f"{name}: {one['p50_ms']:.2f} ms, {one['speedup']:.2f}x ({interval})"
        else:
            yield f"{name}: {one['speedup']:.2f}x ({MEAN})"


def _wanted(cell: Cell, measured: dict[str, Any]) -> str:
    if cell.part == "load":
        dense, without = measured["dense"], measured["sparse, no library"]
        held = without["load_ms"] <= 3000 and without["memory_bytes"] <= 2 * dense["memory_bytes"]
        return f"no library: 3 s, 2x dense's memory {'(held)' if held else '(missed)'}"
    mark = cell.mark
    if mark is None:
        return ""
    candidates = measured.get(MEAN, measured)
    found = candidates[SPARSE if SPARSE in candidates else SPARSE_INT8]["speedup"]
    return f"{mark:g}x {'(held)' if found >= mark else '(missed)'}"
