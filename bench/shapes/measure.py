"""Measure one cell: export its network, ask the file for its accuracy, time it beside the dense fp32 file."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from sparseticket.bench.runner import bench
from sparseticket.bench.shapes.study import BASELINE, TASK, THREADS, Cell, Study
from sparseticket.export.exporter import REPORT, export_model
from sparseticket.files import read_json, write_json

LENGTH = 128
PROVIDER = "onnxruntime-cpu"
KEPT = (
    "p50_ms",
    "p90_ms",
    "p95_ms",
    "p99_ms",
    "n",
    "load_ms",
    "memory_bytes",
    "speedup",
    "speedup_low",
    "speedup_high",
)


def measure(study: Study, cell: Cell) -> None:
    """Write the cell's JSON: values and sparsities are fractions, sizes bytes, times milliseconds.

    INT8 may decide as it will: how much of the accuracy it loses is what is measured, and no reason to stop.
    """
    begun = time.monotonic()
    export(study, BASELINE)
    report = export(study, cell)
    trained = read_json(study.round(cell) / "metrics.json")
    candidates = [study.export(one) for one in dict.fromkeys((BASELINE, cell))]
    measured = _bench(candidates, study)
    own = [one for one in measured["records"] if one["provider"] == PROVIDER and one["name"] == cell.name]
    shape = cell.shape or study.shapes[0]
    write_json(
        study.result(cell),
        {
            "pattern": cell.pattern,
            "sparsity": cell.sparsity,
            "precision": cell.precision,
            "seed": study.seed,
            "task": TASK,
            "model": Path(study.model).name,
            "training": {"round_length": study.round_length, "steps": trained["steps"]},
            "schedule": study.settings(shape).protocol.schedule if cell.shape else None,
            "metric": report["task"]["metric"],
            "trained_sparsity": trained["sparsity"],
            "trained_value": trained["value"],
            "value": report["task"]["onnx"],
            "layout": report["layout"],
            "bytes": own[0]["bytes"],
            "inputs": measured["inputs"],
            "latency": {str(one["threads"]): {key: one[key] for key in KEPT} for one in own},
            "machine": measured["machine"],
            "seconds": {"training": trained["seconds"], "this": time.monotonic() - begun},
        },
    )


def export(study: Study, cell: Cell) -> dict[str, Any]:
    """The report of the cell's export, which is made where it is not there."""
    out = study.export(cell)
    if (out / REPORT).is_file():
        return read_json(out / REPORT)
    return export_model(
        study.round(cell),
        out,
        layout=cell.shape.layout if cell.shape else "dense",
        quantize="dynamic" if cell.precision == "int8" else "none",
        agreement=0.0 if cell.precision == "int8" else None,
        data=study.data,
    )


def _bench(folders: list[Path], study: Study) -> dict[str, Any]:
    out = folders[-1].with_name(f"bench-{folders[-1].name}")
    try:
        paths = [str(folder) for folder in folders]
        return bench(paths, out, seq_length=[LENGTH], threads=THREADS, seconds=study.seconds)
    finally:
        shutil.rmtree(out, ignore_errors=True)  # what is in it is in the cell's JSON
