"""What masking costs of a training step, and pruning and checkpoints of a round.

Run as ``python -m sparseticket.bench.masking_cost``. Every arm trains a network of its own on the same batches; the
arms of one pair follow each other at once, in an order drawn anew, so that both meet the same machine.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn.utils import prune

from sparseticket import masks as mask_algebra
from sparseticket import recipes
from sparseticket.bench.machine import describe
from sparseticket.bench.messages import errors_as_messages
from sparseticket.bench.timing import RESAMPLES
from sparseticket.checkpoint import Checkpoint
from sparseticket.errors import UserError
from sparseticket.files import write_json
from sparseticket.masking import MaskedParameters
from sparseticket.masks import Masks
from sparseticket.models import Network
from sparseticket.progress import Screen, clock
from sparseticket.pruning import magnitude_prune
from sparseticket.seeds import derive, generator
from sparseticket.settings import Length, Protocol, Training
from sparseticket.tasks import Batch, Task, TaskOptions
from sparseticket.training import make_accelerator, make_optimizer
from sparseticket.workbench import Workbench

RESULTS = Path("bench/results")
TASK = "docstring-topic"
ROWS, TOKENS = 32, 32
SPARSITY = 0.5
SEED = 0
WARM_UP_STEPS = 3
PEERS_EVERY = 5  # pairs: the peers are beside the question, and take as long
TIMES_OF_EVENTS = 3
PLAIN, MASKED, FILLED, PRUNE = "without", "with", "masked_fill", "torch.nn.utils.prune"
WHAT_THEY_ARE = {
    PLAIN: "no masks",
    MASKED: "gradients AND the mask, in place, once a step (what sparseticket does)",
    FILLED: "gradients.masked_fill_ with a bool mask, in place, once a step",
    PRUNE: "torch.nn.utils.prune: weight = original x mask in every forward",
}
ROUND_RECIPE, ROUND_EXAMPLES = "neurips20/sst2", 67_349  # SST-2's training sentences
CHECKPOINT_EVERY = 300.0  # seconds, as find has it by default


@dataclass(frozen=True)
class Arm:
    """One way to mask: a network of its own, its optimizer, and what happens between backward and clipping."""

    network: Network
    optimizer: torch.optim.Optimizer
    mask_gradients: Callable[[], object]

    def step(self, task: Task, batch: Batch, settings: Training, number: int) -> None:
        """One training step, as ``sparseticket.training.train`` does it in one process."""
        module = self.network.module
        torch.manual_seed(derive(SEED, "dropout", number))
        loss = task.loss(module, batch, step=number)
        if not math.isfinite(float(loss.detach())):
            raise UserError(f"the loss is not finite at step {number}: this model cannot be measured.")
        loss.backward()
        self.mask_gradients()
        torch.nn.utils.clip_grad_norm_(module.parameters(), settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()


def measure(model: str, *, pairs: int, device: str) -> dict[str, Any]:
    """Measure on one device ("cpu" or "cuda"); times in the result are in milliseconds or, as ``_s``, in seconds."""
    if pairs < 1:
        raise UserError(f"--pairs {pairs} makes no sense: give 1 or more (200 for a result).")
    settings = recipes.load(f"demo/{TASK}").settings.training
    options = TaskOptions(batch_size=ROWS, max_length=TOKENS)
    work = Workbench.build(
        model, TASK, options, seed=SEED, weights=None, accelerator=make_accelerator(), screen=Screen(quiet=True)
    )
    weights = work.prunable(Protocol())
    masks = {
        name: torch.rand(weight.shape, generator=generator(SEED, "mask", name)) >= SPARSITY
        for name, weight in weights.items()
    }
    work.network.module.to(device)
    batches = [{name: tensor.to(device) for name, tensor in batch.items()} for batch in full_batches(work.task)]
    arms = make_arms(work, masks, settings, device)
    times = time_steps(arms, work.task, batches, settings, pairs=pairs, device=device)
    cost = {name: share_of_step(times[PLAIN], times[name], seed=SEED) for name in (MASKED, FILLED, PRUNE)}
    return {
        "machine": describe(torch.get_num_threads()),
        "device": device,
        "model": work.spec.name,
        "batch": f"{ROWS} x {TOKENS} tokens of {TASK}",
        "masked_weights": mask_algebra.size(masks),
        "sparsity": mask_algebra.sparsity(masks),
        "arms": WHAT_THEY_ARE,
        "step_ms": {name: float(np.nanmedian(of_arm)) for name, of_arm in times.items()},
        "cost": cost,
        "round": events_of_round(work, arms[PLAIN], weights, float(np.nanmedian(times[PLAIN])) / 1000),
        "times_ms": {
            name: [None if math.isnan(one) else round(one, 3) for one in of_arm] for name, of_arm in times.items()
        },
    }


def full_batches(task: Task) -> list[Batch]:
    """The batches of an epoch that are ``ROWS`` x ``TOKENS``: equal shapes, real text."""
    epoch = task.batches("train", seed=SEED, round=0, epoch=0)
    full = [batch for batch in epoch if batch["input_ids"].shape == (ROWS, TOKENS)]
    if not full:
        raise UserError(f"this model's tokenizer makes no batch of {ROWS} x {TOKENS} tokens from {TASK}.")
    return full


def make_arms(work: Workbench, masks: Masks, settings: Training, device: str) -> dict[str, Arm]:
    """The four arms, each with the same weights at the start."""

    def network() -> Network:
        made = work.spec.build(work.task.head, seed=SEED)
        made.module.to(device).train()
        return made

    def optimizer(module: nn.Module) -> torch.optim.Optimizer:
        return make_optimizer(list(module.parameters()), settings)

    plain, masked, filled, pruned = (network() for _ in range(4))
    ours = MaskedParameters(masked.backbone(), masks)  # type: ignore[arg-type]
    theirs = {name: (filled.backbone()[name], ~mask.to(device)) for name, mask in masks.items()}
    ours.mask_parameters()
    MaskedParameters(filled.backbone(), masks).mask_parameters()  # type: ignore[arg-type]
    for name, mask in masks.items():
        layer = pruned.module.get_submodule((pruned.prefix + name).removesuffix(".weight"))
        prune.custom_from_mask(layer, "weight", mask.to(device))
    return {
        PLAIN: Arm(plain, optimizer(plain.module), lambda: None),
        MASKED: Arm(masked, optimizer(masked.module), ours.mask_gradients),
        FILLED: Arm(filled, optimizer(filled.module), lambda: _fill(theirs)),
        PRUNE: Arm(pruned, optimizer(pruned.module), lambda: None),
    }


def time_steps(
    arms: dict[str, Arm], task: Task, batches: Sequence[Batch], settings: Training, *, pairs: int, device: str
) -> dict[str, np.ndarray]:
    """Milliseconds of each arm's step in each pair, float64 [pairs]; NaN where a peer had no turn."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    order = np.random.default_rng(SEED)
    times = {name: np.full(pairs, np.nan) for name in arms}
    for number in range(-WARM_UP_STEPS, 0):
        for arm in arms.values():
            arm.step(task, batches[number % len(batches)], settings, number)
    for pair in track(range(pairs), f"{pairs} pairs of steps on {device}", console=Console(stderr=True)):
        turns = list(arms) if pair % PEERS_EVERY == 0 else [PLAIN, MASKED]
        for name in order.permutation(turns):
            synchronize()
            begun = time.perf_counter_ns()
            arms[name].step(task, batches[pair % len(batches)], settings, pair)
            synchronize()
            times[name][pair] = (time.perf_counter_ns() - begun) / 1e6
    return times


def share_of_step(plain: np.ndarray, other: np.ndarray, *, seed: int) -> dict[str, float]:
    """Median of the paired differences over the median step without masks, with a bootstrap 95 % interval over pairs.

    Args:
        plain: milliseconds without masks, float64 [pairs].
        other: milliseconds of another arm in the same pairs; NaN where it had no turn.
        seed: of the bootstrap.
    """
    both = ~np.isnan(other)
    plain, difference = plain[both], other[both] - plain[both]
    drawn = np.random.default_rng(seed).integers(len(plain), size=(RESAMPLES, len(plain)))
    shares = np.median(difference[drawn], axis=1) / np.median(plain[drawn], axis=1)
    low, high = np.percentile(shares, [2.5, 97.5])
    return {
        "difference_ms": float(np.median(difference)),
        "share": float(np.median(difference) / np.median(plain)),
        "low": float(low),
        "high": float(high),
        "n": len(plain),
    }


def events_of_round(work: Workbench, arm: Arm, weights: dict[str, nn.Parameter], step_s: float) -> dict[str, Any]:
    """What happens once or seldom in a round, in seconds, and as a share of a round of the paper's length."""
    module, task = arm.network.module, work.task
    prune_s = _median_s(lambda: magnitude_prune(weights, mask_algebra.ones(weights), SPARSITY))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint(Path(folder) / "checkpoint.safetensors", CHECKPOINT_EVERY)
        save_s = _median_s(lambda: checkpoint.save(1, module, arm.optimizer, task, {}))
        load_s = _median_s(lambda: checkpoint.load(module, arm.optimizer, task))
        size = checkpoint.path.stat().st_size
    length = recipes.load(ROUND_RECIPE).settings.training.round_length
    steps = Length.parse(length).steps(math.ceil(ROUND_EXAMPLES / ROWS))
    seconds = steps * step_s
    checkpoints = int(seconds // CHECKPOINT_EVERY)
    return {
        "prune_s": prune_s,
        "checkpoint_save_s": save_s,
        "checkpoint_load_s": load_s,
        "checkpoint_bytes": size,
        "compared_with": {
            "round": f"{ROUND_RECIPE}: {length} of {ROUND_EXAMPLES} examples, at {ROWS} x {TOKENS} tokens",
            "steps": steps,
            "seconds": seconds,
            "checkpoints": checkpoints,
            "prune_share": prune_s / seconds,
            "checkpoint_share": checkpoints * save_s / seconds,
        },
    }


def show(result: dict[str, Any]) -> None:
    """Print what matters of a result."""
    print(f"{result['model']} on {result['device']}, {result['batch']}; {result['machine']['threads']} threads")
    print(f"a step without masks: {result['step_ms'][PLAIN]:.1f} ms")
    for name, cost in result["cost"].items():
        print(
            f"{WHAT_THEY_ARE[name]}: {cost['share']:+.2%} of a step, 95 % interval {cost['low']:+.2%} to "
            f"{cost['high']:+.2%} ({cost['difference_ms']:+.2f} ms, {cost['n']} pairs)"
        )
    events, whole = result["round"], result["round"]["compared_with"]
    print(
        f"a round ({whole['round']}): {whole['steps']} steps, {clock(whole['seconds'])}; one pruning "
        f"{events['prune_s']:.2f} s ({whole['prune_share']:.2%} of it), {whole['checkpoints']} checkpoints of "
        f"{events['checkpoint_save_s']:.2f} s ({whole['checkpoint_share']:.2%}); loading one "
        f"{events['checkpoint_load_s']:.2f} s"
    )


@errors_as_messages()
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    parser = argparse.ArgumentParser(prog="python -m sparseticket.bench.masking_cost", description=__doc__)
    parser.add_argument("--model", default="minilm", help="a BERT-like encoder: alias, hub name or folder")
    parser.add_argument("--pairs", type=int, default=200, help="paired steps, 200 or more for a result")
    parser.add_argument("--device", choices=devices, help="default: each that is here")
    parser.add_argument("--out", type=Path, help=f"a file, for one device; default: {RESULTS}/masking_cost_DEVICE.json")
    given = parser.parse_args(arguments)
    chosen = [given.device] if given.device else devices
    if given.out and len(chosen) > 1:
        parser.error(f"--out is one file: name a --device of {', '.join(chosen)} too")
    for device in chosen:
        result = measure(given.model, pairs=given.pairs, device=device)
        out = given.out or RESULTS / f"masking_cost_{device}.json"
        write_json(out, result)
        show(result)
        print(f"Written to {out}")


@torch.no_grad()
def _fill(parameters: dict[str, tuple[Tensor, Tensor]]) -> None:
    for parameter, dead in parameters.values():
        if parameter.grad is not None:
            parameter.grad.masked_fill_(dead, 0.0)


def _median_s(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(TIMES_OF_EVENTS):
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    return float(np.median(seconds))


if __name__ == "__main__":
    main()
