"""AdamW whose moments and fp32 master exist for live weights only, beside a dense fp16 or bf16 weight.

A live entry's place in the compressed states is its rank among the live. A program takes a chunk of the weight and
works through its live entries only: the prefix counts of the mask's words say in which word an entry of this rank lies,
the bits below it in the word where. (With a thread for every weight, alive or not, clip and step of BERT-base's encoder
at 70 % took an H200 752 µs; measured apart, they now take 67 and 421.)

A step moves 16.1/11.3/6.5 bytes a weight at 50/70/90 % sparsity, where dense fp32 AdamW
moves 28: gradient and weight are dense (2 bytes each, the weight only written), 24 bytes are moved for what is alive,
and a quarter byte for words and prefix. Weights in fp32 are their own master. Wins wherever memory counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparseticket.kernels.adamw import (
    AdamWOptimizer,
    adamw,
    adamw_reference,
    bias_corrections,
    check_steps,
    scalars,
    step_adamw,
)
from sparseticket.kernels.launch import runs_kernel
from sparseticket.kernels.live_words import check_dense, flat, mask_of
from sparseticket.kernels.operators import opaque_operator
from sparseticket.kernels.tensor_table import Chunking, column, find_chunk, launches, step_scaling
from sparseticket.kernels.words import popcount

CHUNKING = Chunking(4096, 8)  # 421 µs for BERT-base's encoder at 70 %, bf16, on an H200; with 1024 and 4 warps, 480


@triton.jit
def live_adamw_kernel(
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
    CHUNK: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Columns of the table: weight, gradient, exp_avg, exp_avg_sq, master (none for fp32), words, prefix, step."""
    row, size, start = find_chunk(rows, owners, 8, CHUNK)
    lr, unscale, size = step_scaling(size, lr, lr_tensor, grad_scale, found_inf)
    correction1, correction2 = bias_corrections(row, 7, log_beta1, log_beta2)
    size = tl.minimum(tl.maximum(size - start, 0), CHUNK).to(tl.int32)  # of this chunk
    words = column(row, 5, tl.uint32, False) + start // 32
    prefix = column(row, 6, tl.int32, False) + start // 32
    masked = tl.load(row + 2 + 5) != 0
    last_word = (tl.maximum(size, 1) - 1) // 32
    before = tl.load(prefix, mask=masked, other=0)
    live_in_last = popcount(tl.load(words + last_word, mask=masked, other=0))
    live = tl.load(prefix + last_word, mask=masked, other=0) - before + live_in_last.to(tl.int32)
    live = tl.where(size > 0, tl.where(masked, live, size), 0)
    first = tl.where(masked, before.to(tl.int64), start)
    ms = column(row, 2, tl.float32, False) + first
    vs = column(row, 3, tl.float32, False) + first
    masters = column(row, 4, tl.float32, False) + first
    gradients = column(row, 1, GRADIENT, EVEN) + start
    weights = column(row, 0, WEIGHT, EVEN) + start
    TILE: tl.constexpr = CHUNK if CHUNK < 512 else 512
    for begin in range(0, live, TILE):
        rank = begin + tl.arange(0, TILE)
        alive = rank < live
        in_words = rank < tl.where(masked, live, 0)
        place = tl.where(masked, _place_of(rank, words, prefix, before, last_word, in_words, CHUNK), rank)
        gradient = tl.load(gradients + place, mask=alive, other=0).to(tl.float32) * unscale
        weight = tl.load((weights + place) if tl.float32 == WEIGHT else (masters + rank), mask=alive, other=0)
        m = tl.load(ms + rank, mask=alive, other=0)
        v = tl.load(vs + rank, mask=alive, other=0)
        weight, m, v = adamw(weight, gradient, m, v, lr, beta1, new1, beta2, new2, correction1, correction2, eps, decay)
        if tl.float32 != WEIGHT:
            tl.store(masters + rank, weight, mask=alive)
        tl.store(ms + rank, m, mask=alive)
        tl.store(vs + rank, v, mask=alive)
        tl.store(weights + place, weight.to(WEIGHT), mask=alive)


@triton.jit
def _place_of(rank, words, prefix, before, last_word, alive, CHUNK: tl.constexpr):
    """Where in its chunk the live entry of this rank lies: the last word with no more bits before it, then the bit."""
    word = tl.zeros_like(rank)
    for power in tl.static_range(16):
        if CHUNK // 64 >> power > 0:
            further = word + (CHUNK // 64 >> power)
            ahead = tl.load(prefix + further, mask=alive & (further <= last_word), other=0)
            word = tl.where((further <= last_word) & (ahead - before <= rank), further, word)
    rank -= tl.load(prefix + word, mask=alive, other=0) - before
    bits = tl.load(words + word, mask=alive, other=0)
    bit = tl.zeros_like(rank)
    for power in tl.static_range(5):
        width = 16 >> power
        lower = popcount((bits >> bit.to(tl.uint32)) & ((1 << width) - 1)).to(tl.int32)
        higher = rank >= lower
        rank = tl.where(higher, rank - lower, rank)
        bit = tl.where(higher, bit + width, bit)
    return word * 32 + bit


def live_adamw_reference(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    states: Sequence[Sequence[Tensor]],
    words: Sequence[Tensor],
    steps: Sequence[Tensor],
    settings: Sequence[float],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """The same in plain PyTorch; ``states`` are the lists of moments and masters."""
    if found_inf is not None and found_inf.item():
        return
    scale = 1.0 if grad_scale is None else grad_scale.item()
    for weight, gradient, m, v, master, word, step in zip(weights, gradients, *states, words, steps, strict=True):
        alive = mask_of(word, weight)
        value = master if weight.dtype != torch.float32 else flat(weight)[alive]
        value, new_m, new_v = adamw_reference(value, flat(gradient)[alive].float() / scale, m, v, step.item(), settings)
        m.copy_(new_m)
        v.copy_(new_v)
        if weight.dtype != torch.float32:
            master.copy_(value)
        flat(weight).zero_().masked_scatter_(alive, value.to(weight.dtype))


@opaque_operator("live_adamw", mutates=("weights", "exp_avgs", "exp_avg_sqs", "masters"))
def _live_adamw(
    weights: list[Tensor],
    gradients: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    masters: list[Tensor],
    words: list[Tensor],
    prefixes: list[Tensor],
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
    states = (exp_avgs, exp_avg_sqs, masters)
    if not runs_kernel(weights[0]):
        settings = (lr if lr_tensor is None else lr_tensor.item(), beta1, beta2, eps, weight_decay)
        live_adamw_reference(weights, gradients, states, words, steps, settings, grad_scale, found_inf)
        return
    numbers = scalars(lr, beta1, beta2, eps, weight_decay)
    for launch in launches((weights, gradients, *states, words, prefixes, steps), CHUNKING.chunk):
        launch.run(live_adamw_kernel, *numbers, lr_tensor, grad_scale, found_inf, *launch.dtypes[:2], chunking=CHUNKING)


def live_adamw(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    masters: Sequence[Tensor],
    words: Sequence[Tensor],
    prefixes: Sequence[Tensor],
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
        gradients: shaped and laid out as the weights.
        exp_avgs: first moments, fp32 ``[nnz]`` each, in the order of storage. That nnz is what ``words`` say is not
            checked, for which the CPU would have to wait: with fewer entries, memory behind them is overwritten.
        exp_avg_sqs: second moments, likewise.
        masters: the weights, likewise; for an fp32 weight ``[0]``, it is read itself.
        words: int32 ``[ceil(numel / 32)]`` each, the mask in the order of storage, or no entry where all are alive.
        prefixes: int32 as ``words``, by :func:`prefix_counts`.
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
    check_dense(weights, words, gradients=gradients)
    check_steps(weights, steps)
    lists = (exp_avgs, exp_avg_sqs, masters, prefixes)
    if any(len(tensors) != len(weights) for tensors in lists):
        raise ValueError(f"there are {len(weights)} weights, and {[len(tensors) for tensors in lists]} of their states")
    for weight, m, v, master, word, prefix in zip(weights, *lists[:3], words, prefixes, strict=True):
        sizes = (len(m), 0 if weight.dtype == torch.float32 else len(m), len(word))
        if (len(v), len(master), len(prefix)) != sizes or (not len(word) and len(m) != weight.numel()):
            raise ValueError(f"states of the weight of {tuple(weight.shape)} do not have an entry for each live weight")
        if {m.dtype, v.dtype, master.dtype} != {torch.float32} or prefix.dtype != torch.int32:
            raise ValueError("states must be fp32, and prefixes int32")
        for state in (m, v, master, prefix):
            if state.device != weight.device or not state.is_contiguous():
                raise ValueError(f"states and prefixes must be contiguous on {weight.device}: one is on {state.device}")
    tensors = (weights, gradients, exp_avgs, exp_avg_sqs, masters, words, prefixes)
    step_adamw(_live_adamw, tensors, steps, lr, betas, eps, weight_decay, grad_scale, found_inf)


def prefix_counts(words: Tensor) -> Tensor:
    """How many bits are set before each of these int32 words, int32.

    Raises:
        ValueError: 2^31 bits or more are set, which int32 cannot count.
    """
    bits = torch.tensor([bin(byte).count("1") for byte in range(256)], device=words.device)
    counts = bits[words.view(torch.uint8).long()].reshape(-1, 4).sum(1)
    total = counts.cumsum(0)
    if len(total) and int(total[-1]) >= 2**31:
        raise ValueError(f"a tensor with {int(total[-1])} live weights is too large: split it below 2^31")
    return (total - counts).to(torch.int32)


class LiveAdamW(AdamWOptimizer):
    """AdamW under fixed masks with moments, and an fp32 master of fp16 and bf16 weights, for live weights only.

    The numbers of an fp32 AdamW whose weights are rounded to the parameter's dtype after each step. ``masks`` maps
    parameters to bool masks of their shape; other parameters have states for all their weights. States: ``exp_avg``,
    ``exp_avg_sq``, ``master``, fp32 ``[nnz]``. A master begins as the weight at the parameter's first step, and only
    adds bits to it: where a weight that was written since the last step is no longer its master rounded, the weight
    counts. So weights may be loaded at any time, before the optimizer's state or after it.

    Raises:
        ValueError: a mask does not fit its parameter, belongs to none, or a setting is out of its range.
    """

    _operator = _live_adamw
    _states = ("exp_avg", "exp_avg_sq", "master")

    def _mask_columns(self, words: Tensor) -> tuple[Tensor, ...]:
        return words, prefix_counts(words)

    @torch.no_grad()
    def _take_over(self, parameter: Tensor) -> None:
        super()._take_over(parameter)
        if not self.state.get(parameter) or parameter.dtype == torch.float32:
            return
        master, weight = self.state[parameter]["master"], flat(parameter)
        alive = mask_of(self._words(parameter), parameter)
        rank = torch.where(alive, alive.cumsum(0) - 1, len(master))  # not weight[alive], which waits for the device
        held = torch.nn.functional.pad(master, (0, 1))
        old = held[rank]
        new = torch.where(old.to(weight.dtype) == weight, old, weight.float())
        master.copy_(held.scatter_(0, rank, new)[:-1])

    def _mask_state(self, parameter: Tensor, words: Tensor) -> None:
        was, alive = (mask_of(each, parameter) for each in (self._words(parameter), words))
        for key in self._states:
            value = self.state[parameter][key]
            if key != "master" or parameter.dtype != torch.float32:
                dense = torch.zeros(parameter.numel(), dtype=torch.float32, device=parameter.device)
                self.state[parameter][key] = dense.masked_scatter_(was, value)[alive]

    def _new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        live = flat(parameter.detach())[mask_of(self._words(parameter), parameter)].float()
        return {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(live),
            "exp_avg_sq": torch.zeros_like(live),
            "master": live if parameter.dtype != torch.float32 else live.new_empty(0),
        }
