"""Masks of parameters as the optimizers hold them: words over the whole tensor, in the order of its storage."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from sparseticket.kernels.launch import FLOATS
from sparseticket.kernels.words import BITS, pack_words, unpack_words
from sparseticket.masks import pack


def flat(tensor: Tensor) -> Tensor:
    """The entries of a dense tensor in the order of its storage, as a view ``[numel]``."""
    return tensor.as_strided((tensor.numel(),), (1,))


def is_dense(tensor: Tensor) -> bool:
    """True where the entries fill their storage without gaps, in whatever order of dimensions."""
    return torch.ops.aten.is_non_overlapping_and_dense(tensor)


def mask_words(mask: Tensor, like: Tensor) -> Tensor:
    """A bool mask as int32 words ``[ceil(numel / 32)]`` in the order of ``like``'s storage, on its device.

    Words are given back as they are. An all-live mask is one of words too; ``torch.empty(0)`` stands for no mask.

    Raises:
        ValueError: not a mask of ``like``, or ``like`` has gaps in its storage.
    """
    if not is_dense(like):
        raise ValueError(f"a masked tensor must fill its storage: call .contiguous() on that of {tuple(like.shape)}")
    if mask.dtype == torch.int32 and mask.shape == (-(-like.numel() // BITS),):
        return mask.to(like.device)
    if mask.dtype != torch.bool or mask.shape != like.shape:
        raise ValueError(
            f"a tensor of {tuple(like.shape)} needs a bool mask of its shape, not {mask.dtype} of {tuple(mask.shape)}"
        )
    ordered = torch.empty_like(like, dtype=torch.bool, requires_grad=False).copy_(mask)
    return pack_words(flat(ordered))


def mask_of(words: Tensor, like: Tensor) -> Tensor:
    """The bool mask ``[numel]`` in the order of ``like``'s storage; all alive where there are no words."""
    if not len(words):
        return torch.ones(like.numel(), dtype=torch.bool, device=like.device)
    return unpack_words(words, BITS * len(words))[: like.numel()].to(like.device)


def mask_hash(mask: Tensor) -> str:
    """SHA-256 of a bool mask's packed bits, as a ticket file holds them."""
    return hashlib.sha256(pack(mask).numpy().tobytes()).hexdigest()


def check_dense(first: Sequence[Tensor], words: Sequence[Tensor], **others: Sequence[Tensor]) -> None:
    """Raise ValueError unless all lists go together, entry by entry: shape, strides, device, a dtype that kernels read.

    ``others`` are tensors shaped like those of ``first``.
    """
    for name, tensors in {"words": words, **others}.items():
        if len(tensors) != len(first):
            raise ValueError(f"there are {len(first)} tensors, and {len(tensors)} of {name}")
    for place, tensor in enumerate(first):
        what = f"tensor {place} of {tuple(tensor.shape)}"
        if tensor.dtype not in FLOATS or not is_dense(tensor):
            raise ValueError(f"{what} must be dense fp16, bf16 or fp32, not {tensor.dtype} with {tensor.stride()}")
        if tensor.device != first[0].device:
            raise ValueError(f"{what} is on {tensor.device}, another on {first[0].device}")
        word = words[place]
        if (
            word.dtype != torch.int32
            or word.device != tensor.device
            or word.shape not in ((0,), (-(-tensor.numel() // BITS),))
            or not word.is_contiguous()
        ):
            raise ValueError(
                f"{what} on {tensor.device} needs contiguous int32 words of its mask on its device, or none, not "
                f"{tuple(word.shape)} of {word.dtype} with {word.stride()} on {word.device}"
            )
        for name, tensors in others.items():
            other = tensors[place]
            if other.shape != tensor.shape or other.device != tensor.device or other.dtype not in FLOATS:
                raise ValueError(f"{what} cannot have {name} of {tuple(other.shape)}, {other.dtype} on {other.device}")
            if other.stride() != tensor.stride():
                raise ValueError(f"{what} and its {name} differ in strides: {tensor.stride()} and {other.stride()}")
