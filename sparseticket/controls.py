"""Controls: what a ticket is compared with. Each makes the masks of one arm from the ticket's masks and a seed."""

from __future__ import annotations

from collections.abc import Callable

from sparseticket import masks as mask_algebra
from sparseticket.errors import UserError
from sparseticket.masks import Masks

CONTROLS: dict[str, Callable[[Masks, int], Masks]] = {
    # as many alive in all as in the ticket, placed evenly over all tensors together; another draw for each seed
    "random-mask": lambda masks, seed: mask_algebra.random_like(masks, seed=seed),
}


def check_control(name: str) -> str:
    """The name, when there is such a control."""
    if not isinstance(name, str) or name not in CONTROLS:
        raise UserError(f"there is no control {name!r}. Controls: {', '.join(CONTROLS)}.")
    return name
