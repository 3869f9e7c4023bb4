"""The command line. What is in the results already is not measured again, so that it may be stopped at any time.

BERT-base, ResNet-50 and the layers have random weights, and the same share of zeros in every layer, where magnitudes
are smallest: nothing here is about accuracy. All of it takes nearly two hours; leave the machine alone
meanwhile.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from rich.console import Console

from sparseticket.bench.machine import describe
from sparseticket.bench.messages import errors_as_messages
from sparseticket.bench.sparse_cpu import cells, networks, table
from sparseticket.bench.sparse_cpu.cells import Cell
from sparseticket.bench.sparse_cpu.measure import measure
from sparseticket.errors import UserError
from sparseticket.export import native
from sparseticket.files import write_json

OUT = Path("bench/results/sparse_cpu.json")


def run(
    asked: Sequence[Cell],
    out: Path,
    *,
    seconds: float,
    python: Path | None = None,
    bert_sizes: dict[str, int] | None = None,
) -> dict[str, Any]:
    """Measure the cells that ``out`` does not have yet, and write it after each."""
    results = _begin(out)
    left = [cell for cell in asked if cell.key not in results["cells"]]
    with tempfile.TemporaryDirectory() as scratch:
        whole = _Whole(Path(scratch), bert_sizes or {})
        for _, group in groupby(left, key=lambda one: (one.network, one.pattern, one.sparsity)):
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                for cell in group:
                    print(cell.key, flush=True)
                    found = _measure(cell, whole, Path(folder), seconds, python)
                    results["cells"][cell.key] = {"cell": vars(cell), "measured": found}
                    write_json(out, results)
    return results


class _Whole:
    """Networks before pruning, made when they are first asked for."""

    def __init__(self, folder: Path, bert_sizes: dict[str, int]) -> None:
        self._folder, self._bert_sizes = folder, bert_sizes

    def bert(self) -> Path:
        file = self._folder / "bert.onnx"
        if not file.exists():
            networks.write_bert(file, **self._bert_sizes)
        return file

    def resnet(self) -> Path:
        file = self._folder / "resnet.onnx"
        if not file.exists():
            networks.write_resnet(file)
        return file

    def layer(self, inputs: int, outputs: int) -> Path:
        file = self._folder / f"{inputs}-{outputs}.onnx"
        networks.write_layer(file, inputs, outputs)
        return file


def _measure(cell: Cell, whole: _Whole, folder: Path, seconds: float, python: Path | None) -> dict[str, Any]:
    if cell.is_bert:
        return measure(
            cell, networks.Files(whole.bert(), folder, cell.pattern, cell.sparsity), _tokens(cell), seconds, python
        )
    if cell.part == "resnet":
        image = np.random.default_rng(1).standard_normal((cell.rows, 3, 224, 224), dtype=np.float32)
        files = networks.Files(whole.resnet(), folder, cell.pattern, cell.sparsity)
        return measure(cell, files, {"x": image}, seconds, None)
    found = {}
    for inputs, outputs in networks.LAYERS if cell.part == "layers" else networks.LAYERS[1:2]:
        own = folder / f"{inputs}-{outputs}"
        own.mkdir(exist_ok=True)
        files = networks.Files(whole.layer(inputs, outputs), own, cell.pattern, cell.sparsity)
        x = np.random.default_rng(1).standard_normal((1, cell.rows, inputs), dtype=np.float32)
        found[f"{inputs}->{outputs}"] = measure(cell, files, {"x": x}, seconds, None)
    return {**found, table.MEAN: table.geometric_mean(found)} if len(found) > 1 else next(iter(found.values()))


def _tokens(cell: Cell) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(1).integers(1, 100, (1, cell.rows))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def _begin(out: Path) -> dict[str, Any]:
    machine = describe(max(cells.THREADS)) | {"isa": native.isa() or native.MISSING}
    if not out.exists():
        return {"machine": machine, "cells": {}}
    results = json.loads(out.read_text(encoding="utf-8"))
    if results["machine"] != machine:
        raise UserError(f"{out} was measured on another machine or with other versions: give another --out.")
    return results


@errors_as_messages()
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m sparseticket.bench.sparse_cpu", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=cells.PARTS, default=cells.PARTS, help="parts of it")
    parser.add_argument("--sparsities", nargs="+", type=float, default=cells.SPARSITIES)
    parser.add_argument("--threads", nargs="+", type=int, default=cells.THREADS)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each candidate of a cell")
    parser.add_argument("--deepsparse", type=Path, help="a Python in whose environment DeepSparse 1.8 is installed")
    parser.add_argument("--out", type=Path, default=OUT, help="added to where it is there")
    given = parser.parse_args(arguments)
    if native.find_library() is None:
        raise SystemExit(f"the library of the sparse operator is {native.MISSING}.")
    onnxruntime.set_default_logger_severity(3)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    asked = list(cells.cells(given.only, given.sparsities, given.threads))
    results = run(asked, given.out, seconds=given.seconds, python=given.deepsparse)
    table.show({cell.key: results["cells"][cell.key] for cell in asked}, Console())
    print(f"Written to {given.out}")


if __name__ == "__main__":
    main()
