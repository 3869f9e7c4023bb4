"""What a linear's kernel may do to its result before it stores it: nothing, ReLU, or exact GELU; and the gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

ACTIVATIONS = ("none", "relu", "gelu")


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """``act(x)`` of an fp32 tile."""
    if ACTIVATION == "relu":
        x = tl.where(x < 0.0, 0.0, x)  # NaN stays NaN, which tl.maximum would make 0
    elif ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    return x


def activate_reference(x: Tensor, activation: str) -> Tensor:
    """The same in plain PyTorch; returns ``x`` itself for ``none``."""
    if activation == "relu":
        return F.relu(x)
    return F.gelu(x) if activation == "gelu" else x


def activate_and_keep(pre: Tensor, activation: str, keep_pre: bool) -> tuple[Tensor, Tensor]:
    """The same, and beside it what went in where a gradient will need it, else a tensor without entries."""
    y = activate_reference(pre, activation)
    return y, pre if keep_pre and y is not pre else pre.new_empty(0)


def linear_gradients(
    dy: Tensor | None,
    pre: Tensor,
    activation: str,
    needed: Sequence[bool],
    of_input: Callable[[Tensor], Tensor],
    of_weight: Callable[[Tensor], Tensor],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Those ``needed`` of a linear's input, weight and bias, from ``dy [M, N]`` behind its activation."""
    if dy is None:
        return None, None, None
    dy = activate_backward(dy, pre, activation)
    needs_input, needs_weight, needs_bias = needed
    return (
        of_input(dy) if needs_input else None,
        of_weight(dy) if needs_weight else None,
        dy.sum(0) if needs_bias else None,
    )


def activate_backward(grad: Tensor, pre: Tensor, activation: str) -> Tensor:
    """The gradient before the activation, from the one behind it and from what went in."""
    if activation == "relu":
        return torch.ops.aten.threshold_backward(grad, pre, 0)
    return torch.ops.aten.gelu_backward(grad, pre) if activation == "gelu" else grad


def check_activation(activation: str) -> None:
    """Raise ValueError unless it is one of :data:`ACTIVATIONS`."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"an activation is one of {', '.join(ACTIVATIONS)}, not {activation!r}")
