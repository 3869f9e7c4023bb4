"""How often a tensor was written in place, by autograd's own count: to look at it waits for no device."""

from __future__ import annotations

import torch
from torch import Tensor


def version_of(tensor: Tensor) -> int:
    """The count; always 0 where there is none (inference tensors) and while ``torch.compile`` traces.

    Writes through ``.data``, and those of a CUDA graph that is replayed, are not counted.
    """
    return 0 if torch.compiler.is_compiling() or tensor.is_inference() else tensor._version
