"""Every operator on the device against float64 on the CPU, on small odd shapes: the quick check before the marks."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseticket.bench.gpu.arms import why
from sparseticket.bench.gpu.lab import Lab
from sparseticket.kernels.adamw import MaskedAdamW
from sparseticket.kernels.adamw_live import LiveAdamW
from sparseticket.kernels.bitmap import BitmapWeight, bitmap_linear, default_launch
from sparseticket.kernels.blocks import BlockLayout
from sparseticket.kernels.bsr import Tiles, bsr_linear
from sparseticket.kernels.bsr_packed import PackedBlocks, bsr_linear_packed
from sparseticket.kernels.conv2d import PackedConv2d, bsr_conv2d
from sparseticket.kernels.launch import as_compiled
from sparseticket.kernels.masked import masked_linear
from sparseticket.kernels.semi_structured import SemiStructuredWeight, semi_structured_linear
from sparseticket.kernels.sgd import MaskedSGD
from sparseticket.kernels.words import pack_words

TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 4e-3}  # of the largest value; fp32 may be TF32
BLOCKS = ((16, 16), (32, 64), (64, 64), (128, 128))
M, N, K = 100, 272, 200  # no tile divides them
STEPS = 5
Pair = tuple[Tensor, Tensor]  # what the device computed, and float64


def check(lab: Lab, name: str) -> dict[str, Any]:
    """Its largest error as a share of the largest value, by dtype; ``agree`` is 1 where all are small enough.

    An operator that breaks the context on the GPU takes its other dtypes with it, and no other operator.
    """
    found: dict[str, Any] = {}
    for dtype in TOLERANCE:
        label, begun = str(dtype).removeprefix("torch."), time.monotonic()
        try:
            error = max(_error(*pair) for pair in CHECKS[name](lab, dtype))
            found[label] = {"error": error, "agrees": error <= TOLERANCE[dtype]}
        except Exception as error:
            unable = name == "semi_structured_linear" and dtype == torch.float32  # it runs 16 bits only
            found[label] = {"error": why(error), "agrees": None if unable else False}
        found[label]["seconds"] = round(time.monotonic() - begun, 1)
    return {"checks": found, "ratios": {"agree": float(all(one["agrees"] is not False for one in found.values()))}}


def warm_up(lab: Lab, name: str, dtype: torch.dtype) -> None:
    """One check, so that its kernels are in the cache on disk."""
    list(CHECKS[name](lab, dtype))


def _error(ours: Tensor, exact: Tensor) -> float:
    ours, exact = ours.detach().double().cpu(), exact.detach().double().cpu()
    error = float((ours - exact).abs().max() / exact.abs().max().clamp(min=1e-6))
    return error if error == error else float("inf")


def _values(lab: Lab, dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Pair]:
    """Random values on the device, and the very same in float64 on the CPU."""
    draw = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=draw).to(dtype) for shape in shapes]
    return [(value.to(lab.device), value.double()) for value in made]


def _mask(shape: tuple[int, int], block: tuple[int, int], density: float = 0.5) -> Tensor:
    """Some blocks alive, never all or none."""
    draw = torch.Generator().manual_seed(1)
    rows, columns = -(-shape[0] // block[0]), -(-shape[1] // block[1])
    alive = torch.rand(rows, columns, generator=draw) < density
    alive[0, 0], alive[-1, -1] = True, False
    return alive.repeat_interleave(block[0], 0)[: shape[0]].repeat_interleave(block[1], 1)[:, : shape[1]]


def _bsr_linear(lab: Lab, dtype: torch.dtype, *, tma: bool = False) -> list[Pair]:
    pairs = []
    for block in BLOCKS:
        tiles = _staying_tiles(block) if tma else None
        mask = _mask((N, K), block)
        (x, x64), (w, w64), (b, b64), (dy, dy64) = _values(lab, dtype, (M, K), (N, K), (N,), (M, N))
        ours = [tensor.requires_grad_() for tensor in (x, w, b)]
        exact = [tensor.requires_grad_() for tensor in (x64, w64, b64)]
        layout = BlockLayout.from_mask(mask.to(lab.device), block)
        y = bsr_linear(x, w, layout, b, activation="gelu", tiles=tiles)
        y64 = F.gelu(F.linear(x64, w64 * mask, b64))
        gradients = torch.autograd.grad(y, ours, dy), torch.autograd.grad(y64, exact, dy64)
        pairs += [(y, y64), *zip(*gradients, strict=True)]
    return pairs


def _staying_tiles(block: tuple[int, int]) -> tuple[list[int], list[int], list[int]]:
    n, k = block
    tiles = Tiles(64, n, min(k, 32), 4, 2, 2), Tiles(64, k, min(n, 32), 4, 2, 2), Tiles(min(n, 64), k, 32, 4, 2, 1)
    return tuple(each.as_ints() for each in tiles)


def _bsr_linear_packed(lab: Lab, dtype: torch.dtype) -> list[Pair]:
    pairs = []
    for block in BLOCKS:
        mask = _mask((N, K), block)
        (x, x64), (w, w64), (b, b64) = _values(lab, dtype, (M, K), (N, K), (N,))
        packed = PackedBlocks.from_dense(w, BlockLayout.from_mask(mask.to(lab.device), block))
        pairs.append((bsr_linear_packed(x, packed, b, activation="relu"), F.relu(F.linear(x64, w64 * mask, b64))))
    return pairs


def _bsr_conv2d(lab: Lab, dtype: torch.dtype) -> list[Pair]:
    pairs = []
    for side in (1, 3):
        (x, x64), (w, w64), (b, b64) = _values(lab, dtype, (2, 40, 9, 7), (48, 40, side, side), (48,))
        mask = _mask((48, 40), (16, 16))[:, :, None, None].expand(w.shape).clone()
        packed = PackedConv2d.from_dense(w, mask.to(lab.device), (16, 16))
        padding = (side // 2, side // 2)
        pairs.append((bsr_conv2d(x, packed, b, padding=padding), F.conv2d(x64, w64 * mask, b64, 1, padding)))
    return pairs


def _bitmap_linear(lab: Lab, dtype: torch.dtype, *, overlap: int = 0) -> list[Pair]:
    mask, pairs = _mask((N, K), (1, 1), 0.2), []
    for m in (1, 17, 64):
        (x, x64), (w, w64), (b, b64) = _values(lab, dtype, (m, K), (N, K), (N,))
        packed = BitmapWeight.from_dense(w, mask.to(lab.device))
        launch = default_launch(N, K, dtype)._replace(overlap=overlap)
        pairs.append((bitmap_linear(x, packed, b, launch=launch), F.linear(x64, w64 * mask, b64)))
    return pairs


def _masked_linear(lab: Lab, dtype: torch.dtype) -> list[Pair]:
    mask = _mask((N, K), (1, 1))
    (x, x64), (w, w64), (dy, dy64) = _values(lab, dtype, (M, K), (N, K), (M, N))
    y = masked_linear(x.requires_grad_(), w.requires_grad_(), pack_words(mask.to(lab.device)))
    y64 = F.linear(x64.requires_grad_(), w64.requires_grad_() * mask)
    gradients = torch.autograd.grad(y, (x, w), dy), torch.autograd.grad(y64, (x64, w64), dy64)
    return [(y, y64), *zip(*gradients, strict=True)]


def _semi_structured(lab: Lab, dtype: torch.dtype) -> list[Pair]:
    n, k = 256, 128
    mask = (torch.rand(n, k // 4, 4, generator=torch.Generator().manual_seed(0)).argsort(-1) < 2).reshape(n, k)
    (x, x64), (w, w64), (b, b64) = _values(lab, dtype, (64, k), (n, k), (n,))
    packed = SemiStructuredWeight.from_dense(w, mask.to(lab.device))
    return [(semi_structured_linear(x, packed, b), F.linear(x64, w64 * mask, b64))]


def _optimizer(kind: type[torch.optim.Optimizer], **settings: float) -> Callable[[Lab, torch.dtype], list[Pair]]:
    """Against the operator's reference on the CPU, which tests hold against torch's own optimizers."""

    def run(lab: Lab, dtype: torch.dtype) -> list[Pair]:
        mask = _mask((N, K), (1, 1), 0.3)
        (w, _), (gradient, _) = _values(lab, dtype, (N, K), (N, K))
        found = []
        for device in (lab.device, "cpu"):
            weight = w.detach().to(device).clone().masked_fill_(~mask.to(device), 0).requires_grad_()
            optimizer = kind([weight], {weight: mask.to(device)}, lr=1e-2, **settings)
            for _ in range(STEPS):
                weight.grad = gradient.to(device).clone()
                optimizer.clip_grad_norm(1.0)
                optimizer.step()
            found.append(weight.detach())
        return [(found[0], found[1])]

    return run


CHECKS: dict[str, Callable[[Lab, torch.dtype], list[Pair]]] = {
    "bsr_linear": _bsr_linear,
    "bsr_linear_packed": torch.no_grad()(_bsr_linear_packed),
    "bsr_conv2d": torch.no_grad()(_bsr_conv2d),
    "masked_linear": _masked_linear,
    "semi_structured_linear": torch.no_grad()(_semi_structured),
    "MaskedAdamW": _optimizer(MaskedAdamW),
    "MaskedSGD": _optimizer(MaskedSGD, momentum=0.9),
    "LiveAdamW": _optimizer(LiveAdamW),
    # what has not run on a GPU yet comes last: it may break the context or hang
    "bitmap_linear": torch.no_grad()(_bitmap_linear),
    "bsr_linear by TMA": partial(_bsr_linear, tma=True),
    "bsr_linear by TMA, as compiled": as_compiled()(partial(_bsr_linear, tma=True)),
    "bitmap_linear, overlapping": torch.no_grad()(partial(_bitmap_linear, overlap=1)),
}
