"""From the model that was loaded to the one that is exported: checked first, then in the layout that was asked for."""

from __future__ import annotations

from dataclasses import replace

from sparseticket.errors import RunFailure, UserError
from sparseticket.export.against_ticket import check_under_ticket
from sparseticket.export.loaded_model import LoadedModel
from sparseticket.export.shrink import shrink
from sparseticket.ticket import Ticket

LARGEST_DIFFERENCE = 1e-4  # of the largest answer: sums over fewer terms are rounded otherwise, in fp32 by about 1e-6


def prepare(model: LoadedModel, ticket: Ticket | None, layout: str) -> LoadedModel:
    """The model as it is traced and saved; every later step (trace, recount, compare) sees only this one.

    The shrunk layout changes the network here, and is compared with the whole one; what changes only how a file stores
    it (sparse storage, INT8) comes after.

    Raises:
        UserError: the model is not under its ticket, or has nothing that could be removed.
        RunFailure: the shrunk model answers differently.
    """
    if ticket is not None:
        check_under_ticket(model.module, ticket)
    if layout != "shrunk":
        return model
    shrunk = shrink(model.module)
    if not shrunk.is_smaller:
        raise UserError(
            "this model has no head, neuron or channel that nothing reads: --layout shrunk has nothing to remove. "
            "A ticket found with --pattern heads+neurons or channels has, and --layout dense takes any."
        )
    smaller = replace(model, module=shrunk.module, kept=shrunk.kept)
    _compare(model, smaller)
    return smaller


def _compare(whole: LoadedModel, smaller: LoadedModel) -> None:
    inputs = whole.example(2, min(9, whole.max_length), padded=True)
    got = smaller.answer(inputs)
    for name, expected in whole.answer(inputs).items():
        difference = float((got[name] - expected).abs().max())
        if not difference <= LARGEST_DIFFERENCE * max(1.0, float(expected.abs().max())):  # also where it is NaN
            raise RunFailure(
                f"the shrunk model answers differently: output {name!r} by up to {difference:.3g}. Nothing was kept. "
                "Please report this with the model's architecture."
            )
