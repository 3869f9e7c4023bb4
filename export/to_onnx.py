"""Write a model as a verified ONNX file: trace, fuse or quantize, store, recount the zeros, compare with PyTorch."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import torch
from google.protobuf.message import EncodeError

from sparseticket.errors import RunFailure, UserError
from sparseticket.export import (
    break_even,
    decisions,
    graph,
    half,
    layers,
    native,
    on_task,
    places,
    quantize,
    sparse_op,
    sparse_rewrite,
    sparse_storage,
    verify,
)
from sparseticket.export.loaded_model import LoadedModel
from sparseticket.export.options import Options
from sparseticket.export.prepare import Prepared
from sparseticket.tasks import Task

FILE = "model.onnx"
LARGEST_FILE = 2_000_000_000  # bytes; protobuf ends at 2 GiB
AGREEMENT = 0.9
ALLOWED_DROP = 0.01  # of the task's metric, for floats
ALLOWED_INT8_DROP = 0.03  # for INT8, unless --agreement is given: then what its decisions may


def write_onnx(
    prepared: Prepared, folder: Path, options: Options, *, metadata: Mapping[str, str], task: Task | None
) -> dict[str, Any]:
    """Write ``model.onnx`` (and ``model.onnx.data``) into ``folder``, and return what the report says of it.

    ``metadata`` become the file's ``metadata_props``. ``task`` is measured on, and calibrated with; None where that was
    not asked for.

    Raises:
        UserError: the model cannot be written in this opset or layout.
        RunFailure: the file answers differently from PyTorch, or has other zeros.
    """
    file, model = folder / FILE, prepared.model
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        traced = Path(scratch) / "traced.onnx"
        held, expected, fused = _trace(model, options, traced)
        traced, rewritten = _rewrite(traced, options)
        changed = _change(traced, options, task, model)
        stored = _store(changed, file, options, metadata)
    _check_file(file, options)
    counted = layers.recount(file, held, expected)
    return {
        "opset": options.opset,
        **({"fused": fused} if fused else {}),
        **({"stored_sparse": stored} if stored else {}),
        **({"sparse_op": _sparse_op_report(rewritten, held, options)} if rewritten else {}),
        **_compare(prepared.whole, file, options, task),
        "layers": [layer.report() for layer in counted],
    }


def _trace(
    model: LoadedModel, options: Options, file: Path
) -> tuple[dict[str, places.Place], dict[str, Any], dict[str, int]]:
    """Write the traced, perhaps fused graph; where each layer's weight is, which of it is 0, and what was fused."""
    program = graph.trace(model, options.opset)
    if options.int8 or options.layout == "sparse-op":
        graph.fold_transposed_weights(program)
    held = places.find_weights(program, model)
    expected = places.expected_zeros(program, model.module, held)
    fused = {}
    if options.optimize == "ort":
        fused = graph.fuse(program)
        held = places.find_fused(program, model.module, held)
    graph.write(program, file)
    written = graph.written_opset(file)
    if written != options.opset:
        raise UserError(
            f"this model cannot be written in opset {options.opset}; the nearest that can: --opset {written}."
        )
    return held, expected, fused


def _rewrite(traced: Path, options: Options) -> tuple[Path, list[sparse_rewrite.Decision]]:
    """Linear layers on the sparse operator, if asked for; what is left dense may still be quantized."""
    if options.layout != "sparse-op":
        return traced, []
    model, int8 = onnx.load(traced), options.quantize == "dynamic"
    target = native.target(options.target)
    figures = break_even.figures(target, int8=int8)
    of_convolutions = break_even.figures(target, int8=int8, convolutions=True)
    decisions = sparse_rewrite.rewrite(model, figures, int8=int8, of_convolutions=of_convolutions)
    rewritten = traced.with_name("rewritten.onnx")
    _save(model, rewritten, external=_is_large(model))
    return rewritten, decisions


def _sparse_op_report(
    decisions: list[sparse_rewrite.Decision], held: Mapping[str, places.Place], options: Options
) -> dict[str, Any]:
    names = {place.initializer: name for name, place in held.items()}
    return {
        "target": native.target(options.target),
        "figures": break_even.table()["measured"],
        "layers": [decision.report(names) for decision in decisions],
    }


def _change(traced: Path, options: Options, task: Task | None, model: LoadedModel) -> Path:
    large = sum(file.stat().st_size for file in traced.parent.glob(f"{traced.name}*")) > LARGEST_FILE
    changed = traced.with_name("changed.onnx")
    if options.quantize == "dynamic":
        quantize.dynamic(traced, changed, large=large)
    elif options.quantize == "static":
        assert task is not None  # Options sees to it
        quantize.static(traced, changed, task, model.inputs[0], large=large)
    elif options.dtype == "fp16":
        _save(half.to_half(onnx.load(traced)), changed, external=large)
    else:
        return traced
    return changed


def _store(source: Path, file: Path, options: Options, metadata: Mapping[str, str]) -> list[str]:
    """The last step: sparse storage or the sparse operator's bodies, metadata, external data.

    Returns which weights were stored sparse.
    """
    model = onnx.load(source)
    stored = sparse_storage.store_sparse(model) if options.layout == "sparse-storage" else []
    if options.layout == "sparse-op":
        sparse_op.add_functions(model)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(metadata))
    large = _is_large(model)
    if large and stored:
        raise UserError(f"this model exceeds {LARGEST_FILE / 1e9:g} GB even in sparse storage: leave --layout dense.")
    _save(model, file, external=options.external_data or large)
    return stored


def _is_large(model: onnx.ModelProto) -> bool:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LARGEST_FILE


def _save(model: onnx.ModelProto, file: Path, *, external: bool) -> None:
    try:
        if external:
            onnx.save(model, file, save_as_external_data=True, location=f"{file.name}.data", size_threshold=1024)
        else:
            onnx.save(model, file)
    except (EncodeError, ValueError) as error:
        raise RunFailure(f"the model could not be written as ONNX: {error}") from error


def _check_file(file: Path, options: Options) -> None:
    written = graph.written_opset(file)
    if written != options.opset:
        raise RunFailure(f"opset {options.opset} was asked for, and the file says {written}. Nothing was kept.")
    try:
        onnx.checker.check_model(file, full_check=options.layout != "sparse-storage")  # which it cannot infer
    except Exception as error:
        raise RunFailure(f"the written file is not valid ONNX: {error}. Nothing was kept.") from error


def _compare(model: LoadedModel, file: Path, options: Options, task: Task | None) -> dict[str, Any]:
    least = AGREEMENT if options.agreement is None else options.agreement
    tolerance = verify.tolerance(options, model)
    asked = verify.verify(model, file, None if options.int8 else tolerance)
    report: dict[str, Any] = {
        "max_abs_error": max(one.max_abs_error for one in asked),
        "tolerance": None if options.int8 else asdict(tolerance),
        "shapes": [asdict(one) for one in asked],
    }
    if options.layout == "sparse-op":
        report["library"] = verify.both_worlds(model, file, None if options.int8 else tolerance)
    if options.int8:
        report["agreement"] = {
            "least": least,
            "inputs": "random" if task is None else task.name,
            **decisions.check_decisions(model, file, least, task),
        }
    if task is not None:
        with torch.inference_mode():
            report["task"] = on_task.compare(task, model, file, _allowed_drop(options))
    return report


def _allowed_drop(options: Options) -> float:
    """How much of the task's metric the file may lose, as a fraction: a lower --agreement allows INT8 more."""
    if options.metric_drop is not None:
        return options.metric_drop
    if not options.int8:
        return ALLOWED_DROP
    return ALLOWED_INT8_DROP if options.agreement is None else max(ALLOWED_INT8_DROP, 1 - options.agreement)
