"""``sparseticket compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def compare(
    first: Annotated[Path, Argument(help="A ticket file.")],
    second: Annotated[Path, Argument(help="Another ticket of the same model.")],
    out: Annotated[Path | None, Option(help="JSON file. Default: beside the first ticket.")] = None,
    weights: Annotated[Path | None, Option(help="File of θ, where a permuted ticket's is not found.")] = None,
) -> None:
    """Overlap of two tickets beside its chance level, per layer and in all."""
    from sparseticket.compare import compare as overlaps
    from sparseticket.compare import default_out
    from sparseticket.progress import Screen
    from sparseticket.show import show_compared

    show_compared(Screen(), overlaps(first, second, out=out, weights=weights), out or default_out(first, second))
