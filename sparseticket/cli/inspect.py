"""``sparseticket inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def inspect(
    ticket: Annotated[Path, Argument(help="A ticket file.")],
    kernels: Annotated[
        Path | None, Option(help="PNG to draw: every convolution's kernels, and which are pruned completely.")
    ] = None,
) -> None:
    """Show a ticket: sparsity per layer, and where it comes from."""
    from sparseticket.progress import Screen
    from sparseticket.show import show_kernels, show_ticket
    from sparseticket.ticket import Ticket

    screen, loaded = Screen(), Ticket.load(ticket)
    if kernels is None:
        show_ticket(screen, loaded)
        return
    from sparseticket.kernel_map import draw

    show_kernels(screen, draw(loaded, kernels), kernels)
