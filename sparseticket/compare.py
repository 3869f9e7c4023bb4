"""How much two tickets have in common, in each layer and in all, beside what chance would give.

The one definition, everywhere: the weights alive in both over the weights alive in either (intersection over union);
chance is that of two masks with the same number alive in each tensor, placed independently
(:func:`sparseticket.masks.overlap`). Two of 70 % zeros share 0.18 by chance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparseticket import masks as mask_algebra
from sparseticket.errors import UserError
from sparseticket.files import write_json
from sparseticket.masks import Masks, overlap
from sparseticket.models.base import POOLER
from sparseticket.permute import axes, check_fits, permuted
from sparseticket.ticket import Ticket
from sparseticket.ticket_network import network_of


def compare(first: Path, second: Path, *, out: Path | None = None, weights: Path | None = None) -> dict[str, Any]:
    """Compare two tickets; returns what is written to ``out`` (default: beside the first), fractions.

    A permuted ticket (of ``convert --by regroup``) is brought back to its model's own order first, for which its model
    is loaded. A pooler that one side lacks is left out, and listed.

    Raises:
        UserError: the tickets are of different models, or do not prune the same tensors.
    """
    if out is not None:
        _check_out(out)
    a, b = Ticket.load(first), Ticket.load(second)
    if a.model != b.model:
        raise UserError(f"{first} is of {a.model!r} and {second} of {b.model!r}: only tickets of one model compare.")
    masks = [_unpermuted(ticket, path, weights) for ticket, path in ((a, first), (b, second))]
    left_out = sorted(name for name in masks[0].keys() ^ masks[1].keys() if name.startswith(POOLER))
    of_a, of_b = ({name: mask for name, mask in one.items() if name not in left_out} for one in masks)
    result = {
        "model": a.model,
        "tickets": [a.identity, b.identity],
        "same_theta": not any(b.theta.get(name, digest) != digest for name, digest in a.theta.items()),
        "left_out": left_out,
        "all": _between(of_a, of_b),
        "layers": {name: _between({name: of_a[name]}, {name: of_b[name]}) for name in of_a},
    }
    write_json(out or default_out(first, second), result)
    return result


def _check_out(out: Path) -> None:
    if out.is_dir():
        raise UserError(f"--out {out} is a folder: name a file in it.")
    if out.exists() and out.suffix != ".json":
        raise UserError(f"--out {out} is there already, and is no comparison: name another file.")


def default_out(first: Path, second: Path) -> Path:
    """Beside the first ticket, named after both."""
    identities = [Ticket.load(path).identity[:8] for path in (first, second)]
    return first.with_name(f"compare-{'-'.join(identities)}.json")


def _unpermuted(ticket: Ticket, path: Path, weights: Path | None) -> Masks:
    masks = mask_algebra.counted(ticket.masks)
    if not ticket.permutations:
        return masks
    network = network_of(ticket, path, weights)
    check_fits(network, ticket.permutations)
    known = axes(network.backbone_module)
    return permuted(masks, {name: order.argsort().int() for name, order in ticket.permutations.items()}, known)


def _between(a: Masks, b: Masks) -> dict[str, float | int]:
    shared = overlap(a, b)
    return {
        "overlap": shared.iou,
        "chance": shared.chance,
        "sparsity_first": mask_algebra.sparsity(a),
        "sparsity_second": mask_algebra.sparsity(b),
        "alive_in_both": mask_algebra.alive(mask_algebra.intersect(a, b)),
    }
