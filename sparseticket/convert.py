"""From an unstructured ticket to one whose zeros have a shape that hardware likes.

Three ways, after "Coarsening the Granularity: Towards Structurally Sparse Lottery Tickets" (ICML 2022, arXiv
2202.04736). In each a group is worth the mean, over all its weights, of the magnitude in θ of those that the ticket
keeps alive; the groups that are kept are wholly alive, so that what the ticket pruned inside them is revived from θ;
all others die; and the sparsity is as asked for, to within one group:

- ``score``: groups are ranked over all layers together, as ``find --pattern`` ranks them;
- ``refill`` (section 3.2): each layer keeps the share of its groups that the ticket keeps of its weights (scaled alike
  in all layers where another sparsity is asked for); groups are ranked inside their layer;
- ``regroup`` (section 3.3): the network is permuted so that the best blocks hold more, then as ``refill``.

N:M is local: among M neighbours the ticket's largest stay, and dead ones are revived where fewer than N live, so that
score and refill are the same. The papers rank by trained weights; a ticket has only its θ.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparseticket import masks as mask_algebra
from sparseticket.errors import UserError
from sparseticket.files import report_path, write_json
from sparseticket.masks import Masks
from sparseticket.models import Network
from sparseticket.pattern import Block, NOfM, Pattern, Unstructured, Whole, check_model, parse
from sparseticket.permute import axes, check_absorbed, permuted
from sparseticket.progress import Screen
from sparseticket.pruning import Pruner
from sparseticket.pruning.groups import BlockGroups
from sparseticket.pruning.regroup import Regrouping
from sparseticket.pruning.score import magnitude
from sparseticket.pruning.select import global_groups
from sparseticket.schedule import SNAP, check_sparsity
from sparseticket.ticket import Ticket, check_ticket_out
from sparseticket.ticket_network import network_of

WAYS = ("score", "refill", "regroup")
REVIVED = 1e-6  # what a dead weight's magnitude counts beside a living one's: it decides only between equals


@dataclass(frozen=True)
class Converted:
    """The ticket that was made, and what became of the one that it was made from (``report``, fractions)."""

    ticket: Ticket
    report: dict[str, Any]


def convert(
    path: Path, *, to: str, by: str, out: Path, sparsity: float | None, weights: Path | None, screen: Screen
) -> Converted:
    """Make a shaped ticket of the unstructured one in ``path``; writes it to ``out``, and the report beside it.

    Raises:
        UserError: no such pattern, way or sparsity for this ticket and its model; or the weights are not its θ.
    """
    begun = time.monotonic()
    ticket, pattern = Ticket.load(path), parse(to)
    _check_asked(ticket, pattern, by, path, out)
    wanted = _sparsity(ticket, pattern, sparsity)
    network = network_of(ticket, path, weights)
    check_model(pattern, network.spec.kind, ticket.model)
    with screen.regrouping() as on_axis:
        made = coarsen(ticket, network, pattern, by, wanted, on_axis=on_axis)
    made.ticket.save(out)
    report = made.report | {"seconds": time.monotonic() - begun}
    write_json(report_path(out), report)
    return Converted(made.ticket, report)


def coarsen(
    ticket: Ticket,
    network: Network,
    pattern: Pattern,
    by: str,
    sparsity: float,
    *,
    on_axis: Callable[[int, int, float], None] = lambda done, total, kept: None,
) -> Converted:
    """The ticket in the shape of ``pattern``, of a network that holds its θ. Changes neither; see :func:`convert`.

    Raises:
        UserError: the pattern does not fit the network, or regrouping would change its outputs.
    """
    backbone, known = network.backbone(), axes(network.backbone_module)
    living = mask_algebra.counted(ticket.masks)
    weights = {name: backbone[name] for name in living}
    pruner = Pruner.of(str(pattern), network.backbone_module, weights)
    pruner.check_reachable(sparsity)
    theta, permutations = magnitude(weights), {}
    masks = _select(pruner, theta, living, sparsity, by)
    unpermuted = _kept(theta, living, masks)
    if by == "regroup":
        assert isinstance(pattern, Block | NOfM)
        magnitudes = {name: theta[name] * mask for name, mask in living.items()}
        found = Regrouping(magnitudes, known, pattern, _living_blocks(pattern, masks)).run(on_axis)
        moved_theta, moved_living = (permuted(tensors, found, known) for tensors in (theta, living))
        regrouped = _select(pruner, moved_theta, moved_living, sparsity, by)
        if _kept(moved_theta, moved_living, regrouped) > unpermuted:
            check_absorbed(network, found)
            masks, permutations, theta, living = regrouped, found, moved_theta, moved_living
    made = replace(
        ticket,
        masks=masks,
        pattern=str(pattern),
        scheduled_sparsity=sparsity,
        permutations=permutations,
        metrics=ticket.metrics | {"conversion": {"from": ticket.identity, "by": by, "sparsity": sparsity}},
    )
    return Converted(made, _report(ticket, made, by, theta, living, unpermuted))


def _select(pruner: Pruner, theta: Mapping[str, Tensor], living: Masks, sparsity: float, by: str) -> Masks:
    """The whole groups that stay alive; with refill and regroup, of each layer a share as large as its density.

    The group of rank r (from 0) in a layer of n groups and density d scores d·n / (r + ½), which is above 1 within that
    share. All groups are ranked together, so the layers keep their proportions at any sparsity.
    """
    scores = {name: theta[name].where(mask, theta[name] * REVIVED) for name, mask in living.items()}
    groups = pruner.groups
    if groups is None or by == "score":
        return pruner.select(scores, pruner.dense(), sparsity)
    worth, alive = groups.sums(scores) / groups.sizes, groups.sums(living)
    inside = torch.zeros(groups.count, dtype=torch.float64)
    for layer in groups.layers():
        density = float(alive[layer].sum() / groups.sizes[layer].sum())
        rank = worth[layer].argsort(descending=True, stable=True).argsort()
        inside[layer] = density * len(rank) / (rank + 0.5)
    return groups.masks(global_groups(groups, inside, torch.ones(groups.count, dtype=torch.bool), sparsity))


def _living_blocks(pattern: Block | NOfM, masks: Masks) -> dict[str, int]:
    """How many blocks of each matrix live, which no permutation changes."""
    if isinstance(pattern, NOfM):
        return {}
    return {
        name: int((BlockGroups(pattern, {name: tuple(mask.shape)}).sums({name: mask}) > 0).sum())
        for name, mask in masks.items()
    }


def _kept(theta: Mapping[str, Tensor], before: Masks, after: Masks) -> float:
    """The share of the living weights' magnitude that lives on, 0 to 1."""
    whole = sum(float(theta[name][mask].double().sum()) for name, mask in before.items())
    lives = sum(float(theta[name][mask & after[name]].double().sum()) for name, mask in before.items())
    return lives / whole if whole else 0.0


def _report(
    ticket: Ticket, made: Ticket, by: str, theta: Mapping[str, Tensor], living: Masks, unpermuted: float
) -> dict[str, Any]:
    """What became of ``ticket``, whose ``living`` weights and θ are in the coordinates of ``made``."""
    return {
        "model": ticket.model,
        "from": ticket.identity,
        "ticket": made.identity,
        "pattern": made.pattern,
        "by": by,
        "sparsity_before": ticket.sparsity,
        "sparsity": made.sparsity,
        "magnitude_kept": _kept(theta, living, made.masks),
        "magnitude_kept_unpermuted": unpermuted if by == "regroup" else None,
        "permuted_axes": sorted(made.permutations),
        **_counts(theta, living, made.masks),
    }


def _counts(theta: Mapping[str, Tensor], before: Masks, after: Masks) -> dict[str, Any]:
    """What became of the weights, in all and in each layer."""
    layers = {}
    for name, was in before.items():
        now = after[name]
        layers[name] = {
            "sparsity_before": mask_algebra.sparsity({name: was}),
            "sparsity": mask_algebra.sparsity({name: now}),
            "magnitude_kept": _kept(theta, {name: was}, after),
            "survived": int((was & now).sum()),
            "died": int((was & ~now).sum()),
            "revived": int((now & ~was).sum()),
        }
    of_all = {key: sum(layer[key] for layer in layers.values()) for key in ("survived", "died", "revived")}
    revived_share = of_all["revived"] / max(1, of_all["survived"] + of_all["revived"])
    return {**of_all, "revived_share": revived_share, "layers": layers}


def _check_asked(ticket: Ticket, pattern: Pattern, by: str, path: Path, out: Path) -> None:
    if by not in WAYS:
        raise UserError(f"there is no way {by!r} to convert: --by is one of {', '.join(WAYS)}.")
    if isinstance(pattern, Unstructured):
        raise UserError("every ticket is unstructured to begin with: give a shape with --to (block:64x64, 2:4, heads).")
    if ticket.pattern != "unstructured":
        raise UserError(
            f"{path} is of the pattern {ticket.pattern} already: convert the unstructured one it came from."
        )
    if by == "regroup" and isinstance(pattern, Whole):
        raise UserError(f"the order of {pattern} changes nothing: --by score or --by refill converts to {pattern}.")
    check_ticket_out(out, path)


def _sparsity(ticket: Ticket, pattern: Pattern, given: float | None) -> float:
    if not isinstance(pattern, NOfM):
        return check_sparsity(ticket.sparsity if given is None else given)
    if given is not None and not abs(given - pattern.sparsity) <= SNAP:  # NaN too
        raise UserError(f"pattern {pattern} is {pattern.sparsity:.4g} sparse and nothing else: leave --sparsity out.")
    return pattern.sparsity
