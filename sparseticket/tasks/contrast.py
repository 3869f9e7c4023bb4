"""What contrastive pre-training computes: the losses of SimCLR and MoCo, and the accuracy of retrieval."""

from __future__ import annotations

import math

import torch
import torch.distributed as distributed
import torch.nn.functional as F
from torch import Tensor


def nt_xent(first: Tensor, second: Tensor, temperature: float, mean: str = "mean-of-logs") -> Tensor:
    """SimCLR's loss (Chen et al. 2020, arXiv 2002.05709, equation 1), a scalar.

    p of a view is its softmax share, over all other views, at the view of the same image; similarity is the cosine over
    ``temperature``.

    Args:
        first: a view of each image, float [N, dimensions].
        second: another view of the same images.
        temperature: τ.
        mean: "mean-of-logs" is the paper's mean of −log p; "log-of-mean" is −log of the mean p, as in the code that was
            released with arXiv 2012.06908.
    """
    with _in_fp32(first):
        views = F.normalize(torch.cat([first, second]).float(), dim=1)
        similarity = (views @ views.T / temperature).fill_diagonal_(float("-inf"))
        log_p = similarity.log_softmax(dim=1).gather(1, _partners(len(first), views.device)[:, None]).squeeze(1)
        if mean == "mean-of-logs":
            return -log_p.mean()
        return math.log(len(log_p)) - log_p.logsumexp(dim=0)


def info_nce(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """MoCo's loss (He et al. 2020, arXiv 1911.05722, equation 1), a scalar: each query's own key against the queue.

    Args:
        queries: float [N, dimensions], of unit length.
        keys: of the same images in the same order, float [N, dimensions], of unit length.
        queue: keys of other images, float [K, dimensions], of unit length.
        temperature: τ.
    """
    with _in_fp32(queries):
        own = (queries * keys).sum(dim=1, keepdim=True)
        logits = torch.cat([own, queries @ queue.T], dim=1) / temperature
        return F.cross_entropy(logits, torch.zeros(len(queries), dtype=torch.int64, device=queries.device))


def retrieved(first: Tensor, second: Tensor) -> Tensor:
    """Which views have the other view of their image as nearest of all, by cosine; bool [2N], first views first.

    As the code released with arXiv 2012.06908 measures SimCLR: float [N, dimensions] each, N images of a batch.
    """
    views = F.normalize(torch.cat([first, second]).float(), dim=1)
    nearest = (views @ views.T).fill_diagonal_(float("-inf")).argmax(dim=1)
    return nearest == _partners(len(first), views.device)


def nearest_of_same_class(features: Tensor, labels: Tensor, rows: int = 1024) -> Tensor:
    """Which images have one of their own class as nearest other image, by cosine; bool [N].

    ``features`` are float [N, dimensions], ``labels`` int64 [N]; ``rows`` images are compared with all at a time.
    """
    unit = F.normalize(features.float(), dim=1)
    hits = []
    for chunk in torch.arange(len(unit), device=unit.device).split(rows):
        similarity = unit[chunk] @ unit.T
        similarity.scatter_(1, chunk[:, None], float("-inf"))
        hits.append(labels[similarity.argmax(dim=1)] == labels[chunk])
    return torch.cat(hits)


def _partners(images: int, device: torch.device) -> Tensor:
    """The other view of each of 2N views: int64 [2N]."""
    return torch.arange(2 * images, device=device).roll(images)


def _in_fp32(tensor: Tensor) -> torch.autocast:
    """Mixed precision off: a cosine in bf16 is right to 0.004, and is divided by a temperature of 0.1."""
    return torch.autocast(tensor.device.type, enabled=False)


def processes() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def gathered(mine: Tensor) -> Tensor:
    """The rows of all processes, process by process; each has as many.

    Gradients reach this process's rows only, times the number of processes: where all compute the same loss of all
    rows, the mean that DDP takes over them is then the loss's gradient.
    """
    count = processes()
    if count == 1:
        return mine
    parts = [torch.empty_like(mine) for _ in range(count)]
    distributed.all_gather(parts, mine.detach().contiguous())
    parts[distributed.get_rank()] = mine * count - mine.detach() * (count - 1)
    return torch.cat(parts)
