"""From the model that was loaded to the one that is exported: checked first, then in the layout that was asked for."""

from __future__ import annotations

from sparseticket.export.against_ticket import check_under_ticket
from sparseticket.export.loaded_model import LoadedModel
from sparseticket.ticket import Ticket


def prepare(model: LoadedModel, ticket: Ticket | None) -> LoadedModel:
    """The model as it is traced and saved; every later step (trace, recount, compare) sees only this one.

    Layouts that change the network (removing dead heads and channels) belong here; what changes only how a file stores
    it (sparse storage, INT8) comes after.

    Raises:
        UserError: the model is not under its ticket.
    """
    if ticket is not None:
        check_under_ticket(model.module, ticket)
    return model
