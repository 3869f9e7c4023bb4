"""Random masks of two kinds: of just one density everywhere, and ranked over all layers, as IMP makes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparseticket.kernels.dispatch import Case
from sparseticket.kernels.tune import random_mask

Shape = tuple[int, int]


def uniform_mask(shape: Shape, block: Shape, density: float, seed: int) -> Tensor:
    """Bool ``[N, K]`` with just this share of blocks alive, placed evenly; a block of (1, 1) is an entry."""
    pattern = "unstructured" if block == (1, 1) else f"block:{block[0]}x{block[1]}"
    case = Case("infer", *shape, pattern, "float32")
    return random_mask(case, density, torch.Generator().manual_seed(seed))


def ranked_masks(
    shapes: Sequence[Shape], block: Shape, density: float, seed: int, device: str, keep: Sequence[int]
) -> list[Tensor]:
    """Rank the blocks of random normal weights by mean magnitude over all ``shapes`` at once, and keep the largest.

    Returns:
        The bool masks of the layers in ``keep``, on the device.
    """
    draw = torch.Generator(device).manual_seed(seed)
    scores = []
    for n, k in shapes:
        if n % block[0] or k % block[1]:
            raise ValueError(f"blocks of {block} do not divide a weight of {(n, k)}")
        weight = torch.randn(n, k, generator=draw, device=device).abs_()
        scores.append(weight.reshape(n // block[0], block[0], k // block[1], block[1]).mean((1, 3)))
    every = torch.cat([score.flatten() for score in scores])
    alive = round(density * len(every))
    least = every.sort(descending=True).values[alive - 1]
    return [(scores[place] >= least).repeat_interleave(block[0], 0).repeat_interleave(block[1], 1) for place in keep]


def bert_shapes(hidden: int, layers: int) -> list[Shape]:
    """The matrices of a BERT, layer by layer: query, key, value, output, and the feed-forward's two."""
    layer = [*[(hidden, hidden)] * 4, (4 * hidden, hidden), (hidden, 4 * hidden)]
    return layer * layers
