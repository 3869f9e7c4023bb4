"""Selection: from scores to masks of an exact sparsity."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparseticket.errors import UserError
from sparseticket.masks import Masks, alive, size
from sparseticket.pruning.groups import Groups


def global_unstructured(scores: Mapping[str, Tensor], masks: Masks, sparsity: float) -> Masks:
    """Keep the best of what is alive, ranked over all tensors together, so that ``sparsity`` of all weights are pruned.

    The number kept is ``round((1 - sparsity) * size)``; equal scores live in order of tensor and position.

    Raises:
        UserError: more would be alive than are.
    """
    keep = round((1 - sparsity) * size(masks))
    if keep > alive(masks):
        raise _sparser_already(sparsity)
    living = torch.cat([scores[name][mask] for name, mask in masks.items()])
    kept = torch.zeros(len(living), dtype=torch.bool)
    if keep:
        threshold = living.kthvalue(len(living) - keep + 1).values
        kept |= living > threshold
        ties = (living == threshold).nonzero().flatten()
        kept[ties[: keep - int(kept.count_nonzero())]] = True
    selected, position = {}, 0
    for name, mask in masks.items():
        count = int(mask.count_nonzero())
        selected[name] = torch.zeros_like(mask)
        selected[name][mask] = kept[position : position + count]
        position += count
    return selected


def mean_over_groups(groups: Groups, scores: Mapping[str, Tensor], masks: Masks) -> Tensor:
    """The mean score of each group's living weights, [count]; 0 for a dead group.

    Not the sum: groups of different sizes are ranked together; a head of BERT-base has 128 times a neuron's weights.
    """
    living = groups.sums(masks)
    return groups.sums({name: score * masks[name] for name, score in scores.items()}) / living.clamp(min=1)


def global_groups(groups: Groups, scores: Tensor, kept: Tensor, sparsity: float) -> Tensor:
    """Let the groups of the lowest ``scores`` die, ranked together, until the sparsity is the nearest to ``sparsity``.

    The best group of every layer survives; of blocks, the best of all. Equal scores live in order.

    Args:
        groups: a pattern's groups.
        scores: of each group, [count].
        kept: which groups are alive now, bool [count].
        sparsity: share of all the network's prunable weights, a fraction.

    Returns:
        Which groups are alive then; alive only where ``kept`` is.

    Raises:
        UserError: the smallest groups that can survive hold more; or it is sparser already by more than one.
    """
    mortal = kept.clone()
    mortal[groups.best_of_each_layer(scores.where(kept, -torch.inf))] = False
    candidates = mortal.nonzero().flatten()
    order = candidates[scores[candidates].sort(descending=True, stable=True).indices.flip(0)]
    alive_after = groups.alive_after(kept, order)
    keep = weights_to_keep(groups, sparsity)
    if keep > alive_after[0] + groups.sizes.max():
        raise _sparser_already(sparsity)
    still = kept.clone()
    still[order[: (alive_after - keep).abs().argmin()]] = False
    return still


def reach(groups: Groups, *, surely: bool = False) -> tuple[int, int]:
    """How many weights there are in all, and how many in as few groups as can survive alone.

    Where these can be of different sizes, they are the smallest; ``surely`` takes the largest, which may score best.
    """
    everything = torch.ones(groups.count, dtype=torch.bool)
    mortal = everything.clone()
    mortal[groups.best_of_each_layer(groups.sizes if surely else -groups.sizes)] = False
    alive_after = groups.alive_after(everything, mortal.nonzero().flatten())
    return int(alive_after[0]), int(alive_after[-1])


def weights_to_keep(groups: Groups, sparsity: float, *, surely: bool = False) -> int:
    """How many weights are alive at ``sparsity``.

    Raises:
        UserError: as few groups as can survive hold more (see :func:`reach`); names the largest sparsity.
    """
    total, fewest = reach(groups, surely=surely)
    keep = round((1 - sparsity) * total)
    if keep < fewest:
        which = "largest" if surely else "smallest"
        raise UserError(
            f"a sparsity of {sparsity:.4g} cannot be reached: with as few groups left as a network needs, the "
            f"{which}, it is {1 - fewest / total:.4f}. Choose a lower --sparsity (it is the share of all prunable "
            "weights, those that this pattern leaves alone included)."
        )
    return keep


def n_of_m(scores: Mapping[str, Tensor], masks: Masks, n: int, m: int) -> Masks:
    """Keep the best ``n`` of every ``m`` neighbours along dim 1, of what is alive; equal scores live in order.

    Raises:
        UserError: fewer than ``n`` are alive somewhere.
    """
    selected = {}
    for name, mask in masks.items():
        ranked = scores[name].where(mask, -torch.inf).movedim(1, -1).unflatten(-1, (-1, m))
        best = ranked.sort(dim=-1, descending=True, stable=True).indices[..., :n]
        kept = torch.zeros(ranked.shape, dtype=torch.bool).scatter_(-1, best, True)
        selected[name] = kept.flatten(-2).movedim(-1, 1).contiguous()
        if (selected[name] & ~mask).any():
            raise _sparser_already(1 - n / m)
    return selected


def _sparser_already(sparsity: float) -> UserError:
    return UserError(f"cannot prune to {sparsity:.4f}: the ticket is sparser than that already; masks only shrink.")
