"""An export's report on the screen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def show(report: dict[str, Any], folder: Path, console: Console) -> None:
    """Print what was written, how near it is to PyTorch, and how sparse its layers are."""
    table = Table(title=f"{report['source']} as {_what(report)}")
    for heading, justify in (("layer", "left"), ("weights", "right"), ("zero", "right")):
        table.add_column(heading, justify=justify)
    for layer in report["layers"]:
        table.add_row(layer["name"], f"{layer['weights']:,}", f"{100 * layer['sparsity']:.1f} %")
    zeros, weights = (sum(layer[key] for layer in report["layers"]) for key in ("zeros", "weights"))
    table.add_section()
    table.add_row("all of these", f"{weights:,}", f"{100 * zeros / max(weights, 1):.1f} %")
    console.print(table)
    for line in (*_candidates(report), *_findings(report), *report["notes"]):
        console.print(line)
    for file in report["files"]:
        console.print(f"{file['bytes'] / 1e6:10.2f} MB  {file['name']}", highlight=False)
    console.print(f"Written to {folder}", soft_wrap=True)


def _candidates(report: dict[str, Any]) -> Iterator[str]:
    """What ``--layout auto`` chose from, and why."""
    if auto := report.get("auto"):
        on = auto["machine"]["cpu"] if "machine" in auto else auto["target"]
        yield f"Chosen for {on}: {auto['chosen']}."
        for one in auto["candidates"]:
            speed = f"{one['speedup']:.2f}x, " if one["speedup"] else ""
            yield f"  {one['candidate']}: {speed}{one.get('refused') or one['why']}"
        yield from auto["notes"]


def _what(report: dict[str, Any]) -> str:
    if report["format"] != "onnx":
        return f"{report['format']}, {report['dtype']}"
    words = ["ONNX", f"opset {report['opset']}"]
    words += [report["dtype"]] if report["quantize"] == "none" else [f"INT8 ({report['quantize']})"]
    words += ["fused"] if report["optimize"] != "none" else []
    words += [report["layout"]] if report["layout"] != "dense" else []
    return ", ".join(words)


def _findings(report: dict[str, Any]) -> Iterator[str]:
    if report["format"] in ("safetensors", "hf"):
        rounded = "" if report["dtype"] == "fp32" else f", rounded to {report['dtype']}"
        yield f"Read back: every tensor is the model's{rounded}, bit for bit."
    if allowed := report.get("tolerance"):
        yield (
            f"Agrees with PyTorch on {len(report['shapes'])} shapes: largest difference {report['max_abs_error']:.2g} "
            f"(allowed: {allowed['atol']:g} + {allowed['rtol']:g} x |value|)."
        )
    if agreed := report.get("agreement"):
        for output in report["outputs"]:
            yield (
                f"Decides as PyTorch does on {agreed['inputs']} inputs: {agreed[output]:.1%} of {output} (at least "
                f"{agreed['least']:.1%}); runs on {len(report['shapes'])} shapes."
            )
    if fused := report.get("fused"):
        yield "Fused: " + ", ".join(f"{count} x {pattern}" for pattern, count in fused.items()) + "."
    if task := report.get("task"):
        yield f"{task['metric']} on {task['name']}: {task['onnx']:.2%}, PyTorch {task['pytorch']:.2%}."
    if sparse := report.get("sparse_op"):
        yield from _sparse_layers(sparse, report["library"])
    if kernels := report.get("kernels"):
        sparse = [layer for layer in kernels if layer["runs"] != "dense"]
        yield (
            f"{len(sparse)} layers and groups of layers run block-sparse on a GPU (here it was run on: "
            f"{report['device']}); load it with sparseticket.export.load_pt2."
        )


def _sparse_layers(sparse: dict[str, Any], library: dict[str, Any]) -> Iterator[str]:
    running = [layer for layer in sparse["layers"] if layer["runs"] != "dense"]
    yield f"{len(running)} of {len(sparse['layers'])} layers run sparse on {sparse['target']}:"
    for layer in sparse["layers"]:
        yield f"  {layer['layer']}: {layer['runs']} ({layer['why']})"
    if library["verified_with"]:
        yield (
            f"Verified with the library ({library['verified_with']}) and without it (largest difference "
            f"{library['max_abs_error_without']:.2g})."
        )
    else:
        yield f"Verified without the library: {library['missing']}."
