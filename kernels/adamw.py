"""AdamW in one pass over what is alive: dead weights stay +0.0, their gradients are ignored, their moments are 0.

Gradient, moments, mask word and weight are read once, and moments and weight written. A group of eight dead entries
(32 bytes of fp32) is not touched: at 70 % random sparsity 94 % of the groups hold a live weight, so what is saved there
is mostly the masking; blocks of zeros are skipped whole. Dead weights and moments must be 0 before; the optimizer sees
to that. Algorithm: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019), algorithm 2, as in torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparseticket.kernels.launch import runs_kernel
from sparseticket.kernels.live_words import check_dense, flat, mask_of
from sparseticket.kernels.masked_optimizer import MaskedOptimizer, Params, Part, split_lr
from sparseticket.kernels.operators import opaque_operator
from sparseticket.kernels.tensor_table import Chunking, column, find_chunk, launches, live_entries, step_scaling

CHUNKING = Chunking(512, 4)  # 565 µs for BERT-base's encoder at 70 %, fp32, on an H200; with 1024 and 4 warps, 585


@triton.jit
def bias_correction(step, log_beta):
    """1 − beta^step, from log(beta). Taylor's series near 0, where fp32 would cancel: 1 − 0.999 is off by 6e-5."""
    x = step * log_beta
    series = 1.0 + x / 6 * (1.0 + x / 7 * (1.0 + x / 8 * (1.0 + x / 9)))
    series = -x * (1.0 + x / 2 * (1.0 + x / 3 * (1.0 + x / 4 * (1.0 + x / 5 * series))))
    return tl.where(x > -0.5, series, 1.0 - tl.exp(x))


@triton.jit
def bias_corrections(row, STEP: tl.constexpr, log_beta1, log_beta2):
    """Those of both moments, for the number of steps in this column of the row."""
    step = tl.load(column(row, STEP, tl.float32, False))
    return bias_correction(step, log_beta1), bias_correction(step, log_beta2)


@triton.jit
def adamw(weight, gradient, m, v, lr, beta1, new1, beta2, new2, correction1, correction2, eps, decay):
    """A weight and its moments after the step, all fp32."""
    m = beta1 * m + new1 * gradient
    v = beta2 * v + new2 * gradient * gradient
    denominator = tl.sqrt(v) / tl.sqrt(correction2) + eps
    return weight * (1.0 - lr * decay) - lr / correction1 * m / denominator, m, v


@triton.jit
def masked_adamw_kernel(
    rows,
    owners,
    lr,
    beta1,
    new1,
    beta2,
    new2,
    log_beta1,
    log_beta2,
    eps,
    decay,
    lr_tensor,
    grad_scale,
    found_inf,
    WEIGHT: tl.constexpr,
    GRADIENT: tl.constexpr,
    MOMENT: tl.constexpr,
    CHUNK: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Columns of the table: weight, gradient, exp_avg, exp_avg_sq, words, step."""
    row, size, start = find_chunk(rows, owners, 6, CHUNK)
    lr, unscale, size = step_scaling(size, lr, lr_tensor, grad_scale, found_inf)
    correction1, correction2 = bias_corrections(row, 5, log_beta1, log_beta2)
    weights = column(row, 0, WEIGHT, EVEN)
    gradients = column(row, 1, GRADIENT, EVEN)
    ms = column(row, 2, MOMENT, EVEN)
    vs = column(row, 3, MOMENT, EVEN)
    offsets, alive, touched = live_entries(row, 4, start, size, CHUNK, EVEN)
    gradient = tl.load(gradients + offsets, mask=touched, other=0).to(tl.float32) * unscale
    m = tl.load(ms + offsets, mask=touched, other=0).to(tl.float32)
    v = tl.load(vs + offsets, mask=touched, other=0).to(tl.float32)
    weight = tl.load(weights + offsets, mask=touched, other=0).to(tl.float32)
    weight, m, v = adamw(weight, gradient, m, v, lr, beta1, new1, beta2, new2, correction1, correction2, eps, decay)
    tl.store(weights + offsets, tl.where(alive, weight, 0.0).to(WEIGHT), mask=touched)
    tl.store(ms + offsets, tl.where(alive, m, 0.0).to(MOMENT), mask=touched)
    tl.store(vs + offsets, tl.where(alive, v, 0.0).to(MOMENT), mask=touched)


def adamw_reference(
    weight: Tensor,
    gradient: Tensor,
    m: Tensor,
    v: Tensor,
    step: float,
    settings: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`adamw` in plain PyTorch: a weight and its moments after the step, all fp32, none changed in place."""
    lr, beta1, beta2, eps, decay = settings
    m = m * beta1 + gradient * (1 - beta1)
    v = v * beta2 + gradient * gradient * (1 - beta2)
    denominator = (v.sqrt() / math.sqrt(1 - beta2**step)).add_(eps)
    return (weight * (1 - lr * decay)).addcdiv_(m, denominator, value=-lr / (1 - beta1**step)), m, v


def masked_adamw_reference(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    words: Sequence[Tensor],
    steps: Sequence[Tensor],
    settings: Sequence[float],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """The same in plain PyTorch."""
    if found_inf is not None and found_inf.item():
        return
    scale = 1.0 if grad_scale is None else grad_scale.item()
    for weight, gradient, m, v, word, step in zip(weights, gradients, exp_avgs, exp_avg_sqs, words, steps, strict=True):
        dead = ~mask_of(word, weight)
        gradient = flat(gradient).float().masked_fill(dead, 0) / scale
        new = adamw_reference(flat(weight).float(), gradient, flat(m).float(), flat(v).float(), step.item(), settings)
        for old, value in zip((weight, m, v), new, strict=True):
            flat(old).copy_(value.masked_fill_(dead, 0))


@opaque_operator("masked_adamw", mutates=("weights", "exp_avgs", "exp_avg_sqs"))
def _masked_adamw(
    weights: list[Tensor],
    gradients: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    words: list[Tensor],
    steps: list[Tensor],
    lr: float,
    lr_tensor: Tensor | None,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    columns = (weights, gradients, exp_avgs, exp_avg_sqs, words, steps)
    if not runs_kernel(weights[0]):
        settings = (lr if lr_tensor is None else lr_tensor.item(), beta1, beta2, eps, weight_decay)
        masked_adamw_reference(*columns, settings, grad_scale, found_inf)
        return
    numbers = scalars(lr, beta1, beta2, eps, weight_decay)
    for launch in launches(columns, CHUNKING.chunk):
        launch.run(
            masked_adamw_kernel, *numbers, lr_tensor, grad_scale, found_inf, *launch.dtypes[:3], chunking=CHUNKING
        )


def scalars(lr: float, beta1: float, beta2: float, eps: float, decay: float) -> tuple[float, ...]:
    """A kernel's numbers; 1 − beta and log(beta) are taken in fp64, where they lose nothing."""
    beta1, beta2 = float(beta1), float(beta2)
    logs = (math.log(beta) if beta else -math.inf for beta in (beta1, beta2))
    return (float(lr), beta1, 1 - beta1, beta2, 1 - beta2, *logs, float(eps), float(decay))


def masked_adamw(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    words: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One step of AdamW over lists of equally many tensors, in place; ``gradients`` are only read.

    Args:
        weights: fp16, bf16 or fp32, dense, on one device; dead entries are 0.
        gradients: shaped and laid out as the weights; dead ones are ignored.
        exp_avgs: first moments, shaped and laid out as the weights; dead ones are 0.
        exp_avg_sqs: second moments, likewise.
        words: int32 ``[ceil(numel / 32)]`` each, the mask in the order of storage, or no entry where all are alive.
        steps: fp32 ``[]`` each on that device, how many steps were taken; 1 is added unless ``found_inf``.
        lr: learning rate; a tensor ``[]`` on that device is read by the kernel (a CUDA graph can then change it), one
            elsewhere before it.
        betas: decay of both moments, each in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: decoupled, as in :class:`torch.optim.AdamW`.
        grad_scale: fp32 with one entry, what gradients are divided by.
        found_inf: fp32 with one entry; not 0: nothing is changed.

    Raises:
        ValueError: the lists do not go together, or a dtype, device or layout is not as said.
    """
    if not weights:
        return
    check_dense(weights, words, gradients=gradients, exp_avgs=exp_avgs, exp_avg_sqs=exp_avg_sqs)
    check_steps(weights, steps)
    tensors = (weights, gradients, exp_avgs, exp_avg_sqs, words)
    step_adamw(_masked_adamw, tensors, steps, lr, betas, eps, weight_decay, grad_scale, found_inf)


def step_adamw(
    operator: Callable[..., None],
    tensors: Sequence[Sequence[Tensor]],
    steps: Sequence[Tensor],
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """Count a step and take it, unchecked: looking at BERT's 200 parameters costs more than the launch."""
    torch._foreach_add_(steps, 1)
    lists = [list(each) for each in (*tensors, steps)]
    operator(*lists, *split_lr(lr, steps[0].device), *betas, eps, weight_decay, grad_scale, found_inf)
    if found_inf is not None:
        torch._foreach_sub_(steps, [found_inf.reshape(())] * len(steps))


def check_steps(weights: Sequence[Tensor], steps: Sequence[Tensor]) -> None:
    """Raise ValueError unless every weight has its step beside it."""
    if len(steps) != len(weights) or any(
        step.dtype != torch.float32 or step.numel() != 1 or step.device != weight.device
        for step, weight in zip(steps, weights, strict=True)
    ):
        raise ValueError("each weight needs the number of its steps, fp32 with one entry, on its device")


class AdamWOptimizer(MaskedOptimizer):
    """What both AdamW share: settings, and a step of one operator over weights, gradients, states, masks and steps."""

    _operator: ClassVar[Callable[..., None]]
    _states: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        params: Params,
        masks: Mapping[Tensor, Tensor],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        check_adamw_settings(lr, betas, eps, weight_decay)
        super().__init__(params, masks, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def _update(self, part: Part, states: list[dict[str, Tensor]], **scaling: Tensor | None) -> None:
        tensors = (
            part.parameters,
            part.gradients,
            *([state[key] for state in states] for key in self._states),
            *zip(*part.masks, strict=True),
        )
        settings = {key: part.group[key] for key in ("lr", "betas", "eps", "weight_decay")}
        step_adamw(self._operator, tensors, [state["step"] for state in states], **settings, **scaling)


class MaskedAdamW(AdamWOptimizer):
    """:class:`torch.optim.AdamW` under fixed masks: same numbers as with gradients masked first, in one pass.

    ``masks`` maps parameters to bool masks of their shape; other parameters are trained whole. Works with GradScaler,
    learning rate schedules and CUDA graphs (``lr`` as a tensor; take a step before capturing).

    Raises:
        ValueError: a mask does not fit its parameter, belongs to none, or a setting is out of its range.
    """

    _operator = _masked_adamw
    _states = ("exp_avg", "exp_avg_sq")

    def _new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        return {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }


def check_adamw_settings(lr: float | Tensor, betas: Iterable[float], eps: float, weight_decay: float) -> None:
    """Raise ValueError for what is out of range; a tensor ``lr`` is not looked at, which would wait for the device."""
    if not isinstance(lr, Tensor) and not lr >= 0:
        raise ValueError(f"lr must be 0 or more, not {lr}")
    if not all(0 <= beta < 1 for beta in betas) or not eps >= 0 or not weight_decay >= 0:
        raise ValueError(f"betas must lie in [0, 1), eps and weight_decay be 0 or more: {betas}, {eps}, {weight_decay}")
