"""What every linear's kernel asks of its operands before it is launched."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseticket.kernels.launch import FLOATS

MOST_SIDE = 16 * 65535  # of a weight: the smallest tile by what a grid has in its second dimension
ROW_LIMIT = 2**31 - 256  # a row's number is an int32; 256 is the largest tile


def check_linear(x: Tensor, size: tuple[int, int], bias: Tensor | None, *, index: Tensor, **weights: Tensor) -> None:
    """Raise ValueError unless ``x [..., K]``, ``bias [N]`` and ``weights`` go together.

    Args:
        x: the input.
        size: ``(N, K)`` of the weight.
        bias: or None.
        index: what says where the weight lives (words, a layout's indices), whatever its dtype.
        weights: what holds the weight's values, by the word for it.
    """
    n, k = size
    if x.ndim == 0 or x.shape[-1] != k:
        raise ValueError(f"x has to end with {k} features for a weight of {(n, k)}, and is {tuple(x.shape)}")
    if k == 0:
        raise ValueError(f"a weight of {(n, k)} has nothing to sum over")
    if max(n, k) > MOST_SIDE:
        raise ValueError(f"a weight of {(n, k)} is too large for a grid, which takes sides of {MOST_SIDE}: split it")
    if not torch.compiler.is_compiling() and x.numel() // k > ROW_LIMIT:
        raise ValueError(f"x has {x.numel() // k} rows, and a kernel takes {ROW_LIMIT}: split it")
    if bias is not None and bias.shape != (n,):
        raise ValueError(f"the bias has to be of {(n,)} for a weight of {(n, k)}, and is {tuple(bias.shape)}")
    if x.dtype not in FLOATS:
        raise ValueError(f"x is {x.dtype}; this runs fp16, bf16 and fp32")
    others = [*weights.items(), *([("bias", bias)] if bias is not None else [])]
    for name, other in others:
        if other.dtype != x.dtype:
            name = name.replace("_", " ")
            raise ValueError(f"x is {x.dtype} and {name} {other.dtype}: cast one of them, or use autocast")
    for name, other in (*others, ("the mask", index)):
        if other.device != x.device:
            name = name.replace("_", " ")
            raise ValueError(f"x is on {x.device} and {name} on {other.device}: move one of them with .to()")
