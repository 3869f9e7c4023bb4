"""``sparseticket tune-kernels``: measure this GPU, so that layers run on the kernels that are faster here."""

from pathlib import Path
from typing import Annotated

import typer


def tune_kernels(
    out: Annotated[Path | None, typer.Option(help="The table to write. Default: in your cache folder.")] = None,
    minutes: Annotated[float, typer.Option(help="How long to measure; run it again to go on.")] = 10.0,
) -> None:
    """Measure this GPU and write the table by which kernels are picked, or dense where dense is faster."""
    from sparseticket.bench.gpu.tune_here import tune_here
    from sparseticket.kernels.dispatch import DENSE
    from sparseticket.progress import literal_console

    console = literal_console()
    with console.status("measuring; leave the GPU alone meanwhile"):
        file, table, missing = tune_here(out, minutes=minutes)
    picked = sum(cell.choice.kernel != DENSE for cell in table.cells)
    console.print(f"{len(table.cells)} cells measured; a kernel is picked in {picked}, dense in the others.")
    if missing:
        console.print(f"{missing} cells are still missing: run the same command again.")
    console.print(f"Written to {file}", soft_wrap=True)
