"""Selection: from scores to masks of an exact sparsity."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparseticket.errors import UserError
from sparseticket.masks import Masks, alive, size


def global_unstructured(scores: Mapping[str, Tensor], masks: Masks, sparsity: float) -> Masks:
    """Keep the best of what is alive, ranked over all tensors together, so that ``sparsity`` of all weights are pruned.

    The number kept is ``round((1 - sparsity) * size)``; equal scores live in order of tensor and position.

    Raises:
        UserError: more would be alive than are.
    """
    keep = round((1 - sparsity) * size(masks))
    if keep > alive(masks):
        raise UserError(f"cannot prune to {sparsity:.4f}: the ticket is sparser than that already; masks only shrink.")
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
