"""Prune: score every weight, then select which stay alive. Masks only ever shrink."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sparseticket.errors import RunFailure
from sparseticket.masks import Masks, is_subset
from sparseticket.pruning.pruner import Pruner
from sparseticket.pruning.score import magnitude
from sparseticket.pruning.select import global_unstructured

__all__ = ["Pruner", "magnitude_prune"]


def magnitude_prune(
    weights: Mapping[str, Tensor], masks: Masks, sparsity: float, pruner: Pruner | None = None
) -> Masks:
    """Magnitude pruning: of what is alive in ``masks``, the smallest |w| go, ranked over all tensors together.

    With a ``pruner`` the groups of the smallest mean |w| go (N:M: the smallest |w| among M neighbours). Returns masks
    of just ``sparsity`` (to within one weight, or group), alive only where ``masks`` are.
    """
    select = pruner.select if pruner else global_unstructured
    shrunk = select(magnitude(weights), masks, sparsity)
    if not is_subset(shrunk, masks):
        raise RunFailure("pruning revived a weight; this is a bug of sparseticket: please report it")
    return shrunk
