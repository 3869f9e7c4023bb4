"""``sparseticket import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def import_masks(
    file: Annotated[Path, Argument(help="A dictionary of *.weight_mask tensors, as the papers' code saved it.")],
    model: Annotated[str, Option(help="The model that the masks are of.")],
    out: Annotated[Path, Option(help="The ticket to write.")],
    weights: Annotated[Path | None, Option(help="File of the model's pre-trained weights.")] = None,
) -> None:
    """Make a ticket of masks that the papers' code released."""
    from sparseticket.progress import Screen
    from sparseticket.released import import_released
    from sparseticket.show import show_ticket
    from sparseticket.ticket import check_ticket_out

    screen = Screen()
    check_ticket_out(out, file)
    ticket = import_released(file, model=model, weights=weights, screen=screen)
    ticket.save(out)
    show_ticket(screen, ticket)
    screen.say(f"Ticket: {out}")
