"""Prune: score every weight, then select which stay alive. Masks only ever shrink."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sparseticket.errors import RunFailure
from sparseticket.masks import Masks, is_subset
from sparseticket.pruning.score import magnitude
from sparseticket.pruning.select import global_unstructured

__all__ = ["magnitude_prune"]


def magnitude_prune(weights: Mapping[str, Tensor], masks: Masks, sparsity: float) -> Masks:
    """Global magnitude pruning: of what is alive in ``masks``, the smallest |w| over all tensors together go.

    Returns masks of just ``sparsity`` (to within one weight), alive only where ``masks`` are.
    """
    shrunk = global_unstructured(magnitude(weights), masks, sparsity)
    if not is_subset(shrunk, masks):
        raise RunFailure("pruning revived a weight; this is a bug of sparseticket: please report it")
    return shrunk
