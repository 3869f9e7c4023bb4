"""LARS: SGD whose step is scaled for each tensor by the ratio of its norm to its gradient's."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

TRUST = 1e-3  # η of the paper; the vision paper's released code leaves it there
TINY = 1e-15  # norms below it have no ratio: the step is then SGD's


class Lars(torch.optim.Optimizer):
    """Algorithm 1 of You, Gitman and Ginsburg 2017 (arXiv 1708.03888), without its polynomial decay.

    v ← momentum · v + lr · η·|w| / (|g| + weight_decay·|w|) · (g + weight_decay·w), then w ← w − v. Norms are over
    whole tensors, in which pruned weights count as the zeros that they are. PyTorch has no LARS of its own.
    """

    def __init__(self, params: Iterable[nn.Parameter], *, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """See :meth:`torch.optim.Optimizer.step`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in (parameter for parameter in group["params"] if parameter.grad is not None):
                state = self.state[weight]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                velocity = state["momentum_buffer"]
                rate = group["lr"] * _trust_ratio(weight, weight.grad, group["weight_decay"])
                change = weight.grad.add(weight, alpha=group["weight_decay"])
                velocity.mul_(group["momentum"]).add_(change * rate)
                weight.sub_(velocity)
        return loss


def _trust_ratio(weight: torch.Tensor, gradient: torch.Tensor, weight_decay: float) -> torch.Tensor:
    of_weight, of_gradient = weight.norm(), gradient.norm()
    ratio = TRUST * of_weight / (of_gradient + weight_decay * of_weight)
    return torch.where((of_weight < TINY) | (of_gradient < TINY), torch.ones_like(ratio), ratio)
