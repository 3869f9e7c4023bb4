"""Controls: what a ticket is compared with. Each makes an arm's masks of the ticket's, its pattern and a seed."""

from __future__ import annotations

from collections.abc import Callable

from sparseticket.errors import UserError
from sparseticket.masks import Masks
from sparseticket.pruning import Pruner

CONTROLS: dict[str, Callable[[Masks, Pruner, int], Masks]] = {
    # as many alive in all as in the ticket, placed evenly over all tensors together and in groups of its pattern;
    # another draw for each seed
    "random-mask": lambda masks, pruner, seed: pruner.draw(masks, seed=seed),
}


def check_control(name: str) -> str:
    """The name, when there is such a control."""
    if not isinstance(name, str) or name not in CONTROLS:
        raise UserError(f"there is no control {name!r}. Controls: {', '.join(CONTROLS)}.")
    return name
