"""Block-sparse 1×1 and 3×3 convolutions for inference: an implicit GEMM over the live blocks of a packed weight.

A block is R output × C input channels at one tap, as in tickets of the pattern ``block:RxC``. Images lie channels last,
so that a tap's channels are one contiguous read; the matrix of patches is never written. Rows of the product are output
pixels, and a program sums, for its tile of output channels, over that block row's live (tap, input block) pairs. It can
pay where weights and arithmetic dominate (3×3 in the last two stages of a ResNet); 1×1 convolutions are mostly bound by
the traffic of activations, which zeros in a weight do not lessen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn

from sparseticket.kernels.activation import activate, activate_reference, check_activation
from sparseticket.kernels.blocks import check_block
from sparseticket.kernels.bsr import Tiles, check_tiles
from sparseticket.kernels.bsr import candidate_tiles as linear_tiles
from sparseticket.kernels.launch import (
    FLOATS,
    as_autocast_would,
    ceil_div,
    fp32_precision,
    runs_kernel,
    without_autocast,
    wrap_triton,
)
from sparseticket.kernels.operators import operator

KERNEL_SIZES = ((1, 1), (3, 3))
TAP_SHIFT = tl.constexpr(16)  # an entry of `place` is tap << TAP_SHIFT | input block
INPUT_BLOCK = tl.constexpr((1 << TAP_SHIFT.value) - 1)
PROGRAMS = 132  # the multiprocessors of an H100: with fewer programs than that, tiles get smaller


@triton.jit
def bsr_conv2d_kernel(
    X,  # [images, height, width, channels]
    VALUES,  # [nnzb, BLOCK_O, BLOCK_C]
    Y,  # [images, out_height, out_width, out_channels]
    BIAS,
    RESIDUAL,  # as Y
    CROW,
    PLACE,
    images,
    height,
    width,
    channels,
    out_height,
    out_width,
    out_channels,
    pad_h,
    pad_w,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_O: tl.constexpr,
    TILE_C: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PADDED: tl.constexpr,
    EVEN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``act(conv(x) + bias + residual)`` for one tile of output pixels and output channels."""
    steps: tl.constexpr = BLOCK_C // TILE_C  # of one block
    o_tiles = tl.cdiv(out_channels, TILE_O)
    pid_o = tl.program_id(0) % o_tiles  # neighbours share their pixels, which are more than a weight fills of the L2
    first = (tl.program_id(0) // o_tiles).to(tl.int64) * TILE_M
    in_tile = tl.arange(0, TILE_M)
    pixels = out_height * out_width
    from_image = (first % pixels).to(tl.int32) + in_tile  # 64-bit division once a program, not once a row
    image = first // pixels + from_image // pixels
    pixel = from_image % pixels
    h = pixel // out_width * STRIDE_H - pad_h
    w = pixel % out_width * STRIDE_W - pad_w
    x_rows = X + ((image * height + h) * width + w)[:, None] * channels

    block_o = pid_o * TILE_O // BLOCK_O
    start = tl.load(CROW + block_o)
    end = tl.load(CROW + block_o + 1)
    o = pid_o * TILE_O + tl.arange(0, TILE_O)
    value_columns = VALUES + (o % BLOCK_O)[None, :] * BLOCK_C
    acc = tl.zeros((TILE_M, TILE_O), dtype=tl.float32)
    place = tl.load(PLACE + start)
    for step in range(start * steps, end * steps):
        tap_h = (place >> TAP_SHIFT) // KERNEL_W
        tap_w = (place >> TAP_SHIFT) % KERNEL_W
        c_in_block = step % steps * TILE_C + tl.arange(0, TILE_C)
        c = (place & INPUT_BLOCK) * BLOCK_C + c_in_block
        live = image < images
        if PADDED:
            live = live & (h + tap_h >= 0) & (h + tap_h < height) & (w + tap_w >= 0) & (w + tap_w < width)
        live = live[:, None]
        if not EVEN:
            live = live & (c < channels)[None, :]
        tap = (tap_h * width + tap_w).to(tl.int64) * channels
        a = tl.load(x_rows + (tap + c)[None, :], mask=live, other=0.0)
        b = tl.load(value_columns + tl.cast(step // steps, tl.int64) * (BLOCK_O * BLOCK_C) + c_in_block[:, None])
        place = tl.load(PLACE + (step + 1) // steps)  # one ahead: see BlockLayout
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    if HAS_BIAS:
        acc += tl.load(BIAS + o, mask=o < out_channels, other=0.0).to(tl.float32)[None, :]
    at = (first + in_tile)[:, None] * out_channels + o[None, :]
    inside = (image < images)[:, None] & (o < out_channels)[None, :]
    if HAS_RESIDUAL:
        acc += tl.load(RESIDUAL + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(Y + at, activate(acc, ACTIVATION).to(Y.dtype.element_ty), mask=inside)


@dataclass(frozen=True)
class PackedConv2d:
    """The live blocks of a weight ``[O, I, kh, kw]``, in ascending order of (block row, tap, input block).

    Attributes:
        values: ``[nnzb, BN, BC]``, contiguous; 0 beyond the weight's edges and where the mask is dead inside a block.
        crow: ``[ceil(O / BN) + 1]`` int32, where each block row begins.
        place: ``[nnzb + 1]`` int32, ``tap << TAP_SHIFT | input block`` of each, with one entry of padding.
        row: ``[nnzb]`` int32, block row of each.
        shape: ``(O, I, kh, kw)``.
    """

    values: Tensor
    crow: Tensor
    place: Tensor
    row: Tensor
    shape: tuple[int, int, int, int]

    @classmethod
    def from_dense(cls, weight: Tensor, mask: Tensor, block: tuple[int, int]) -> PackedConv2d:
        """Pack ``weight [O, I, kh, kw]`` under a bool ``mask`` of its shape, in blocks ``(BN, BC)``.

        Raises:
            ValueError: the kernel is not 1×1 or 3×3, a block's side is none of 16 to 128, the mask does not fit.
        """
        check_block(block)
        if weight.ndim != 4 or tuple(weight.shape[2:]) not in KERNEL_SIZES:
            raise ValueError(f"the weight has to be [O, I, 1, 1] or [O, I, 3, 3], and is {tuple(weight.shape)}")
        if mask.dtype != torch.bool or mask.shape != weight.shape:
            raise ValueError(
                f"the mask has to be bool of {tuple(weight.shape)}, and is {mask.dtype} of {tuple(mask.shape)}"
            )
        mask = mask.to(weight.device)
        alive = _by_block(mask, block).flatten(3).any(3)
        row, tap, column = alive.nonzero().unbind(1)
        values = _by_block(weight.detach().masked_fill(~mask, 0), block)[row, tap, column].contiguous()
        crow = F.pad(alive.flatten(1).sum(1).cumsum(0), (1, 0)).to(torch.int32)
        place = F.pad(tap << TAP_SHIFT.value | column, (0, 1)).to(torch.int32)
        o, i, kh, kw = weight.shape
        return cls(values, crow, place, row.to(torch.int32), (o, i, kh, kw))

    @property
    def nnzb(self) -> int:
        """How many blocks are alive."""
        return len(self.row)

    @property
    def block(self) -> tuple[int, int]:
        """``(BN, BC)``."""
        return self.values.shape[1], self.values.shape[2]

    def to_dense(self) -> Tensor:
        """The weight ``[O, I, kh, kw]``, bit-equal where the mask is alive and +0.0 elsewhere."""
        return _unpack(self.values, self.place, self.row, self.shape)


def _by_block(weight: Tensor, block: tuple[int, int]) -> Tensor:
    """``[O, I, kh, kw]`` as ``[block rows, taps, input blocks, BN, BC]``."""
    o, i, kh, kw = weight.shape
    padded = F.pad(weight, (0, 0, 0, 0, 0, -i % block[1], 0, -o % block[0]))
    return padded.reshape(-(-o // block[0]), block[0], -(-i // block[1]), block[1], kh * kw).permute(0, 4, 2, 1, 3)


def _unpack(values: Tensor, place: Tensor, row: Tensor, shape: tuple[int, ...] | list[int]) -> Tensor:
    (o, i, kh, kw), (nnzb, block_o, block_c) = shape, values.shape
    blocks_o, blocks_i = -(-o // block_o), -(-i // block_c)
    dense = values.new_zeros(blocks_o, kh * kw, blocks_i, block_o, block_c)
    place = place[:nnzb].long()
    dense[row.long(), place >> TAP_SHIFT.value, place & INPUT_BLOCK.value] = values
    dense = dense.permute(0, 3, 2, 4, 1).reshape(blocks_o * block_o, blocks_i * block_c, kh, kw)
    return dense[:o, :i].contiguous()


def default_tiles(block: tuple[int, int], pixels: int, out_channels: int, dtype: torch.dtype) -> Tiles:
    """Tiles that run on every GPU (at most 96 KB of shared memory), for so many output pixels over all images.

    What the dispatcher measured on a GPU is better; this is for a layer called alone.
    """
    wide = 2 if dtype == torch.float32 else 1  # twice the bytes: half the tile
    out, reduce = min(block[0], 128 // wide), min(block[1], 64 // wide)
    rows = 128 // wide
    while rows > 64 and ceil_div(pixels, rows) * ceil_div(out_channels, out) < PROGRAMS:
        rows //= 2  # not under 64, which is the least that wgmma takes
    rows = 16 if pixels <= 16 else 32 if pixels <= 32 else rows
    stages = 2 if out == reduce == 16 else 3  # with 3, 128 pixels by 16 spill 8 bytes on sm_80
    return Tiles(rows, out, reduce, 8 if rows * out >= 128 * 128 else 4, stages)


def candidate_tiles(block: tuple[int, int], dtype: torch.dtype) -> list[Tiles]:
    """What is worth measuring for this block: the product is a linear's, with pixels for rows.

    Not 256 x 128 results: beside the addresses of pixels they spill on sm_90 (48 bytes and more).
    """
    found = linear_tiles(block, "forward", dtype)
    return [tiles for tiles in found if tiles.rows * tiles.out < 256 * 128 and not tiles.residents]


def output_size(size: tuple[int, int], kernel: tuple[int, int], stride: list[int], padding: list[int]) -> list[int]:
    """Height and width of the output, in pixels."""
    return [(size[d] + 2 * padding[d] - kernel[d]) // stride[d] + 1 for d in (0, 1)]


def reference_bsr_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: list[int],
    padding: list[int],
    activation: str,
) -> Tensor:
    """What :func:`bsr_conv2d` computes, in plain PyTorch, of the dense weight ``[O, I, kh, kw]``."""
    y = F.conv2d(x, weight, bias, stride, padding)
    y = y if residual is None else y + residual
    return activate_reference(y, activation).contiguous(memory_format=torch.channels_last)


@operator("bsr_conv2d")
def _forward(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    crow: Tensor,
    place: Tensor,
    row: Tensor,
    shape: list[int],
    stride: list[int],
    padding: list[int],
    activation: str,
    tiles: list[int],
) -> Tensor:
    if not runs_kernel(x):
        weight = _unpack(values, place, row, shape)
        return reference_bsr_conv2d(x, weight, bias, residual, stride, padding, activation)
    o, i, kh, kw = shape
    _, block_o, block_c = values.shape
    images, _, height, width = x.shape
    out_height, out_width = output_size((height, width), (kh, kw), stride, padding)
    if out_height * out_width > 2**31 - 256:
        raise ValueError(f"an image of {out_height} × {out_width} output pixels is too large: cut it")
    y = torch.empty(
        (images, o, out_height, out_width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )
    pixels = images * out_height * out_width
    if pixels == 0:
        return y
    tiles = tiles or default_tiles((block_o, block_c), pixels, o, x.dtype).as_ints()
    rows, out, reduce, warps, stages = tiles
    check_tiles(tiles, (out, block_o), (reduce, block_c))
    x = x.contiguous(memory_format=torch.channels_last)
    bias = None if bias is None else bias.contiguous()
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    wrap_triton(bsr_conv2d_kernel)[(ceil_div(pixels, rows) * ceil_div(o, out),)](
        x, values, y, y if bias is None else bias, y if residual is None else residual, crow, place,
        images, height, width, i, out_height, out_width, o, padding[0], padding[1],
        BLOCK_O=block_o, BLOCK_C=block_c, TILE_M=rows, TILE_O=out, TILE_C=reduce,
        KERNEL_W=kw, STRIDE_H=stride[0], STRIDE_W=stride[1], PADDED=padding != [0, 0], EVEN=i % block_c == 0,
        HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, ACTIVATION=activation,
        PRECISION=fp32_precision(convolution=True),
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return y


def bsr_conv2d(
    x: Tensor,
    weight: PackedConv2d,
    bias: Tensor | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    residual: Tensor | None = None,
    activation: str = "none",
    tiles: list[int] | None = None,
) -> Tensor:
    """``act(conv2d(x, W) + b + residual)`` of packed blocks, dilation 1, one group; no gradients.

    Under autocast x, bias and residual are cast to the packed weight's dtype.

    Args:
        x: ``[B, I, H, W]``, fp16, bf16 or fp32 (fp32 follows ``torch.backends.cudnn.allow_tf32``), any strides; what
            is not ``channels_last`` in memory is copied so.
        weight: see :class:`PackedConv2d`; its values of x's dtype and on its device.
        bias: ``[O]``, of x's dtype: a folded BatchNorm's shift, for example.
        stride: rows and columns, each 1 or 2.
        padding: zeros at each side of rows and columns.
        residual: ``[B, O, H', W']`` of x's dtype, added before the activation.
        activation: ``none``, ``relu`` or ``gelu`` (exact, by erf).
        tiles: :meth:`Tiles.as_ints`; without them, :func:`default_tiles`.

    Returns:
        ``[B, O, H', W']`` of x's dtype, ``channels_last`` in memory, accumulated in fp32.

    Raises:
        ValueError: shapes, dtypes, devices or options do not go together.
    """
    check_activation(activation)
    x, bias, residual = as_autocast_would(x, bias, residual, packed=weight.values)
    _check(x, weight, bias, residual, stride, padding)
    with without_autocast(x.device):
        return _forward(
            x, weight.values, bias, residual, weight.crow, weight.place, weight.row, list(weight.shape),
            list(stride), list(padding), activation, tiles or [],
        )  # fmt: skip


def _check(
    x: Tensor,
    weight: PackedConv2d,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> None:
    o, i, *kernel = weight.shape
    if x.ndim != 4 or x.shape[1] != i:
        raise ValueError(f"x has to be [B, {i}, H, W] for a weight of {weight.shape}, and is {tuple(x.shape)}")
    if not _are_two(stride) or any(step not in (1, 2) for step in stride):
        raise ValueError(f"a stride is two numbers, each 1 or 2, not {stride!r}")
    if not _are_two(padding) or any(not isinstance(zeros, int) or zeros < 0 for zeros in padding):
        raise ValueError(f"padding is two numbers of 0 or more, not {padding!r}")
    size = output_size((x.shape[2], x.shape[3]), (kernel[0], kernel[1]), list(stride), list(padding))
    if min(size) < 1:
        raise ValueError(f"an image of {tuple(x.shape[2:])} padded by {padding} is smaller than the kernel {kernel}")
    if bias is not None and bias.shape != (o,):
        raise ValueError(f"the bias has to be of {(o,)} for a weight of {weight.shape}, and is {tuple(bias.shape)}")
    if residual is not None and residual.shape != (x.shape[0], o, *size):
        raise ValueError(
            f"the residual has to be of {(x.shape[0], o, *size)} as the output, and is {tuple(residual.shape)}"
        )
    if x.dtype not in FLOATS:
        raise ValueError(f"x is {x.dtype}; this runs fp16, bf16 and fp32")
    for name, other in (("the packed weight", weight.values), ("the bias", bias), ("the residual", residual)):
        if other is not None and (other.dtype != x.dtype or other.device != x.device):
            raise ValueError(f"x is {x.dtype} on {x.device} and {name} {other.dtype} on {other.device}")


def _are_two(numbers: object) -> bool:
    return isinstance(numbers, tuple | list) and len(numbers) == 2


class BsrConv2d(nn.Module):
    """What replaces an ``nn.Conv2d`` for inference: its live blocks, packed. No gradients; ``channels_last`` output.

    The packed tensors are derived and no part of ``state_dict``, which is the dense convolution's. A BatchNorm behind
    the convolution is folded first, with ``torch.nn.utils.fuse_conv_bn_eval``: zeros stay zero.
    """

    def __init__(
        self,
        weight: PackedConv2d,
        bias: Tensor | None = None,
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        activation: str = "none",
    ) -> None:
        super().__init__()
        check_activation(activation)
        self.shape, self.stride, self.padding, self.activation = weight.shape, stride, padding, activation
        for name in ("values", "crow", "place", "row"):
            self.register_buffer(name, getattr(weight, name), persistent=False)
        self.register_buffer("bias", bias)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, mask: Tensor, block: tuple[int, int], *, activation: str = "none") -> BsrConv2d:
        """Pack ``conv`` under a bool ``mask`` of its weight's shape; ``conv`` stays as it is.

        Raises:
            ValueError: dilation, groups, padding mode, kernel size or stride are none that the kernel runs.
        """
        o, i, kh, kw = conv.weight.shape
        said = f"Conv2d({i}, {o}, {kh}×{kw})"
        if conv.dilation != (1, 1) or conv.groups != 1:
            raise ValueError(f"{said} has dilation {conv.dilation} and {conv.groups} groups; dilation 1, one group run")
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError(
                f"{said} pads by {conv.padding!r} with {conv.padding_mode!r}; padding by numbers, with zeros, runs"
            )
        if any(step not in (1, 2) for step in conv.stride):
            raise ValueError(f"{said} has stride {conv.stride}; strides of 1 and 2 run")
        bias = None if conv.bias is None else conv.bias.detach().clone()
        packed = PackedConv2d.from_dense(conv.weight, mask, block)
        return cls(packed, bias, stride=conv.stride, padding=conv.padding, activation=activation)

    @property
    def packed(self) -> PackedConv2d:
        """The weight."""
        return PackedConv2d(self.values, self.crow, self.place, self.row, self.shape)

    def to_conv(self) -> nn.Conv2d:
        """The dense convolution, its weight bit-equal to what was packed (the activation is not part of it)."""
        o, i, kh, kw = self.shape
        conv = nn.Conv2d(
            i, o, (kh, kw), self.stride, self.padding, bias=self.bias is not None,
            device=self.values.device, dtype=self.values.dtype,
        )  # fmt: skip
        conv.load_state_dict(self.state_dict())
        return conv.requires_grad_(False)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``act(conv(x) + bias + residual)``; see :func:`bsr_conv2d`."""
        return bsr_conv2d(
            x, self.packed, self.bias, stride=self.stride, padding=self.padding, residual=residual,
            activation=self.activation,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Shape, block and how much is alive."""
        packed = self.packed
        alive = packed.values.numel() / torch.Size(self.shape).numel()
        return f"{self.shape}, block={packed.block}, stride={self.stride}, padding={self.padding}, stored={alive:.3f}"

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.packed.to_dense()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *_: Any) -> None:
        raise RuntimeError("a packed convolution takes no other weight: load it into to_conv(), and pack that")
