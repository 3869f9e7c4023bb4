"""Clip and step of the masked optimizers, over the matrices of BERT-base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparseticket.bench.gpu.arms import AGAIN, DENSE, Arm, ratio_or_reason, time_arms
from sparseticket.bench.gpu.lab import Lab
from sparseticket.bench.gpu.masks import bert_shapes
from sparseticket.kernels.adamw import MaskedAdamW
from sparseticket.kernels.adamw_live import LiveAdamW
from sparseticket.kernels.dispatch import OPTIMIZER, Choice, Measured
from sparseticket.kernels.masked_optimizer import MaskedOptimizer

MASKED, LIVE = "MaskedAdamW", "LiveAdamW, bf16 weights"
MULTIPLIED, HALF = "masks multiplied, AdamW", "AdamW, bf16 weights"
CLIP = 1.0
STEP = "queued"  # a step follows a backward pass, behind which the CPU has queued it; 2 GB make no cache warm
DENSITIES = tuple(tenth / 10 for tenth in range(1, 10))


@dataclass
class Weights:
    """The matrices of a BERT's encoder with gradients, and masks with this share alive, drawn for each entry."""

    parameters: list[Tensor]
    masks: list[Tensor]

    @classmethod
    def draw(cls, lab: Lab, density: float, dtype: torch.dtype) -> Weights:
        """Random normal; a gradient beside each."""
        draw = torch.Generator(lab.device).manual_seed(0)

        def random(shape: tuple[int, int]) -> Tensor:
            return torch.randn(shape, generator=draw, device=lab.device)

        shapes = bert_shapes(lab.side(768), lab.layers)
        masks = [torch.rand(shape, generator=draw, device=lab.device) < density for shape in shapes]
        parameters = [random(shape).to(dtype).mul_(0.02).requires_grad_() for shape in shapes]
        for parameter in parameters:
            parameter.grad = random(parameter.shape).to(dtype)
        return cls(parameters, masks)

    @property
    def size(self) -> int:
        """How many weights."""
        return sum(parameter.numel() for parameter in self.parameters)


def dense_adamw(parameters: list[Tensor], lab: Lab) -> torch.optim.AdamW:
    """Torch's fused one, which CUDA graphs can capture."""
    return torch.optim.AdamW(parameters, lr=1e-4, fused=True, capturable=lab.device == "cuda")


def clip_and_step(lab: Lab, density: float) -> dict[str, Any]:
    """Each arm has weights, gradients and states of its own."""

    def dense(dtype: torch.dtype, *, multiply: bool = False) -> Arm:
        weights = Weights.draw(lab, density, dtype)
        optimizer = dense_adamw(weights.parameters, lab)
        gradients = [parameter.grad for parameter in weights.parameters]
        floats = [mask.to(dtype) for mask in weights.masks] if multiply else []

        def call() -> None:
            if multiply:
                torch._foreach_mul_(gradients, floats)
            torch.nn.utils.clip_grad_norm_(weights.parameters, CLIP)
            optimizer.step()

        return Arm(call, weights.size * dtype.itemsize * (5 if multiply else 4))

    def ours(kind: type[MaskedOptimizer], dtype: torch.dtype) -> Arm:
        weights = Weights.draw(lab, density, dtype)
        optimizer = kind(weights.parameters, dict(zip(weights.parameters, weights.masks, strict=True)), lr=1e-4)
        call = _masked_call(optimizer)
        call()
        return Arm(call, 2 * weights.size * dtype.itemsize + _bytes_of_states(optimizer) + weights.size // 8)

    times = time_arms(
        lab,
        {
            DENSE: lambda: dense(torch.float32),
            AGAIN: lambda: dense(torch.float32),
            MULTIPLIED: lambda: dense(torch.float32, multiply=True),
            HALF: lambda: dense(torch.bfloat16),
            MASKED: lambda: ours(MaskedAdamW, torch.float32),
            LIVE: lambda: ours(LiveAdamW, torch.bfloat16),
        },
        (STEP, "cold graph", "warm eager"),
    )
    ratios = {"masked": ratio_or_reason(times, MASKED, DENSE, STEP), "live": ratio_or_reason(times, LIVE, DENSE, STEP)}
    return {"weights": _size(lab), "density": density, "arms": times, "ratios": ratios}


def measure_cell(lab: Lab, density: float) -> Measured:
    """The dispatcher's cell: clip and step against multiplying by masks, clip and step; m is the number of weights."""
    theirs, mine = (Weights.draw(lab, density, torch.float32) for _ in range(2))
    floats = [mask.float() for mask in theirs.masks]
    gradients = [parameter.grad for parameter in theirs.parameters]
    adamw = dense_adamw(theirs.parameters, lab)
    optimizer = MaskedAdamW(mine.parameters, dict(zip(mine.parameters, mine.masks, strict=True)), lr=1e-4)

    def dense() -> None:
        torch._foreach_mul_(gradients, floats)
        torch.nn.utils.clip_grad_norm_(theirs.parameters, CLIP)
        adamw.step()

    found = lab.clock(STEP).compare(dense, _stepped(_masked_call(optimizer)), rounds=3 if lab.rehearse else 30)
    return Measured(OPTIMIZER, _size(lab), density, Choice("masked_adamw"), found.ratio, found.low, found.high)


def cells(lab: Lab) -> list[Callable[[], None]]:
    """What is still missing of the optimizer's cells."""
    there = {cell.density for cell in lab.table.cells if cell.case == OPTIMIZER}
    missing = [density for density in DENSITIES if density not in there]
    return [partial(lab.keep_measured, OPTIMIZER, _size(lab), at, partial(measure_cell, lab, at)) for at in missing]


def _size(lab: Lab) -> int:
    return sum(n * k for n, k in bert_shapes(lab.side(768), lab.layers))


def _masked_call(optimizer: MaskedOptimizer) -> Callable[[], object]:
    def call() -> None:
        optimizer.clip_grad_norm(CLIP)
        optimizer.step()

    return call


def _stepped(call: Callable[[], object]) -> Callable[[], object]:
    """After one call, so that states are there before a graph is captured."""
    call()
    return call


def _bytes_of_states(optimizer: torch.optim.Optimizer) -> int:
    return sum(value.nbytes for state in optimizer.state.values() for value in state.values())
