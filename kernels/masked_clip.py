"""Clip gradients by the norm of what is alive, without waiting for the device.

Two passes, deterministic: each program writes the sum of squares of its chunk, one program adds these in a fixed order.
Dead groups of eight entries are not read. Where one of this package's optimizers follows, its ``clip_grad_norm`` is
cheaper: the gradients are then not written, the step divides while it reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparseticket.kernels.launch import INTERPRETED, on_device_of, runs_kernel
from sparseticket.kernels.live_words import check_dense, flat, mask_of, mask_words
from sparseticket.kernels.operators import opaque_operator
from sparseticket.kernels.tensor_table import Chunking, column, find_chunk, launches, live_entries

NO_WORDS = torch.empty(0, dtype=torch.int32)
CHUNKING = Chunking(4096, 8)  # 95 µs for BERT-base's encoder in fp32 on an H200; with 1024 and 4 warps, 118


@triton.jit
def squares_kernel(rows, owners, partial, GRADIENT: tl.constexpr, CHUNK: tl.constexpr, EVEN: tl.constexpr):
    """``partial[program]``: sum of squares of a chunk's live gradients."""
    row, size, start = find_chunk(rows, owners, 2, CHUNK)
    gradient = column(row, 0, GRADIENT, EVEN)
    offsets, alive, touched = live_entries(row, 1, start, size, CHUNK, EVEN)
    value = tl.load(gradient + offsets, mask=touched, other=0).to(tl.float32)
    value = tl.where(alive & touched, value, 0.0)
    tl.store(partial + tl.program_id(0), tl.sum(tl.sum(value * value, 1), 0))


@triton.jit
def total_kernel(partial, norm, count, BLOCK: tl.constexpr):
    """``norm[0]``: square root of the sum of ``partial[:count]``; one program."""
    place = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, count, BLOCK):
        total += tl.load(partial + start + place, mask=start + place < count, other=0)
    tl.store(norm, tl.sqrt(tl.sum(total, 0)))


def masked_norm_reference(gradients: Sequence[Tensor], words: Sequence[Tensor]) -> Tensor:
    """The same in plain PyTorch."""
    norms = [
        torch.linalg.vector_norm(flat(gradient).masked_fill(~mask_of(word, gradient), 0), dtype=torch.float32)
        for gradient, word in zip(gradients, words, strict=True)
    ]
    return torch.linalg.vector_norm(torch.stack(norms))


@opaque_operator("masked_norm")
def masked_norm_unchecked(gradients: list[Tensor], words: list[Tensor]) -> Tensor:
    if not runs_kernel(gradients[0]):
        return masked_norm_reference(gradients, words)
    todo = launches((gradients, words), CHUNKING.chunk)
    device = gradients[0].device
    partial = torch.empty(sum(launch.programs for launch in todo), dtype=torch.float32, device=device)
    norm = torch.zeros((), dtype=torch.float32, device=device)
    begin = 0
    for launch in todo:
        launch.run(squares_kernel, partial[begin:], launch.dtypes[0], chunking=CHUNKING)
        begin += launch.programs
    with on_device_of(partial):
        total_kernel[(1,)](partial, norm, begin, 64 if INTERPRETED else 4096, num_warps=8)
    return norm


@masked_norm_unchecked.register_fake
def _(gradients: list[Tensor], words: list[Tensor]) -> Tensor:
    return gradients[0].new_empty((), dtype=torch.float32)


def masked_grad_norm(gradients: Sequence[Tensor], words: Sequence[Tensor]) -> Tensor:
    """2-norm over the live entries of ``gradients`` (fp16, bf16, fp32; on one device): fp32 ``[]``, on that device.

    ``words[i]`` is int32 ``[ceil(numel / 32)]``, the mask of ``gradients[i]`` in the order of its storage, or has no
    entry where everything is alive (:func:`sparseticket.kernels.live_words.mask_words` makes both).

    Raises:
        ValueError: the lists are not of one length, or a tensor's dtype, device, layout or number of words is wrong.
    """
    if not gradients:
        return torch.zeros(())
    check_dense(gradients, words, gradients=gradients)
    return masked_norm_unchecked(list(gradients), list(words))


@torch.no_grad()
def masked_clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor], masks: Mapping[Tensor, Tensor], max_norm: float
) -> Tensor:
    """Mask the gradients in place, and scale them so that the 2-norm of what is alive is at most ``max_norm``.

    What :func:`torch.nn.utils.clip_grad_norm_` does after gradients were multiplied by their masks, for use with any
    optimizer. ``masks`` holds a bool mask for each masked parameter, or its words, which saves packing it every time.

    Returns:
        The norm before, fp32 ``[]`` on the device of the gradients; nothing waits for it.

    Raises:
        ValueError: a mask's shape, dtype or device is not its parameter's, or ``max_norm`` is not above 0.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be above 0, not {max_norm}")
    parameters = [parameters] if isinstance(parameters, Tensor) else parameters
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    if not with_gradient:
        return torch.zeros(())
    gradients = [parameter.grad for parameter in with_gradient]
    words = [mask_words(masks[p], p.grad) if p in masks else NO_WORDS.to(p.device) for p in with_gradient]
    norm = masked_grad_norm(gradients, words)
    for gradient, word in zip(gradients, words, strict=True):
        if len(word):
            flat(gradient).masked_fill_(~mask_of(word, gradient), 0)
    torch._foreach_div_(gradients, clip_divisor(norm, max_norm))
    return norm


def clip_divisor(norm: Tensor, max_norm: float) -> Tensor:
    """What gradients of this norm are divided by, 1 or more: the inverse of torch's coefficient, its 1e-6 too."""
    return ((norm + 1e-6) / max_norm).clamp(min=1)
