"""``sparseticket bench``: latency, size and memory of models, against the first named."""

from pathlib import Path
from typing import Annotated

import typer


def bench(
    baseline: Annotated[str, typer.Argument(help="What the others are compared with: an ONNX file or a model.")],
    models: Annotated[
        list[str] | None,
        typer.Argument(help="More: .onnx files, folders that export wrote, runs, rounds, model folders."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for bench.json and bench.md (replaced).")] = Path("runs/bench"),
    batch: Annotated[int, typer.Option(help="Rows per call.")] = 1,
    seq_length: Annotated[
        int | None, typer.Option(help="Tokens per row. Default: 128, or fewer where a model takes no more.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads per call. Default: the physical cores.")] = None,
    seconds: Annotated[float, typer.Option(help="How long to measure each model, at least 20 calls.")] = 10.0,
) -> None:
    """Measure models on PyTorch and ONNX Runtime, taking turns, against the first named."""
    from rich.console import Console

    from sparseticket.bench.report import show
    from sparseticket.bench.runner import bench as measure

    console = Console()
    with console.status("measuring; leave the machine alone meanwhile"):
        result = measure(
            [baseline, *(models or [])], out, batch=batch, seq_length=seq_length, threads=threads, seconds=seconds
        )
    show(result, console)
    console.print(f"Written to {out / 'bench.json'}", soft_wrap=True)
