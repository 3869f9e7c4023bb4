"""A control as a ticket of its own, so that it can be inspected, transferred to any task and put into a matrix."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from sparseticket.controls import control_of
from sparseticket.errors import UserError
from sparseticket.files import report_path, write_json
from sparseticket.masks import counted, overlap
from sparseticket.permute import check_fits, permute
from sparseticket.pruning import Pruner
from sparseticket.runs import SETTINGS, THETA
from sparseticket.tensors import save_tensors
from sparseticket.theta import file_hash, tensor_hashes
from sparseticket.ticket import Ticket, check_ticket_out
from sparseticket.ticket_network import network_of
from sparseticket.transfer_plan import begins_elsewhere, own_theta


def make_control(path: Path, kind: str, out: Path, *, seed: int, weights: Path | None) -> Ticket:
    """Write the control ``kind`` of the ticket in ``path`` to ``out``; returns it.

    A control that changes weights, or belongs to θ in a file that ``out`` is not near, gets its own
    ``theta.safetensors`` beside it. ``out.json`` says what was made, with the overlap with the ticket.

    Raises:
        UserError: there is no such control of this ticket; the weights are not its θ; or a file is in the way.
    """
    if seed < 0:
        raise UserError(f"--seed is a number from 0, not {seed}.")
    control, ticket = control_of(kind), Ticket.load(path)
    check_ticket_out(out, path)
    if (out.parent / SETTINGS).is_file():
        raise UserError(f"{out.parent} is a run's folder, whose θ may lie there: write to {out.parent}/controls/FILE.")
    network = network_of(ticket, path, weights)
    backbone = network.backbone()
    names = sorted(network.pretrained or backbone)
    pruner = Pruner.of(
        ticket.pattern, network.backbone_module, {name: backbone[name] for name in counted(ticket.masks)}
    )
    control.check(ticket.masks, pruner, network)
    check_fits(network, ticket.permutations)
    theta = control.weights(network, names, seed) if control.weights else {name: backbone[name] for name in names}
    theta = {name: tensor.detach().clone() for name, tensor in theta.items()}  # permuting changes the network in place
    if control.masks and ticket.permutations:
        permute(network, ticket.permutations)
    masks = control.masks(ticket.masks, pruner, network.backbone(), seed) if control.masks else ticket.masks
    made = replace(
        ticket,
        masks=masks,
        theta=tensor_hashes(theta) if control.weights else ticket.theta,
        theta_p=ticket.theta_p or (ticket.theta if control.weights and not begins_elsewhere(ticket) else None),
        metrics={
            **ticket.metrics,
            "control": {"kind": kind, "seed": seed, "from": ticket.identity, "theta_file": ticket.theta_file},
        },
    )
    if kind == "complement":
        made = replace(made, scheduled_sparsity=made.sparsity)
    made.check_theta(tensor_hashes(theta))
    if control.weights or (ticket.theta_file and own_theta(ticket, out) is None):
        made = replace(made, theta_file=_write_theta(out.parent / THETA, theta))
    made.save(out)
    shared = overlap(counted(ticket.masks), counted(masks))
    report = {**made.metrics["control"], "ticket": made.identity, "sparsity": made.sparsity}
    write_json(report_path(out), report | {"overlap": shared.iou, "overlap_by_chance": shared.chance})
    return made


def _write_theta(path: Path, theta: Mapping[str, Tensor]) -> str:
    """Write θ unless it is there already; its file's SHA-256. Another ticket's θ is never overwritten."""
    written = path.with_name(f".{THETA}.{os.getpid()}.part")
    save_tensors(written, theta)
    try:
        digest = file_hash(written)
        if path.is_file() and file_hash(path) != digest:
            raise UserError(f"{path} belongs to another ticket: write this one into another folder with --out.")
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)
    return digest
