"""Where a kernel runs: on a GPU, or in Triton's interpreter; everywhere else an operator's body is its reference."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import wrap_triton

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def runs_kernel(tensor: Tensor) -> bool:
    """True where an operator given ``tensor`` launches its kernel; its body returns the reference where not.

    A CPU kernel registered beside a Triton operator would be cleaner, and breaks ``torch.compile`` and AOTInductor on
    the CPU ("0 active drivers"); this works in both.
    """
    return tensor.is_cuda or INTERPRETED


def launchable(kernel: Any) -> Callable[..., Any]:
    """``kernel`` as a ``triton_op`` has to launch it: traceable by Inductor, or as it is in the interpreter."""
    return kernel if INTERPRETED else wrap_triton(kernel)


def fp32_precision() -> str:
    """How ``tl.dot`` multiplies fp32: with TF32's 10-bit mantissa where PyTorch is allowed to, else exactly."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"


def as_autocast_would(x: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in autocast's dtype where it is on for x's device, as ``F.linear`` would get them."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return x, *others
    dtype = torch.get_autocast_dtype(kind)
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in (x, *others))
