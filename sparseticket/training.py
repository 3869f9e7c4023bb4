"""One training loop for every task, on Accelerate. It knows a task only by ``sparseticket.tasks.base.Task``."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from sparseticket.checkpoint import Checkpoint, load_optimizer_tensors, optimizer_tensors
from sparseticket.errors import RunFailure, UserError
from sparseticket.lars import Lars
from sparseticket.launch import meet
from sparseticket.masking import MaskedParameters, refuse_if_zeros_move
from sparseticket.masks import Masks
from sparseticket.models import Network
from sparseticket.on_kernels import can_use_kernels, layers_on_kernels, masked_optimizer
from sparseticket.seeds import derive
from sparseticket.settings import Length, Training
from sparseticket.tasks import Batch, Task
from sparseticket.tasks.prefetch import made_ahead

if TYPE_CHECKING:
    from accelerate import Accelerator

SHARDED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}


def make_accelerator(precision: str = "no") -> Accelerator:
    """An Accelerator for data-parallel training (one process, or several by ``accelerate launch`` or ``torchrun``).

    Raises:
        UserError: it would shard parameters, whose shards the masks do not fit, the precision cannot run here, or the
            processes of a launch do not find each other.
    """
    for variable, name in SHARDED.items():
        if os.environ.get(variable, "").lower() in ("1", "true"):
            raise UserError(f"{name} shards the weights, and masks do not fit the shards: use plain data parallelism.")
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # it refuses a second precision in one process; the processes stay as they are
    meet()
    try:
        accelerator = Accelerator(mixed_precision=precision)
    except ValueError as error:
        raise UserError(f"--precision {precision} cannot be used here: {error}") from error
    if precision == "fp16" and accelerator.device.type == "cpu":  # Accelerate would train in fp32 and say nothing
        raise UserError("--precision fp16 cannot be used here: it needs a GPU. Use no or bf16.")
    accelerator.gradient_accumulation_steps = 1  # `accelerate config` may say another, which would divide the loss
    return accelerator


@dataclass
class Round:
    """One training's place in a run: its names for random draws, and its place in the learning rate's schedule.

    Attributes:
        seed, number: what data order, dropout and augmentation are functions of, beside the step.
        start: the step at which this training begins (above 0 after a rewind to a step).
        schedule_offset, schedule_rounds: place in a learning rate schedule over several rounds; 0 and 1 for its own.
        optimizer_state: tensors to begin with, where the protocol keeps the optimizer's state.
        at_step: called once with the network's state after this many steps (θ_i is taken so).
    """

    seed: int
    number: int
    start: int = 0
    schedule_offset: int = 0
    schedule_rounds: int = 1
    optimizer_state: dict[str, torch.Tensor] | None = None
    at_step: tuple[int, Callable[[], None]] | None = None


@dataclass
class Trained:
    """What a training leaves beside the weights. Seconds are of this process, the last attempt only."""

    steps: int
    seconds: float
    seconds_checkpoints: float
    optimizer_state: dict[str, torch.Tensor] = field(default_factory=dict)


def total_steps(task: Task, settings: Training) -> tuple[int, int]:
    """Optimizer steps of a round, and of an epoch (which does not depend on seed, round or epoch)."""
    per_epoch = len(task.batches("train", seed=0, round=0, epoch=0))
    return Length.parse(settings.round_length).steps(per_epoch), per_epoch


def train(
    network: Network,
    task: Task,
    masks: Masks,
    settings: Training,
    place: Round,
    *,
    accelerator: Accelerator,
    checkpoint: Checkpoint | None = None,
    on_step: Callable[[int, int, float], None] = lambda step, total, loss: None,
) -> Trained:
    """Train ``network`` under ``masks`` for one round, in place; its pruned weights are exactly 0 from first to last.

    Raises:
        RunFailure: a loss that is not finite, or a pruned weight that moved.
    """
    total, per_epoch = total_steps(task, settings)
    module = network.module.to(accelerator.device)
    pruned = MaskedParameters(network.backbone(), masks)  # type: ignore[arg-type]
    pruned.mask_parameters()
    beside = task.begin(module, seed=place.seed, round=place.number)
    all_pruned = [pruned, *(MaskedParameters(replace(network, module=other).backbone(), masks) for other in beside)]
    on_kernels = settings.kernels == "auto" and can_use_kernels(accelerator.device)
    raw_optimizer = _optimizer_of(network, masks, settings, on_kernels=on_kernels)
    if place.optimizer_state:
        load_optimizer_tensors(raw_optimizer, place.optimizer_state)
    first, scaler_state = place.start, {}
    if checkpoint and (found := checkpoint.load(module, raw_optimizer, task)):
        first, scaler_state = found
    for each in all_pruned:
        each.mask_parameters()
    pruned.mask_optimizer(raw_optimizer)
    finish_gradients = _finisher(raw_optimizer, pruned, module, settings.clip)
    with layers_on_kernels(network, masks, settings, processes=accelerator.num_processes, use=on_kernels) as constant:
        objective, optimizer = accelerator.prepare(_Objective(module, task, constant), raw_optimizer)
        if accelerator.scaler:  # it outlives a training: each begins with a fresh one, so that arms are trained alike
            accelerator.scaler.load_state_dict(scaler_state or torch.amp.GradScaler("cuda").state_dict())
        module.train()
        begun = time.monotonic()
        batches = _batches_from(first, per_epoch, task, place, accelerator.device)
        for step in range(first, total):
            batch, weight = _share_of_process(next(batches), accelerator)
            lr = settings.lr * settings.lr_factor(place.schedule_offset + step, place.schedule_rounds * total)
            for group in raw_optimizer.param_groups:
                group["lr"] = lr
            torch.manual_seed(derive(place.seed, "dropout", place.number, step, accelerator.process_index))
            loss = objective(batch, step)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise _diverged(f"the loss became {value} at step {step} of round {place.number}", settings)
            accelerator.backward(loss * weight)
            accelerator.unscale_gradients(optimizer)
            finish_gradients()
            optimizer.step()
            optimizer.zero_grad()
            task.after_step(module)
            done = step + 1
            if place.at_step and done == place.at_step[0]:
                place.at_step[1]()
            on_step(done, total, value)
            if checkpoint and done < total and accelerator.is_main_process and checkpoint.due():
                scaler_state = accelerator.scaler.state_dict() if accelerator.scaler else {}
                checkpoint.save(done, module, raw_optimizer, task, scaler_state)
        seconds = time.monotonic() - begun
        accelerator.free_memory()
    if not all(parameter.isfinite().all() for parameter in module.parameters()):
        raise _diverged(f"weights became infinite or NaN in round {place.number}", settings)
    for each in all_pruned:
        each.check_zeros()
    return Trained(total, seconds, checkpoint.seconds if checkpoint else 0.0, optimizer_tensors(raw_optimizer))


def _batches_from(first: int, per_epoch: int, task: Task, place: Round, device: torch.device) -> Iterator[Batch]:
    """The batches of step ``first`` and all that follow, epoch after epoch, each in an order of its own."""
    for epoch in itertools.count(first // per_epoch):
        batches = task.batches("train", seed=place.seed, round=place.number, epoch=epoch)
        yield from made_ahead(batches, device, start=max(0, first - epoch * per_epoch))


def _diverged(what: str, settings: Training) -> RunFailure:
    return RunFailure(f"{what}. Finished rounds are kept; a lower --lr than {settings.lr:g} in a new folder may help.")


def _optimizer_of(network: Network, masks: Masks, settings: Training, *, on_kernels: bool) -> torch.optim.Optimizer:
    """One for all that trains in the network; it leaves zeros where they are, or is refused."""
    refuse_if_zeros_move(lambda parameters: make_optimizer(list(parameters), settings))
    masked = masked_optimizer(network, masks, settings) if on_kernels else None
    return masked or make_optimizer([p for p in network.module.parameters() if p.requires_grad], settings)


def make_optimizer(parameters: list[nn.Parameter], settings: Training) -> torch.optim.Optimizer:
    """The optimizer of these settings."""
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    if settings.optimizer == "lars":
        return Lars(parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
    fused = parameters[0].device.type in ("cpu", "cuda")  # one pass: 33 ms a step on MiniLM on one core, else 250 ms
    return torch.optim.AdamW(
        parameters, lr=settings.lr, eps=settings.eps, weight_decay=settings.weight_decay, fused=fused
    )


def _finisher(
    optimizer: torch.optim.Optimizer, pruned: MaskedParameters, module: nn.Module, clip: float
) -> Callable[[], None]:
    """What is done to gradients between reduction and step: those of pruned weights go, the rest is clipped."""

    def mask_and_clip() -> None:
        pruned.mask_gradients()
        if clip:
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip)

    def clip_alone() -> None:  # this optimizer masks as it reads
        if clip:
            optimizer.clip_grad_norm(clip)

    return clip_alone if hasattr(optimizer, "clip_grad_norm") else mask_and_clip


class _Objective(nn.Module):
    """A task's loss as a forward: DDP reduces gradients only of what went through the module that it wraps."""

    def __init__(self, module: nn.Module, task: Task, constant: Sequence[str] = ()) -> None:
        super().__init__()
        self.module = module
        self._loss = task.loss
        self._ddp_params_and_buffers_to_ignore = [f"module.{name}" for name in constant]  # the name that DDP asks for

    def forward(self, batch: Batch, step: int) -> torch.Tensor:
        return self._loss(self.module, batch, step=step)


def _share_of_process(batch: Batch, accelerator: Accelerator) -> tuple[dict[str, torch.Tensor], float]:
    """Examples of a global batch that are this process's, on its device, and what its loss weighs.

    DDP averages over processes: the weight makes that the mean over the batch where shares differ in size. A process
    without an example takes the first with weight 0, because all must take part in the reduction.
    """
    rank, processes = accelerator.process_index, accelerator.num_processes
    size = len(next(iter(batch.values())))
    mine = slice(rank, None, processes) if rank < size else slice(0, 1)
    share = {name: tensor[mine].to(accelerator.device, non_blocking=True) for name, tensor in batch.items()}
    examples = len(range(rank, size, processes))
    return share, examples * processes / size
