"""``sparseticket inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument


def inspect(ticket: Annotated[Path, Argument(help="A ticket file.")]) -> None:
    """Show a ticket: sparsity per layer, and where it comes from."""
    from sparseticket.progress import Screen
    from sparseticket.show import show_ticket
    from sparseticket.ticket import Ticket

    show_ticket(Screen(), Ticket.load(ticket))
