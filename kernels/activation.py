"""What a linear's kernel may do to its result before it stores it: nothing, ReLU, or exact GELU; and the gradient."""

from __future__ import annotations

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


def activate_backward(grad: Tensor, pre: Tensor, activation: str) -> Tensor:
    """The gradient before the activation, from the one behind it and from what went in."""
    if activation == "relu":
        return torch.ops.aten.threshold_backward(grad, pre, 0)
    return torch.ops.aten.gelu_backward(grad, pre) if activation == "gelu" else grad


def check_activation(activation: str) -> None:
    """Raise ValueError unless it is one of :data:`ACTIVATIONS`."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"an activation is one of {', '.join(ACTIVATIONS)}, not {activation!r}")
