"""Scores: the higher, the longer a weight lives. A tensor of scores has its weight's shape, fp32 on the CPU."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparseticket.errors import RunFailure


def magnitude(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """|w|, the score of both papers.

    Raises:
        RunFailure: a weight is not finite (it could not be ranked); names the tensor.
    """
    scores = {}
    for name, weight in weights.items():
        scores[name] = weight.detach().float().abs().cpu()
        if not torch.isfinite(scores[name]).all():
            raise RunFailure(f"{name} holds weights that are not finite, which cannot be ranked: try a lower --lr.")
    return scores
