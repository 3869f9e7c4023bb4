"""``sparseticket convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def convert(
    ticket: Annotated[Path, Argument(help="An unstructured ticket: RUN/round-NN/ticket.ticket.")],
    to: Annotated[str, Option(help="The shape: 2:4, block:RxC (block:64x64, block:4x1), heads, neurons, channels.")],
    by: Annotated[str, Option(help="score, refill or regroup.")],
    out: Annotated[Path, Option(help="The ticket to write. As RUN/NAME/FILE, transfer finds its run.")],
    sparsity: Annotated[float | None, Option(help="Share of zeros, 0 to 1. Default: the ticket's own.")] = None,
    weights: Annotated[Path | None, Option(help="File of the ticket's θ. Default: that of its run.")] = None,
) -> None:
    """Give a ticket's zeros a shape that hardware likes; says what survives and what is revived."""
    from sparseticket.convert import convert as give_shape
    from sparseticket.files import report_path
    from sparseticket.progress import Screen
    from sparseticket.show import show_converted

    screen = Screen()
    made = give_shape(ticket, to=to, by=by, out=out, sparsity=sparsity, weights=weights, screen=screen)
    show_converted(screen, made.report)
    screen.say(f"Ticket: {out}\nReport: {report_path(out)}")
