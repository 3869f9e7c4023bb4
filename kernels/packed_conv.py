"""A Conv2d that runs from packed blocks, for inference. ``use_kernels`` makes it by changing a Conv2d's class."""

from __future__ import annotations

from torch import Tensor, nn

from sparseticket.kernels.conv2d import KERNEL_SIZES, PackedConv2d, bsr_conv2d, output_size
from sparseticket.kernels.dispatch import DENSE
from sparseticket.kernels.frozen import Frozen
from sparseticket.kernels.plan import Plan

PACKED_ARRAYS = ("values", "crow", "place", "row")


class PackedConv(Frozen, nn.Conv2d):
    """A Conv2d with packed live blocks; its output is ``channels_last`` where the kernel runs."""

    def wrap(self, packed: PackedConv2d, plan: Plan) -> None:
        """Hold the blocks in non-persistent buffers, and the choice by output pixels."""
        self._shape, self._plan = packed.shape, plan
        for name in PACKED_ARRAYS:
            self.register_buffer(f"packed_{name}", getattr(packed, name), persistent=False)

    def unwrap(self) -> None:
        """Drop what :meth:`wrap` added."""
        for name in PACKED_ARRAYS:
            delattr(self, f"packed_{name}")
        del self._shape, self._plan

    def forward(self, x: Tensor) -> Tensor:
        """``conv2d(x, W) + b``, which has no gradient."""
        self.check_inference()
        if x.ndim == 3:
            return self.forward(x[None])[0]
        x, bias = x.detach(), None if self.bias is None else self.bias.detach()
        (choice,) = self._plan.at(pixels_of(self, x))
        if choice.kernel == DENSE:
            weight = self.weight if self.weight is not None else self.rebuild_weight()
            return self._conv_forward(x, weight.detach(), bias)
        packed, dtype = self._packed(), self.packed_values.dtype
        return bsr_conv2d(
            x.to(dtype), packed, None if bias is None else bias.to(dtype), stride=self.stride, padding=self.padding,
            tiles=list(choice.tiles) or None,
        )  # fmt: skip

    def rebuild_weight(self) -> Tensor:
        """The dense weight, bit-equal."""
        return self._packed().to_dense()

    def _packed(self) -> PackedConv2d:
        return PackedConv2d(*(getattr(self, f"packed_{name}") for name in PACKED_ARRAYS), self._shape)


def runs_packed(conv: nn.Conv2d) -> bool:
    """True where the kernel can run this convolution."""
    return (
        conv.kernel_size in KERNEL_SIZES
        and conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and all(step in (1, 2) for step in conv.stride)
    )


def pixels_of(conv: nn.Conv2d, x: Tensor) -> int:
    """Output pixels of all the images in ``x [B, I, H, W]``: what a convolution has in the place of rows."""
    height, width = output_size((x.shape[2], x.shape[3]), conv.kernel_size, list(conv.stride), list(conv.padding))
    return x.shape[0] * height * width
