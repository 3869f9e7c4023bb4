"""Random convolutions to measure, for the dispatcher's table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseticket.kernels.conv2d import PackedConv2d, bsr_conv2d, candidate_tiles
from sparseticket.kernels.dispatch import Case, Choice
from sparseticket.kernels.pattern import block_of

SIDE = 14  # of the images: pixels are what counts, and an image of 14 x 14 has neither few borders nor many


def convolution_case(conv: nn.Conv2d, pattern: str, dtype: str, epilogue: str) -> Case:
    """The line of the table for this convolution."""
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    shape = f"{pattern} {kernel}x{kernel}/{stride}"
    return Case("convolution", conv.out_channels, conv.in_channels, shape, dtype, epilogue)


@dataclass(frozen=True)
class ConvolutionProblem:
    """Random values and a random mask for one cell; images are channels_last."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    mask: Tensor
    block: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    @classmethod
    def draw(cls, case: Case, m: int, density: float, device: torch.device | str, seed: int) -> ConvolutionProblem:
        """About ``m`` output pixels (whole images); of the blocks at all taps just ``density`` are alive."""
        pattern, kernel, stride = re.fullmatch(r"(\S+) (\d)x\d/(\d)", case.pattern).groups()
        block, kernel, stride = block_of(pattern), int(kernel), int(stride)
        draw, dtype = torch.Generator().manual_seed(seed), getattr(torch, case.dtype)
        rows, columns = -(-case.n // block[0]), -(-case.k // block[1])
        alive = torch.zeros(rows * columns * kernel**2, dtype=torch.bool)
        alive[torch.randperm(len(alive), generator=draw)[: round(density * len(alive))]] = True
        tall = alive.reshape(rows, columns, kernel, kernel).repeat_interleave(block[0], 0)[: case.n]
        mask = tall.repeat_interleave(block[1], 1)[:, : case.k].to(device)
        images = max(1, round(m / SIDE**2))
        x, weight, bias = (
            torch.randn(size, generator=draw).to(dtype).to(device)
            for size in ((images, case.k, SIDE * stride, SIDE * stride), (case.n, case.k, kernel, kernel), (case.n,))
        )
        x, weight = (t.to(memory_format=torch.channels_last) for t in (x, weight.masked_fill(~mask, 0)))
        bias = bias if "bias" in case.epilogue else None
        return cls(x, weight, bias, mask, block, (stride, stride), (kernel // 2, kernel // 2))

    @property
    def dtype(self) -> torch.dtype:
        """Of all values."""
        return self.x.dtype

    def dense(self) -> Tensor:
        """What cuDNN does."""
        return F.conv2d(self.x, self.weight, self.bias, self.stride, self.padding)

    def candidates(self, thorough: bool) -> Iterator[tuple[Choice, Callable[[], Tensor]]]:
        """What could run in its place."""
        packed = PackedConv2d.from_dense(self.weight, self.mask, self.block)
        tilings = [tuple(tiles.as_ints()) for tiles in candidate_tiles(self.block, self.dtype)] if thorough else []
        for tiles in [(), *tilings]:
            call = partial(
                bsr_conv2d, self.x, packed, self.bias, stride=self.stride, padding=self.padding,
                tiles=list(tiles) or None,
            )  # fmt: skip
            yield Choice("bsr_conv2d", tiles), call
