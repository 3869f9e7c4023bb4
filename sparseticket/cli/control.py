"""``sparseticket control``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def control(
    ticket: Annotated[Path, Argument(help="A ticket file: RUN/round-NN/ticket.ticket.")],
    kind: Annotated[
        str,
        Option(
            help="random-mask, random-mask-per-layer, one-shot, complement, flip:0.1, random-weights, "
            "shuffled-weights (within tensors) or shuffled-layers (whole layers, as the released code)."
        ),
    ],
    out: Annotated[Path, Option(help="The ticket to write. As RUN/NAME/FILE, transfer finds its run.")],
    seed: Annotated[int, Option(help="Every random draw is a function of it.")] = 0,
    weights: Annotated[Path | None, Option(help="File of the ticket's θ. Default: that of its run.")] = None,
) -> None:
    """Write a control of a ticket as a ticket of its own."""
    from sparseticket.control_ticket import make_control
    from sparseticket.files import report_path
    from sparseticket.progress import Screen
    from sparseticket.show import show_control

    made = make_control(ticket, kind, out, seed=seed, weights=weights)
    show_control(Screen(), made, out, report_path(out))
