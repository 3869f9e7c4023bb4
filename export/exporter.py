"""Export a trained ticket: what is asked is checked, the model written and verified, and only then kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparseticket.errors import UserError
from sparseticket.export import provenance
from sparseticket.export.options import Options
from sparseticket.export.source import Source, resolve
from sparseticket.files import read_json, refuse_to_lose, replace_folder, write_json

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from sparseticket.export.loaded_model import LoadedModel
    from sparseticket.export.prepare import Prepared
    from sparseticket.export.shrink import Shrunk

REPORT = "export_report.json"
ZEROS_NOTE = (
    "Zeros alone do not make ONNX Runtime faster: it multiplies by them (measured 1.01x at 90 % zeros on a CPU). "
    "A smaller model (whole heads or channels removed), INT8, or --layout sparse-op would."
)
SPARSE_OP_NOTE = (
    "Sparse operators run fast where their library is registered: sparseticket.export.runtime.session(path), or for "
    "your own session options.register_custom_ops_library(sparseticket.export.runtime.library_path()). Elsewhere the "
    "file runs at about dense speed. Quantizers and converters would undo them: export again instead."
)
STORAGE_NOTE = "Sparse storage makes the file smaller, not the model faster; it takes more memory while it loads."


def export_model(
    source: Path | None = None, out: Path | None = None, *, ticket: Path | None = None, **asked: Any
) -> dict[str, Any]:
    """Write a model, the files it is deployed with and ``export_report.json`` into ``out``.

    Args:
        source: a run, round, ticket in its round, or model folder; None is the newest finished run in ``runs``.
        out: a folder to make, or one that an export made; by default named as the format, inside the source.
        ticket: refuse a model that is not under this ticket; by default the one beside the model, where there is one.
        asked: the fields of :class:`sparseticket.export.options.Options`.

    Returns:
        The report, as written.

    Raises:
        UserError: a bad option, or a source that cannot be exported.
        RunFailure: what was written answers differently from PyTorch, has other zeros, or cannot be written; ``out`` is
            then as it was before.
    """
    options = Options(**asked)
    options.check_installed()
    found = resolve(source)
    found = replace(found, ticket=ticket or found.ticket)
    out = (out or default_out(found, options.format)).absolute()
    _check_out(out)
    origin = provenance.read(found)
    if options.measures and not (options.task or origin.task):
        raise UserError("this source does not say on which task it was trained: name the task with --task.")

    from sparseticket.export.loaded_model import kind_of, load
    from sparseticket.export.shrunk_folder import is_shrunk

    options.check_kind(kind_of(found.model))
    if options.format != "onnx" and is_shrunk(found.model):
        raise UserError("this model is shrunk already, and its folder is how it is kept: use it, or --format onnx.")
    whole = load(found.model)

    def export(options: Options, folder: Path) -> dict[str, Any]:
        return _export(whole, found, folder, options, origin)

    with replace_folder(out) as folder:
        if options.layout == "auto":
            from sparseticket.export.auto import export_fastest

            report = export_fastest(options, whole, export, folder)
        else:
            report = export(options, folder)
        write_json(folder / REPORT, report)
    return report


def _export(
    whole: LoadedModel, source: Source, folder: Path, options: Options, origin: provenance.Provenance
) -> dict[str, Any]:
    from sparseticket.export.prepare import prepare

    prepared = prepare(whole, origin.ticket, options.layout, options.dtype)
    _check_wins(prepared, options)
    folder.mkdir()
    return {
        "source": source.label,
        **{name: getattr(options, name) for name in ("format", "layout", "quantize", "dtype", "optimize")},
        **_write(prepared, source, folder, options, origin),
    }


def _check_wins(prepared: Prepared, options: Options) -> None:
    """Refuse, before any tracing, a model that would have no sparse operator."""
    if options.layout == "sparse-op":
        from sparseticket.export import break_even, native, sparse_rewrite

        target = native.target(options.target)
        int8 = options.quantize == "dynamic"
        known = break_even.figures(target, int8=int8)
        of_convolutions = break_even.figures(target, int8=int8, convolutions=True)
        sparse_rewrite.check_wins(prepared.model.module, known, target, of_convolutions)


def default_out(source: Source, format: str) -> Path:
    """The folder that an export goes to where no other was named."""
    return source.home / format


def _write(
    prepared: Prepared, source: Source, folder: Path, options: Options, origin: provenance.Provenance
) -> dict[str, Any]:
    from sparseticket.export.layers import torch_layers

    model = prepared.model
    weights = list(torch_layers(model.module).values())
    sparsity = sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
    metadata = origin.entries(sparsity)
    written = _write_weights(prepared, source, folder, options, origin, metadata)
    for name, content in model.companions.items():
        if not (folder / name).exists():
            (folder / name).write_bytes(content)
    return {
        "inputs": list(model.inputs),
        "outputs": list(model.outputs),
        "provenance": metadata,
        **({"kept": _kept(prepared.shrunk)} if prepared.shrunk else {}),
        **written,
        "files": [{"name": item.name, "bytes": item.stat().st_size} for item in sorted(folder.iterdir())],
        "notes": _notes(options, sparsity),
        "versions": _versions(),
    }


def _write_weights(
    prepared: Prepared,
    source: Source,
    folder: Path,
    options: Options,
    origin: provenance.Provenance,
    metadata: dict[str, str],
) -> dict[str, Any]:
    """In the format that is asked for; returns what the report says of them."""
    if options.format == "onnx":
        return _write_onnx(prepared, source, folder, options, origin, metadata)
    if options.format == "pt2":
        from sparseticket.export import to_pt2, verify

        tolerance = verify.tolerance(options, prepared.model)
        return to_pt2.write_pt2(prepared.model, origin.ticket, folder, dtype=options.dtype, tolerance=tolerance)

    from sparseticket.export import to_safetensors

    compared: dict[str, Any] = {}
    if options.format == "hf":
        counted = to_safetensors.write_hf(prepared.model, source.model, folder, options.dtype)
    elif prepared.shrunk is not None:
        compared = _compare_shrunk(prepared)
        counted = to_safetensors.write_shrunk(prepared.shrunk, source, folder, options.dtype)
    else:
        counted = to_safetensors.write_safetensors(prepared.model, folder, options.dtype, metadata)
    return {**compared, "layers": [layer.report() for layer in counted]}


def _write_onnx(
    prepared: Prepared,
    source: Source,
    folder: Path,
    options: Options,
    origin: provenance.Provenance,
    metadata: dict[str, str],
) -> dict[str, Any]:
    from sparseticket.export import on_task
    from sparseticket.export.to_onnx import write_onnx

    task = None
    if options.measures:
        name = options.task or origin.task
        trained = {"max_length": origin.max_length, "batch_size": origin.batch_size}
        ours = prepared.whole.kind == "vision" or bool(origin.task)
        task = on_task.make(name, options.data, prepared.whole, source.model, ours=ours, **trained)
    return write_onnx(prepared, folder, options, metadata=metadata, task=task)


def _compare_shrunk(prepared: Prepared) -> dict[str, Any]:
    """Ask the smaller network what the whole one answers, both in fp32, before it is written."""
    from sparseticket.export import verify

    allowed = verify.Tolerance(*verify.TOLERANCES["fp32", prepared.whole.kind])

    def ask(inputs: Mapping[str, Tensor], words: str) -> dict[str, np.ndarray]:
        return {name: tensor.numpy() for name, tensor in prepared.model.answer(inputs).items()}

    asked = verify.compare(prepared.whole, ask, allowed)
    return {
        "max_abs_error": max(one.max_abs_error for one in asked),
        "tolerance": vars(allowed),
        "shapes": [vars(one) for one in asked],
    }


def _kept(shrunk: Shrunk) -> list[dict[str, Any]]:
    return [{"kind": one.kind, "layer": one.layer, "kept": len(one.kept), "of": one.count} for one in shrunk.kept]


def _notes(options: Options, sparsity: float) -> list[str]:
    notes = []
    if options.layout == "sparse-op":
        notes.append(SPARSE_OP_NOTE)
    elif options.format == "onnx" and not options.int8 and sparsity >= 0.01:
        notes.append(ZEROS_NOTE)
    if options.layout == "sparse-storage":
        notes.append(STORAGE_NOTE)
    return notes


def _versions() -> dict[str, str]:
    from sparseticket.provenance import LIBRARIES, versions

    return versions((*LIBRARIES, "onnx", "onnxscript", "onnxruntime"))


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, and an export is a folder: choose another OUT.")
    if out.is_dir() and any(out.iterdir()) and not (out / REPORT).is_file():
        raise UserError(f"{out} holds something that no export wrote: choose another OUT, or empty it yourself.")
    if (out / REPORT).is_file():
        try:
            refuse_to_lose(out, [REPORT, *(file["name"] for file in read_json(out / REPORT)["files"])])
        except (KeyError, TypeError) as error:
            raise UserError(f"{out / REPORT} does not say what the export wrote: choose another OUT.") from error
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be made ({error.strerror or error}): choose another OUT.") from error
