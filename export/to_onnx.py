"""Export a trained ticket to ONNX: trace, write, recount the zeros, compare with PyTorch, and only then keep it."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
import transformers
from torch import nn

import sparseticket
from sparseticket.errors import UserError
from sparseticket.export import graph, layers, verify
from sparseticket.export.against_ticket import check_under_ticket
from sparseticket.export.loaded_model import LoadedModel, load
from sparseticket.export.shrink import shrink
from sparseticket.export.source import resolve
from sparseticket.files import replace_folder, write_json

LOWEST_OPSET, HIGHEST_OPSET = 17, 25  # at 26, torch writes a file that is labelled 18 and that ONNX Runtime rejects
LAYOUTS = ("dense", "shrunk")
REPORT = "export_report.json"
ZEROS_NOTE = (
    "Zeros alone do not make ONNX Runtime faster: it multiplies by them (measured 1.01x at 90 % zeros on a CPU). "
    "A smaller model (whole heads or channels removed) or INT8 would."
)


def export_onnx(
    source: Path | None = None,
    out: Path | None = None,
    *,
    layout: str = "dense",
    opset: int = 20,
    atol: float = 1e-4,
    rtol: float | None = None,
    ticket: Path | None = None,
) -> dict[str, Any]:
    """Write ``model.onnx``, the files it is deployed with and ``export_report.json`` into ``out``.

    Args:
        source: a run, round, ticket in its round, or model folder; None is the newest finished run in ``runs``.
        out: a folder to make, or one that an export made; by default ``onnx`` inside the source.
        layout: "dense" (zeros included) or "shrunk" (dead heads, neurons and channels removed).
        opset: version of ONNX's operators, 17 to 25.
        atol: largest absolute difference to PyTorch, in units of the output.
        rtol: largest relative difference on top of it; None is 0 for text and 1e-4 for vision (logits of an untrained
            ResNet-50 reach 390, and fp32 has no more digits).
        ticket: refuse a model that is not under this ticket; by default the source, where that is a ticket.

    Returns:
        The report, as written.

    Raises:
        UserError: a bad option, or a source that cannot be exported.
        RunFailure: the file answers differently from PyTorch, has other zeros, or cannot be written; ``out`` is then
            as it was before.
    """
    _check_options(layout, opset, atol, rtol)
    found = resolve(source)
    out = (out or found.home / "onnx").absolute()
    _check_out(out)
    model = load(found.model)
    if ticket or found.ticket:
        check_under_ticket(model.module, ticket or found.ticket)
    if rtol is None:
        rtol = 1e-4 if model.kind == "vision" else 0.0
    tolerance = verify.Tolerance(atol, rtol)
    whole = model
    if layout == "shrunk":
        model = replace(model, module=_smaller(model.module, found.label))
    with replace_folder(out) as folder:
        folder.mkdir()
        report = {
            "source": found.label,
            "format": "onnx",
            "layout": layout,
            **_export(model, folder, opset, tolerance, whole),
        }
        write_json(folder / REPORT, report)
    return report


def _smaller(module: nn.Module, label: str) -> nn.Module:
    shrunk = shrink(module)
    if not shrunk.is_smaller:
        raise UserError(
            f"{label} has no head, neuron or channel that nothing reads: --layout shrunk has nothing to remove. "
            "A ticket found with --pattern heads+neurons or channels has, and --layout dense takes any."
        )
    return shrunk.module


def _export(
    model: LoadedModel, folder: Path, opset: int, tolerance: verify.Tolerance, whole: LoadedModel
) -> dict[str, Any]:
    """``model`` is written; ``whole`` is the same before anything was removed, and what the file must answer like."""
    file = folder / "model.onnx"
    program = graph.trace(model, opset)
    holders = layers.find_weights(program, model.module)
    expected = layers.expected_zeros(program, model.module, holders)
    graph.write(program, file)
    del program  # it holds every weight once more

    written = graph.written_opset(file)
    if written != opset:
        raise UserError(f"this model cannot be written in opset {opset}; the nearest that can: --opset {written}.")
    counted = layers.recount(file, holders)
    layers.check(counted, expected)
    asked = verify.verify(whole, file, tolerance)
    for name, content in model.companions.items():
        (folder / name).write_bytes(content)
    return {
        "opset": written,
        "max_abs_error": max(one.max_abs_error for one in asked),
        "tolerance": asdict(tolerance),
        "inputs": list(model.inputs),
        "outputs": list(model.outputs),
        "layers": [{**asdict(layer), "sparsity": layer.sparsity} for layer in counted],
        "files": [{"name": item.name, "bytes": item.stat().st_size} for item in sorted(folder.iterdir())],
        "shapes": [asdict(one) for one in asked],
        "notes": [ZEROS_NOTE] if _is_sparse(counted) else [],
        "versions": {
            "sparseticket": sparseticket.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
    }


def _is_sparse(counted: list[layers.Layer]) -> bool:
    return sum(layer.zeros for layer in counted) >= 0.01 * sum(layer.weights for layer in counted)


def _check_options(layout: str, opset: int, atol: float, rtol: float | None) -> None:
    if layout not in LAYOUTS:
        raise UserError(f"--layout {layout} cannot be written: choose {' or '.join(LAYOUTS)}.")
    if not LOWEST_OPSET <= opset <= HIGHEST_OPSET:
        raise UserError(f"--opset {opset} cannot be written: choose one from {LOWEST_OPSET} to {HIGHEST_OPSET}.")
    for name, value in (("--atol", atol), ("--rtol", rtol)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise UserError(f"{name} {value} is no tolerance: give a number that is 0 or more.")


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, and an export is a folder: choose another OUT.")
    if out.is_dir() and any(out.iterdir()) and not (out / REPORT).is_file():
        raise UserError(f"{out} holds something that no export wrote: choose another OUT, or empty it yourself.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be made ({error.strerror or error}): choose another OUT.") from error
