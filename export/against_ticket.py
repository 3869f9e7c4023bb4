"""Is a trained model under a ticket: are its zeros the ticket's, no more and no fewer?"""

from __future__ import annotations

from torch import nn

from sparseticket.errors import UserError
from sparseticket.masks import Masks, counted
from sparseticket.models.base import POOLER
from sparseticket.ticket import Ticket

BY_CHANCE = 1e-3  # share of a ticket's living weights that may be 0; in trained networks none was (MiniLM, ResNet-20)


def check_under_ticket(module: nn.Module, ticket: Ticket) -> None:
    """Check that ``module`` was trained under ``ticket``.

    Raises:
        UserError: a weight that the ticket prunes is not 0, or more than ``BY_CHANCE`` of those that it keeps are.
    """
    parameters = dict(module.named_parameters())
    owners = parameters_of(module, ticket.masks)
    for name, own in owners.items():
        revived = int((parameters[own][~ticket.masks[name]] != 0).sum())
        if revived:
            raise UserError(
                f"the ticket prunes {name}, and {revived} weights that are 0 under it are not 0 in this model: "
                "it was trained under another ticket, or none."
            )
    kept = {name: mask for name, mask in counted(ticket.masks).items() if name in owners}
    dead = {name: int((parameters[owners[name]][mask] == 0).sum()) for name, mask in kept.items()}
    if sum(dead.values()) > BY_CHANCE * sum(int(mask.count_nonzero()) for mask in kept.values()):
        most = max(dead, key=lambda name: dead[name])
        raise UserError(
            f"the ticket keeps {sum(dead.values())} weights that are 0 in this model, {dead[most]} of them in {most}: "
            "it was trained under a sparser ticket, such as that of a later round. Name the ticket of its own round, "
            "which lies beside the model, or leave --ticket out."
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
