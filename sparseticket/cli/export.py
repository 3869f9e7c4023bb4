"""``sparseticket export``: a trained model as a verified ONNX file, or as plain weights."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def export(
    source: Annotated[
        Path | None,
        Argument(help="A run, a round, its ticket, or a model folder. Default: the newest finished run in runs/."),
    ] = None,
    out: Annotated[Path | None, Argument(help="The folder to write. Default: SOURCE/FORMAT.")] = None,
    format: Annotated[
        str, Option(help="onnx, pt2 (block-sparse on GPUs), safetensors, or hf (for from_pretrained).")
    ] = "onnx",
    ticket: Annotated[Path | None, Option(help="The ticket it was trained under. Default: the one beside it.")] = None,
    layout: Annotated[
        str,
        Option(
            help="dense, shrunk (dead heads, neurons, channels removed), sparse-storage, sparse-op (fast on a CPU with "
            "the package's library), or auto: the fastest."
        ),
    ] = "dense",
    target: Annotated[
        str, Option(help="For sparse-op and auto: this (machine; auto measures), avx2, avx512 or vnni.")
    ] = "this",
    quantize: Annotated[str, Option(help="INT8: none, dynamic (text), static (vision; needs --data).")] = "none",
    dtype: Annotated[str, Option(help="fp32, fp16, or (not for ONNX) bf16.")] = "fp32",
    optimize: Annotated[str, Option(help="none, or ort: fuse attention for ONNX Runtime alone.")] = "none",
    opset: Annotated[int, Option(help="Version of ONNX's operators, 17 to 25.")] = 20,
    external_data: Annotated[bool, Option("--external-data", help="Weights beside the file, in .data.")] = False,
    atol: Annotated[
        float | None, Option(help="Absolute difference to PyTorch. Default: 1e-4; fp16 2e-2; bf16 0.16.")
    ] = None,
    rtol: Annotated[
        float | None,
        Option(help="Relative difference on top. Default: 0 for text, 1e-4 for vision; fp16, bf16 as --atol."),
    ] = None,
    agreement: Annotated[
        float | None, Option(help="INT8: smallest share of decisions equal to PyTorch's. Default: 0.9.")
    ] = None,
    metric_drop: Annotated[
        float | None, Option(help="What the task's metric may lose, as a fraction. Default: 0.01; INT8 0.03.")
    ] = None,
    data: Annotated[Path | None, Option(help="The task's data: to measure its metric, and to calibrate.")] = None,
    task: Annotated[str | None, Option(help="The task to measure. Default: the source's own, with --data.")] = None,
) -> None:
    """Export a trained ticket, verified against PyTorch on several shapes."""
    from sparseticket.export.exporter import default_out, export_model
    from sparseticket.export.options import Options
    from sparseticket.export.report import show
    from sparseticket.export.source import resolve
    from sparseticket.progress import literal_console

    asked = {
        "format": format,
        "layout": layout,
        "target": target,
        "quantize": quantize,
        "dtype": dtype,
        "optimize": optimize,
        "opset": opset,
        "external_data": external_data,
        "atol": atol,
        "rtol": rtol,
        "agreement": agreement,
        "metric_drop": metric_drop,
        "data": data,
        "task": task,
    }
    Options(**asked)
    console = literal_console()
    folder = out or default_out(resolve(source), format)
    with console.status("exporting, and comparing with PyTorch (BERT-base: about 30 s)"):
        report = export_model(source, folder, ticket=ticket, **asked)
    show(report, folder, console)
