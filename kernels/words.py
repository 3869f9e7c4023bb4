"""Masks as kernels read them: 32 entries of a row in one int32 word, the least significant bit first."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparseticket.kernels.launch import INTERPRETED

BITS = 32
NATIVE = tl.constexpr(not INTERPRETED)


def pack_words(mask: Tensor) -> Tensor:
    """Pack a bool mask ``[..., K]`` into int32 words ``[..., ceil(K / 32)]`` on its device; padding bits are 0.

    Raises:
        ValueError: the mask is not bool, or has no dimension.
    """
    if mask.dtype != torch.bool or mask.ndim == 0:
        raise ValueError(f"a mask is a bool tensor of one dimension or more, not {mask.dtype} of {tuple(mask.shape)}")
    length = mask.shape[-1]
    padded = torch.nn.functional.pad(mask, (0, -length % BITS)).unflatten(-1, (-1, BITS))
    place = torch.ones(BITS, dtype=torch.int64, device=mask.device) << torch.arange(BITS, device=mask.device)
    return (padded * place).sum(-1).to(torch.int32)  # 2^31 wraps to the sign bit


def unpack_words(words: Tensor, length: int) -> Tensor:
    """The bool mask ``[..., length]`` that :func:`pack_words` packed.

    Raises:
        ValueError: ``words`` is not int32, or does not hold just ``length`` bits a row.
    """
    if words.dtype != torch.int32 or words.shape[-1] != -(-length // BITS):
        raise ValueError(f"{tuple(words.shape)} of {words.dtype} cannot hold rows of {length} bits")
    bits = words.unsqueeze(-1) >> torch.arange(BITS, dtype=torch.int32, device=words.device) & 1
    return bits.flatten(-2)[..., :length].bool()


@triton.jit
def popcount(word):
    """How many bits of each int32 are set."""
    if NATIVE:  # one instruction, 16 a clock on each multiprocessor; the ten below manage half of that
        return tl.inline_asm_elementwise("popc.b32 $0, $1;", "=r,r", [word], dtype=tl.int32, is_pure=True, pack=1)
    word = word.to(tl.uint32)
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return ((word * 0x01010101) >> 24).to(tl.int32)
