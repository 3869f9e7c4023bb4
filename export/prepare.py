"""From the model that was loaded to the one that is exported: checked first, then in the layout that was asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sparseticket.errors import UserError
from sparseticket.export.against_ticket import check_under_ticket
from sparseticket.export.loaded_model import LoadedModel
from sparseticket.export.shrink import Shrunk, shrink
from sparseticket.export.sparse_storage import check_saves
from sparseticket.ticket import Ticket


@dataclass(frozen=True)
class Prepared:
    """What is traced and saved (``model``), and what it must answer like: the same before anything was removed."""

    model: LoadedModel
    whole: LoadedModel
    shrunk: Shrunk | None = None


def prepare(whole: LoadedModel, ticket: Ticket | None, layout: str, dtype: str) -> Prepared:
    """Check ``whole`` against its ticket and, for ``layout`` "shrunk", remove what nothing reads.

    Layouts that change only how a file stores the weights (sparse storage, INT8) come after tracing; whether sparse
    storage saves anything in ``dtype`` is known before.

    Raises:
        UserError: the model is not under its ticket, has nothing to remove, or nothing that sparse storage saves.
    """
    if ticket is not None:
        check_under_ticket(whole.module, ticket)
    if layout == "sparse-storage":
        check_saves(whole.module, dtype)
    if layout != "shrunk":
        return Prepared(whole, whole)
    shrunk = shrink(whole.module)
    if not shrunk.is_smaller:
        raise UserError(
            "this model has no head, neuron or channel that nothing reads: --layout shrunk has nothing to remove. "
            "A ticket found with --pattern heads+neurons or channels has, and --layout dense takes any."
        )
    return Prepared(replace(whole, module=shrunk.module), whole, shrunk)
