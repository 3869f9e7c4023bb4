"""SGD with momentum in one pass over what is alive: dead weights stay +0.0, whatever their gradients are.

Layout, and what is not touched, as in :mod:`sparseticket.kernels.adamw`. Algorithm: Sutskever et al., "On the
importance of initialization and momentum in deep learning" (2013), in torch's form: the learning rate is outside the
momentum, weight decay is added to the gradient, and there is no dampening.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparseticket.kernels.launch import runs_kernel
from sparseticket.kernels.live_words import check_dense, flat, mask_of
from sparseticket.kernels.masked_optimizer import MaskedOptimizer, Params, Part, split_lr
from sparseticket.kernels.operators import opaque_operator
from sparseticket.kernels.tensor_table import Chunking, column, find_chunk, launches, live_entries, step_scaling


@triton.jit
def masked_sgd_kernel(
    rows,
    owners,
    lr,
    momentum,
    decay,
    lr_tensor,
    grad_scale,
    found_inf,
    WEIGHT: tl.constexpr,
    GRADIENT: tl.constexpr,
    BUFFER: tl.constexpr,
    MOMENTUM: tl.constexpr,
    NESTEROV: tl.constexpr,
    CHUNK: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Columns of the table: weight, gradient, momentum_buffer (0 without momentum), words."""
    row, size, start = find_chunk(rows, owners, 4, CHUNK)
    lr, unscale, size = step_scaling(size, lr, lr_tensor, grad_scale, found_inf)
    weights = column(row, 0, WEIGHT, EVEN)
    gradients = column(row, 1, GRADIENT, EVEN)
    offsets, alive, touched = live_entries(row, 3, start, size, CHUNK, EVEN)
    gradient = tl.load(gradients + offsets, mask=touched, other=0).to(tl.float32) * unscale
    weight = tl.load(weights + offsets, mask=touched, other=0).to(tl.float32)
    update = gradient + decay * weight
    if MOMENTUM:
        buffers = column(row, 2, BUFFER, EVEN)
        buffer = momentum * tl.load(buffers + offsets, mask=touched, other=0).to(tl.float32) + update
        tl.store(buffers + offsets, tl.where(alive, buffer, 0.0).to(BUFFER), mask=touched)
        update = update + momentum * buffer if NESTEROV else buffer
    tl.store(weights + offsets, tl.where(alive, weight - lr * update, 0.0).to(WEIGHT), mask=touched)


def masked_sgd_reference(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    buffers: Sequence[Tensor],
    words: Sequence[Tensor],
    settings: tuple[float, float, float, bool],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """The same in plain PyTorch."""
    if found_inf is not None and found_inf.item():
        return
    lr, momentum, decay, nesterov = settings
    scale = 1.0 if grad_scale is None else grad_scale.item()
    for weight, gradient, buffer, word in zip(weights, gradients, buffers, words, strict=True):
        dead = ~mask_of(word, weight)
        update = flat(gradient).float().masked_fill(dead, 0) / scale + decay * flat(weight).float()
        if momentum:
            velocity = momentum * flat(buffer).float() + update
            flat(buffer).copy_(velocity.masked_fill(dead, 0))
            update = update + momentum * velocity if nesterov else velocity
        flat(weight).copy_((flat(weight).float() - lr * update).masked_fill_(dead, 0))


@opaque_operator("masked_sgd", mutates=("weights", "buffers"))
def _masked_sgd(
    weights: list[Tensor],
    gradients: list[Tensor],
    buffers: list[Tensor],
    words: list[Tensor],
    lr: float,
    lr_tensor: Tensor | None,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    columns = (weights, gradients, buffers or weights, words)
    if not runs_kernel(weights[0]):
        settings = (lr if lr_tensor is None else lr_tensor.item(), momentum, weight_decay, nesterov)
        masked_sgd_reference(*columns, settings, grad_scale, found_inf)
        return
    chunking, numbers = Chunking(), (lr, float(momentum), float(weight_decay), lr_tensor, grad_scale, found_inf)
    for launch in launches(columns, chunking.chunk):
        launch.run(masked_sgd_kernel, *numbers, *launch.dtypes[:3], momentum != 0, nesterov, chunking=chunking)


def masked_sgd(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    buffers: Sequence[Tensor],
    words: Sequence[Tensor],
    *,
    lr: float | Tensor,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One step of SGD over lists of equally many tensors, in place; ``gradients`` are only read.

    Args:
        weights: fp16, bf16 or fp32, dense, on one device; dead entries are 0.
        gradients: shaped and laid out as the weights; dead ones are ignored.
        buffers: momentum, shaped and laid out as the weights; dead entries are 0, and all are before the first step.
            Not read without momentum.
        words: int32 ``[ceil(numel / 32)]`` each, the mask in the order of storage, or no entry where all are alive.
        lr: learning rate; a tensor ``[]`` on that device is read by the kernel (a CUDA graph can then change it), one
            elsewhere before it.
        momentum: what is kept of the buffer.
        weight_decay: added to the gradient, times the weight.
        nesterov: as in :class:`torch.optim.SGD`.
        grad_scale: fp32 with one entry, what gradients are divided by.
        found_inf: fp32 with one entry; not 0: nothing is changed.

    Raises:
        ValueError: the lists do not go together, or a dtype, device or layout is not as said.
    """
    if not weights:
        return
    check_dense(weights, words, gradients=gradients, **({"buffers": buffers} if momentum else {}))
    lists = [list(each) for each in (weights, gradients, buffers if momentum else (), words)]
    _step(*lists, lr, momentum, weight_decay, nesterov, grad_scale, found_inf)


def _step(
    weights: list[Tensor],
    gradients: list[Tensor],
    buffers: list[Tensor],
    words: list[Tensor],
    lr: float | Tensor,
    *settings: float | Tensor | None,
) -> None:
    """The step, unchecked: looking at a ResNet's 160 parameters costs more than the launch."""
    _masked_sgd(weights, gradients, buffers, words, *split_lr(lr, weights[0].device), *settings)


class MaskedSGD(MaskedOptimizer):
    """:class:`torch.optim.SGD` under fixed masks: same numbers as with gradients masked first, in one pass.

    ``masks`` maps parameters to bool masks of their shape; other parameters are trained whole.

    Raises:
        ValueError: a mask does not fit its parameter, belongs to none, or a setting is out of its range.
    """

    def __init__(
        self,
        params: Params,
        masks: Mapping[Tensor, Tensor],
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        if (not isinstance(lr, Tensor) and not lr >= 0) or not momentum >= 0 or not weight_decay >= 0:
            raise ValueError(f"lr, momentum and weight_decay must be 0 or more: {lr}, {momentum}, {weight_decay}")
        if nesterov and not momentum:
            raise ValueError("nesterov needs momentum above 0")
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(params, masks, settings)

    def _new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        return {"momentum_buffer": torch.zeros_like(parameter, memory_format=torch.preserve_format)}

    def _update(self, part: Part, states: list[dict[str, Tensor]], **scaling: Tensor | None) -> None:
        _step(
            part.parameters,
            part.gradients,
            [state["momentum_buffer"] for state in states] if part.group["momentum"] else [],
            part.words,
            *(part.group[key] for key in ("lr", "momentum", "weight_decay", "nesterov")),
            *(scaling[key] for key in ("grad_scale", "found_inf")),
        )
