"""Is a trained model under a ticket: are its zeros the ticket's, no more and no fewer?"""

from __future__ import annotations

from torch import nn

from sparseticket.errors import UserError
from sparseticket.masks import counted
from sparseticket.models.base import parameters_of
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
