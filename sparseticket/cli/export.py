"""``sparseticket export``: a trained model as a verified ONNX file."""

from pathlib import Path
from typing import Annotated

import typer

from sparseticket.errors import UserError


def export(
    source: Annotated[
        Path | None,
        typer.Argument(
            help="A run, a round, its ticket, or a model folder. Default: the newest finished run in runs/."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Argument(help="The folder to write. Default: SOURCE/onnx.")] = None,
    format: Annotated[str, typer.Option(help="What to write: onnx.")] = "onnx",
    layout: Annotated[
        str, typer.Option(help="dense (zeros included), or shrunk (dead heads, neurons, channels removed).")
    ] = "dense",
    opset: Annotated[int, typer.Option(help="Version of ONNX's operators, 17 to 25.")] = 20,
    atol: Annotated[float, typer.Option(help="Largest absolute difference to PyTorch, in units of the output.")] = 1e-4,
    rtol: Annotated[
        float | None, typer.Option(help="Relative difference allowed on top. Default: 0 for text, 1e-4 for vision.")
    ] = None,
) -> None:
    """Export a trained ticket to ONNX, verified against PyTorch on several shapes."""
    if format != "onnx":
        raise UserError(f"--format {format} cannot be written: the one format is onnx.")
    from rich.console import Console

    from sparseticket.export.report import show
    from sparseticket.export.source import resolve
    from sparseticket.export.to_onnx import export_onnx

    console = Console()
    folder = out or resolve(source).home / "onnx"
    with console.status("exporting, and comparing with PyTorch (BERT-base: about 30 s)"):
        report = export_onnx(source, folder, layout=layout, opset=opset, atol=atol, rtol=rtol)
    show(report, folder, console)
