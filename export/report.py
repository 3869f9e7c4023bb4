"""An export's report on the screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def show(report: dict[str, Any], folder: Path, console: Console) -> None:
    """Print what was written, how near it is to PyTorch, and how sparse its layers are."""
    table = Table(title=f"{report['source']} as ONNX, opset {report['opset']}")
    for heading, justify in (("layer", "left"), ("weights", "right"), ("zero", "right")):
        table.add_column(heading, justify=justify)
    for layer in report["layers"]:
        table.add_row(layer["name"], f"{layer['weights']:,}", f"{100 * layer['sparsity']:.1f} %")
    zeros, weights = (sum(layer[key] for layer in report["layers"]) for key in ("zeros", "weights"))
    table.add_section()
    table.add_row("all of these", f"{weights:,}", f"{100 * zeros / max(weights, 1):.1f} %")
    console.print(table)
    allowed = report["tolerance"]
    console.print(
        f"Agrees with PyTorch on {len(report['shapes'])} shapes: largest difference {report['max_abs_error']:.2g} "
        f"(allowed: {allowed['atol']:g} + {allowed['rtol']:g} x |value|)."
    )
    for note in report["notes"]:
        console.print(note)
    for file in report["files"]:
        console.print(f"{file['bytes'] / 1e6:10.2f} MB  {file['name']}", highlight=False)
    console.print(f"Written to {folder}", soft_wrap=True)
