"""Is a trained model under a ticket: is every weight that the ticket prunes exactly 0 in it?"""

from __future__ import annotations

from torch import nn

from sparseticket.errors import UserError
from sparseticket.masks import Masks
from sparseticket.ticket import POOLER, Ticket


def check_under_ticket(module: nn.Module, ticket: Ticket) -> None:
    """Raise :class:`UserError` that names the first tensor in which a weight that ``ticket`` prunes is not 0."""
    parameters = dict(module.named_parameters())
    for name, own in parameters_of(module, ticket.masks).items():
        revived = int((parameters[own][~ticket.masks[name]] != 0).sum())
        if revived:
            raise UserError(
                f"the ticket prunes {name}, and {revived} weights that are 0 under it are not 0 in this model: "
                "it was trained under another ticket, or none."
            )


def parameters_of(module: nn.Module, masks: Masks) -> dict[str, str]:
    """What each parameter that ``masks`` prune is called in ``module``; without a pooler that this one lacks.

    Raises:
        UserError: another is lacking, or is of another shape.
    """
    parameters, owners = dict(module.named_parameters()), {}
    for name, alive in masks.items():
        found = [name] if name in parameters else [own for own in parameters if own.endswith(f".{name}")]
        if not found and name.startswith(POOLER):
            continue
        if len(found) != 1 or parameters[found[0]].shape != alive.shape:
            raise UserError(f"the ticket prunes {name}, which this model does not have: it is for another model.")
        owners[name] = found[0]
    return owners
