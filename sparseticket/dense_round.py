"""One dense round for several runs: round 0 trains under m_0, all ones, whatever the pattern and the schedule.

So a run may take the trained network of another run's round 0 and prune it by its own pattern: the tickets are, bit for
bit, those that it would have found alone. Runs must be alike in everything else, which is checked and not believed.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sparseticket.checkpoint import unique_state
from sparseticket.errors import RunFailure, UserError
from sparseticket.provenance import versions
from sparseticket.runs import HEAD, SETTINGS, TICKET, RunFolder, flat, read_settings
from sparseticket.settings import RunSettings
from sparseticket.tensors import load_tensors
from sparseticket.theta import file_hash, tensor_hashes
from sparseticket.ticket import Ticket

if TYPE_CHECKING:
    from sparseticket.imp import Search

WEIGHTS = Path("model") / "model.safetensors"
FREE = ("pattern", "schedule", "sparsity")  # what the dense round does not depend on


def check_same_dense_round(settings: RunSettings, other: Path) -> None:
    """Refuse a run whose round 0 is not finished, or is not the dense round of ``settings``.

    Raises:
        UserError: names the settings that differ, or the one that ties round 0 to what comes after it.
    """
    if not RunFolder(other).finished("round-00"):
        raise UserError(f"round 0 of {other} is not finished: run it first, then take its dense round.")
    check_alike(settings, read_settings(other / SETTINGS), str(other))


def check_alike(settings: RunSettings, theirs: RunSettings, other: str) -> None:
    """Refuse a run whose round 0 is not that of ``theirs``, which messages call ``other``.

    Raises:
        UserError: names the settings that differ, or the one that ties round 0 to what comes after it.
    """
    protocol = settings.protocol
    alike = replace(theirs, protocol=replace(theirs.protocol, **{name: getattr(protocol, name) for name in FREE}))
    if alike != settings:
        there, here = flat(asdict(alike)), flat(asdict(settings))
        keys = [key for key in here if here[key] != there[key]]
        differing = "; ".join(f"{key} is {there[key]!r} there, {here[key]!r} here" for key in keys)
        raise UserError(
            f"the dense round of {other} is trained with other settings than this run has ({differing}), and they may "
            f"differ in {', '.join(FREE)} only: make them alike, or train this run's own."
        )
    if theirs.protocol.sparsities()[0] > 0 or protocol.sparsities()[0] > 0:
        raise UserError("a dense round can be shared only where training comes before the first pruning.")
    if (protocol.rewind, protocol.rewinds, protocol.head, protocol.optimizer_state, protocol.lr_schedule) != (
        "theta_p",
        "backbone",
        "rewind",
        "fresh",
        "restart",
    ):
        raise UserError(
            "a dense round can be shared only where it leaves nothing but its network: rewind theta_p, rewinds "
            "backbone, head rewind, optimizer-state fresh, lr-schedule restart."
        )


@torch.no_grad()
def take_dense_round(search: Search, other: Path) -> None:
    """Finish round 0 of ``search`` with the network of ``other``, checked by :func:`check_same_dense_round`.

    Raises:
        UserError: the other began from another θ or head, on other data, or with other versions; names which.
        RunFailure: the network does not reach the value that was recorded for it.
    """
    work, dense = search.work, RunFolder(other)
    ticket = Ticket.load(dense.round(0) / TICKET)
    heads_differ = not work.network.head_pretrained and (
        tensor_hashes(load_tensors(other / HEAD)[0]) != work.origin.hashes["head"]
    )
    for what, differs in (
        ("weights", ticket.theta != work.theta()),
        ("head weights", heads_differ),
        ("data", ticket.task["data_id"] != work.task.data_id),
        ("versions of the libraries", ticket.versions != versions()),
    ):
        if differs:
            raise UserError(f"{other} began with other {what} than this run: train this run's own dense round.")
    stored, _ = load_tensors(dense.round(0) / WEIGHTS)
    for name, tensor in unique_state(work.network.module).items():
        if name not in stored or stored[name].shape != tensor.shape:
            raise UserError(f"{dense.round(0) / WEIGHTS} has no {name} that fits: train this run's own dense round.")
        tensor.copy_(stored[name])
    result = dense.metrics("round-00")
    if work.evaluate() != result["metrics"]:
        raise RunFailure(f"the network in {dense.round(0) / WEIGHTS} does not reach the value recorded beside it.")
    result["seconds_pruning"] = search.prune(0, search.load_ticket(0).masks, result)
    if search.on_main:
        work.network.save(search.run.round(0) / "model")
        search.run.finish("round-00", {**result, "taken_from": file_hash(dense.round(0) / WEIGHTS)})
    work.accelerator.wait_for_everyone()
    work.screen.say(f"round 0: taken from {other}")
