"""Zeros stay zero: masks held as state of the run and applied to parameters, optimizer states and gradients.

The weights stay ordinary parameters whose pruned entries are exactly 0.0. Nothing is hooked or reparametrized: DDP
hands out views of its buckets to hooks, and ``torch.nn.utils.prune`` multiplies on every forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from sparseticket.errors import RunFailure, UserError
from sparseticket.masks import Masks


class MaskedParameters:
    """The masks of one training, beside the parameters that they belong to, on the parameters' device."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], masks: Masks) -> None:
        self._parameters = {name: parameters[name] for name in masks}
        self._dead = {name: ~mask.to(self._parameters[name].device) for name, mask in masks.items()}
        self._live = {name: _all_bits(mask, self._parameters[name]) for name, mask in masks.items() if not mask.all()}

    @torch.no_grad()
    def mask_parameters(self) -> None:
        """Write +0.0 into pruned weights (w·m would write −0.0). After every prune, rewind and load."""
        for name, parameter in self._parameters.items():
            parameter.masked_fill_(self._dead[name], 0.0)

    @torch.no_grad()
    def mask_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Zero the optimizer's state at pruned weights: momentum that is kept would move them."""
        for name, parameter in self._parameters.items():
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value.masked_fill_(self._dead[name], 0.0)

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Zero the gradients of pruned weights in place: once a step, after backward and reduction, before clipping."""
        for name, live in self._live.items():
            if (gradient := self._parameters[name].grad) is not None:
                gradient.view(live.dtype).bitwise_and_(live)

    @torch.no_grad()
    def check_zeros(self) -> None:
        """Raise :class:`RunFailure` naming the first parameter whose pruned weights are not exactly 0."""
        for name, parameter in self._parameters.items():
            moved = int(parameter[self._dead[name]].count_nonzero())
            if moved:
                raise RunFailure(f"{moved} pruned weights of {name} are no longer 0. This is a bug: please report it.")


def _all_bits(mask: Tensor, like: Tensor) -> Tensor:
    """The mask in integers as wide as ``like``'s entries, all bits set where it lives, none elsewhere.

    An AND with it takes as long as multiplying, which makes NaN of 0 · ∞; masked_fill_ takes 2 to 5 times as long.
    """
    word = {2: torch.int16, 4: torch.int32, 8: torch.int64}[like.element_size()]
    return mask.to(like.device, word).neg_()


def refuse_if_zeros_move(make: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]) -> None:
    """Refuse an optimizer that moves a weight whose gradient, state and value are all 0 (noise, sign of zero, …).

    Raises:
        UserError: names the optimizer.
    """
    probe = nn.Parameter(torch.tensor([0.0, 1.0]))
    optimizer = make([probe])
    for _ in range(3):
        probe.grad = torch.tensor([0.0, 0.5])
        optimizer.step()
    if probe[0] != 0:
        raise UserError(
            f"{type(optimizer).__name__} moves weights whose gradient, state and value are 0, so that pruned weights "
            "would come back to life. Use adamw or sgd."
        )
