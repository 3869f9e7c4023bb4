"""``sparseticket bench``: latency, size and memory of models, against the first named."""

import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def bench(
    baseline: Annotated[str, typer.Argument(help="What the others are compared with: an ONNX file or a model.")],
    models: Annotated[
        list[str] | None,
        typer.Argument(help="More: .onnx files, folders that export wrote (pt2 too), runs, rounds, model folders."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for bench.json, bench.csv, bench.md and bench.png (replaced).")
    ] = Path("runs/bench"),
    batch: Annotated[str, typer.Option(help="Rows per call: one number, or several as in 1,8.")] = "1",
    seq_length: Annotated[
        str | None,
        typer.Option(help="Tokens per row: 128, or several as in 32,128. Default: 128, fewer where a model must."),
    ] = None,
    threads: Annotated[
        str, typer.Option(help="Threads per call: 1, or several as in 1,all. Default: the physical cores.")
    ] = "all",
    seconds: Annotated[float, typer.Option(help="Measure each model so long in each cell.")] = 10.0,
    kernels: Annotated[
        str, typer.Option(help="auto: on a GPU, PyTorch's layers run on sparse kernels where faster; or off.")
    ] = "auto",
    dtype: Annotated[str, typer.Option(help="fp32, fp16 or bf16: model folders are cast to it for PyTorch.")] = "fp32",
    launched: Annotated[
        str,
        typer.Option(
            help="How PyTorch calls them: eager (from Python), compiled (torch.compile), graph (CUDA graph). With this "
            "or --dtype they run on the GPU alone, where there is one."
        ),
    ] = "eager",
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            help='Exit with code 1 where this is true of a model: "p50 > 1.1x" (times the baseline), "p99 > 20ms", '
            '"size > 100MB"; p50, p90, p95, p99, memory, size, load. May be given several times.'
        ),
    ] = None,
) -> None:
    """Measure models on PyTorch and ONNX Runtime, taking turns, against the first named."""
    from sparseticket.bench.grid import whole_numbers
    from sparseticket.bench.report import show
    from sparseticket.bench.runner import bench as measure
    from sparseticket.errors import RunFailure
    from sparseticket.progress import Screen

    signal.signal(signal.SIGTERM, _end)
    console = Screen().console
    with console.status("measuring; leave the machine alone meanwhile") as status:
        result = measure(
            [baseline, *(models or [])],
            out,
            batch=whole_numbers("--batch", batch),
            seq_length=None if seq_length is None else whole_numbers("--seq-length", seq_length),
            threads=whole_numbers("--threads", threads, or_all=True),
            seconds=seconds,
            kernels=kernels,
            dtype=dtype,
            launched=launched,
            fail_if=fail_if or [],
            say=lambda words: status.update(f"measuring {words}; leave the machine alone meanwhile"),
        )
    show(result, console)
    console.print(f"Written to {out}: bench.json, bench.csv, bench.md, bench.png")
    if result["failures"]:
        raise RunFailure("the measurement is over a limit:\n" + "\n".join(result["failures"]))


def _end(number: int, _: Any) -> None:
    """A cancelled job's way out: with the process that measures a model alone, and its scratch folder."""
    sys.exit(128 + number)
