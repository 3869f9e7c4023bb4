"""Iterative magnitude pruning (IMP): the algorithm box of both papers.

    Train f(x; m⊙θ_i, γ_i) to step t; prune a share of the weights of m⊙θ_t by magnitude; rewind θ to θ_i; repeat.

Round k trains under m_k from the rewound weights, evaluates (the value belongs to m_k's sparsity), then prunes to
m_{k+1}. The last round prunes nothing. Resumes by running again: after the last finished round, and inside one after
its last checkpoint.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sparseticket import masks as mask_algebra
from sparseticket.checkpoint import Checkpoint
from sparseticket.files import write_json
from sparseticket.masks import Masks
from sparseticket.progress import Screen
from sparseticket.provenance import versions
from sparseticket.pruning import magnitude_prune
from sparseticket.rewind import Origin, head_state
from sparseticket.runs import GAMMA, THETA, RunFolder, read_json, settings_table
from sparseticket.settings import Rewind, RunSettings
from sparseticket.tasks import TaskOptions
from sparseticket.tensors import load_tensors, save_tensors
from sparseticket.theta import file_hash
from sparseticket.ticket import Ticket
from sparseticket.training import Round, Trained, make_accelerator, total_steps, train
from sparseticket.workbench import Workbench

TICKET = "ticket.ticket"
CARRY = "carry.safetensors"  # what a protocol keeps over a pruning instead of rewinding it


def find(settings: RunSettings, out: Path, *, screen: Screen, checkpoint_every: float = 300.0) -> dict[str, Any]:
    """Find a ticket, leaving a run folder; returns its ``summary.json``.

    Args:
        checkpoint_every: seconds between two checkpoints inside a round.
    """
    accelerator = make_accelerator(settings.training.precision)
    screen.console.quiet |= not accelerator.is_main_process
    bench = Workbench.build(
        settings.model,
        settings.task,
        TaskOptions(_path(settings.data), settings.training.batch_size, settings.training.max_length),
        seed=settings.seed,
        weights=_path(settings.weights),
        accelerator=accelerator,
        screen=screen,
    )
    with accelerator.main_process_first():
        run = RunFolder.open(out, settings_table(settings))
    return Search(settings, bench, run, checkpoint_every).run_all()


class Search:
    """One run of IMP: its settings, its network and its folder."""

    def __init__(self, settings: RunSettings, bench: Workbench, run: RunFolder, checkpoint_every: float) -> None:
        self.settings, self.protocol, self.training = settings, settings.protocol, settings.training
        self.bench, self.run, self.checkpoint_every = bench, run, checkpoint_every
        self.sparsities = self.protocol.sparsities()
        self.steps, per_epoch = total_steps(bench.task, self.training, seed=settings.seed)
        self.rewind_step = Rewind(self.protocol.rewind).step(self.steps, per_epoch)
        self.main = bench.accelerator.is_main_process
        bench.screen.trainings = len(self.sparsities) + self.trains_reference

    @property
    def trains_reference(self) -> bool:
        """Where pruning comes before any training, no round is dense: one dense network is trained for reference."""
        first_is_pruned = self.sparsities[0] > 0
        return first_is_pruned and self.settings.dense

    def run_all(self) -> dict[str, Any]:
        """The loop of the algorithm box."""
        self.write_start()
        if self.trains_reference and not self.run.finished("dense"):
            self.train_reference()
        last = len(self.sparsities) - 1
        for k in range(len(self.sparsities)):
            if self.run.finished(f"round-{k:02d}"):
                continue
            masks = self.ticket(k).masks
            optimizer_state = self.rewind(k)
            begun = time.monotonic()
            trained, metrics, checkpoint = self.train_round(k, masks, optimizer_state)
            pruning_begun = time.monotonic()
            if k < last:
                pruned = magnitude_prune(self.prunable(), masks, self.sparsities[k + 1])
                self.write_ticket(k + 1, pruned, so_far={**self.entry(k, masks, metrics), "seconds": None})
            pruning = time.monotonic() - pruning_begun
            self.finish_round(k, trained, self.entry(k, masks, metrics), begun, pruning, checkpoint)
        return self.write_summary()

    def prunable(self) -> dict[str, torch.nn.Parameter]:
        return self.bench.prunable(self.protocol)

    def write_start(self) -> None:
        """What belongs to the run's beginning: its first ticket, θ where it is in no published file, the first value."""
        if self.run.finished("round-00") or (self.run.path / "start.json").exists():
            return
        value = self.bench.evaluate()[self.bench.task.metric] if self.bench.network.head_pretrained else None
        if self.main:
            if self.bench.random_backbone:
                save_tensors(self.run.path / THETA, self.bench.origin.backbone)
            masks = mask_algebra.ones(self.prunable())
            if self.sparsities[0] > 0:
                masks = magnitude_prune(self.prunable(), masks, self.sparsities[0])
            self.write_ticket(0, masks, so_far=None)
            write_json(self.run.path / "start.json", {"start": value})
        self.bench.accelerator.wait_for_everyone()

    def train_reference(self) -> None:
        """Train the dense network under round 0's names: same head, same order of data."""
        self.bench.origin.restore(self.bench.network)
        begun = time.monotonic()
        masks = mask_algebra.ones(self.prunable())
        trained, metrics, _ = self.train_under(masks, "dense", Round(self.settings.seed, 0))
        if self.main:
            self.bench.network.save(self.run.path / "dense" / "model")
            value = metrics[self.bench.task.metric]
            self.run.finish("dense", {"value": value, "metrics": metrics, "steps": trained.steps,
                                      "seconds": time.monotonic() - begun})  # fmt: skip
        self.bench.accelerator.wait_for_everyone()

    def rewind(self, k: int) -> dict[str, torch.Tensor] | None:
        """Put every part where the protocol says; returns the optimizer's state where that is kept."""
        origin = self.origin(k)
        if k == 0:
            origin.restore(self.bench.network)
            return None
        keeps_weights, keeps_head = self.protocol.rewind == "none", self.protocol.head == "keep"
        origin.restore(self.bench.network, backbone=not keeps_weights, head=not keeps_head)
        return self.load_carry(k - 1)

    def origin(self, k: int) -> Origin:
        """θ_i and γ_i of round k: the pre-trained state, or after round 0 the one kept at the rewind step."""
        if k == 0 or not self.rewind_step:
            return self.bench.origin
        theta, _ = load_tensors(self.run.path / THETA)
        gamma, _ = load_tensors(self.run.path / GAMMA)
        return Origin.from_tensors(theta, gamma)

    def train_round(
        self, k: int, masks: Masks, optimizer_state: dict[str, torch.Tensor] | None
    ) -> tuple[Trained, dict[str, float], Checkpoint]:
        """Round k's training and evaluation."""
        place = Round(self.settings.seed, k, start=self.rewind_step if k else 0, optimizer_state=optimizer_state)
        if self.protocol.lr_schedule == "keep":
            place.schedule_offset, place.schedule_rounds = k * self.steps, len(self.sparsities)
        if k == 0 and self.rewind_step:
            place.at_step = (self.rewind_step, self.keep_theta)
        return self.train_under(masks, f"round-{k:02d}", place)

    def train_under(self, masks: Masks, part: str, place: Round) -> tuple[Trained, dict[str, float], Checkpoint]:
        checkpoint = Checkpoint(self.run.path / part / "checkpoint.safetensors", self.checkpoint_every)
        title = f"{part} ({mask_algebra.sparsity(masks):.1%} sparse)"
        every = max(1, self.steps // 100)
        with self.bench.screen.training(title) as show:

            def on_step(step: int, total: int, loss: float) -> None:
                show(step, total, loss)
                if self.main and (step % every == 0 or step == total):
                    self.run.log(part=part, step=step, loss=loss)

            trained = train(
                self.bench.network,
                self.bench.task,
                masks,
                self.training,
                place,
                accelerator=self.bench.accelerator,
                checkpoint=checkpoint,
                on_step=on_step,
            )
        metrics = self.bench.evaluate()
        self.bench.screen.say(f"{title}: {self.bench.task.metric} {metrics[self.bench.task.metric]:.2%}")
        return trained, metrics, checkpoint

    def keep_theta(self) -> None:
        """Keep θ_i and γ_i, the state at the rewind step."""
        if self.main:
            save_tensors(self.run.path / THETA, self.bench.network.backbone())
            save_tensors(self.run.path / GAMMA, head_state(self.bench.network))
        self.bench.accelerator.wait_for_everyone()

    def ticket(self, k: int) -> Ticket:
        return Ticket.load(self.run.round(k) / TICKET)

    def write_ticket(self, k: int, masks: Masks, *, so_far: dict[str, Any] | None) -> None:
        """Write m_k with its provenance."""
        self.bench.same_on_every_process(masks)
        if not self.main:
            return
        theta = self.origin(k).hashes["backbone"] if k and self.rewind_step else self.bench.theta()
        kept_theta = self.bench.random_backbone or (k and self.rewind_step)
        task = self.bench.task
        history = [self.run.metrics(f"round-{j:02d}") for j in range(k - 1)] + ([so_far] if so_far else [])
        Ticket(
            masks=masks,
            model=self.settings.model if not Path(self.settings.model).is_dir() else self.bench.spec.name,
            theta=theta,
            theta_file=file_hash(self.run.path / THETA) if kept_theta else None,
            scheduled_sparsity=self.sparsities[k],
            pattern=self.protocol.pattern,
            task={"name": task.name, "metric": task.metric, "data_id": task.data_id},
            protocol=asdict(self.protocol),
            training=asdict(self.training),
            round=k,
            seeds={"seed": self.settings.seed},
            metrics={"rounds": [{key: past[key] for key in ("round", "sparsity", "value")} for past in history]},
            versions=versions(),
        ).save(self.run.round(k) / TICKET)

    def entry(self, k: int, masks: Masks, metrics: dict[str, float]) -> dict[str, Any]:
        sparsity = mask_algebra.sparsity(masks)
        return {"round": k, "sparsity": sparsity, "value": metrics[self.bench.task.metric], "metrics": metrics}

    def finish_round(
        self, k: int, trained: Trained, entry: dict[str, Any], begun: float, pruning: float, checkpoint: Checkpoint
    ) -> None:
        """Keep the trained network and what the next round carries on with; then the marker."""
        if self.main:
            self.bench.network.save(self.run.round(k) / "model")
            self.save_carry(k, trained)
            seconds = {
                "seconds": time.monotonic() - begun,
                "seconds_training": trained.seconds,
                "seconds_pruning": pruning,
                "seconds_checkpoints": checkpoint.seconds,
            }
            self.run.finish(f"round-{k:02d}", {**entry, "steps": trained.steps, **seconds})
            checkpoint.path.unlink(missing_ok=True)
            if k:
                (self.run.round(k - 1) / CARRY).unlink(missing_ok=True)
        self.bench.accelerator.wait_for_everyone()

    def save_carry(self, k: int, trained: Trained) -> None:
        """Write what the protocol keeps over a pruning."""
        parts: dict[str, dict[str, torch.Tensor]] = {}
        if self.protocol.rewind == "none":
            parts["backbone"] = self.bench.network.backbone()
        if self.protocol.head == "keep":
            parts["head"] = head_state(self.bench.network)
        if self.protocol.optimizer_state == "keep":
            parts["optimizer"] = trained.optimizer_state
        if parts and k < len(self.sparsities) - 1:
            flat = {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}
            save_tensors(self.run.round(k) / CARRY, flat)

    @torch.no_grad()
    def load_carry(self, k: int) -> dict[str, torch.Tensor] | None:
        """Put back what round k kept; returns the optimizer's state."""
        path = self.run.round(k) / CARRY
        if not path.exists():
            return None
        live = {"backbone": self.bench.network.backbone(), "head": head_state(self.bench.network)}
        optimizer_state = {}
        for name, tensor in load_tensors(path)[0].items():
            part, _, rest = name.partition("/")
            if part == "optimizer":
                optimizer_state[rest] = tensor
            else:
                live[part][rest].copy_(tensor)
        return optimizer_state or None

    def write_summary(self) -> dict[str, Any]:
        """Write summary.json: what was found, as fractions."""
        rounds = [self.run.metrics(f"round-{k:02d}") for k in range(len(self.sparsities))]
        dense = rounds[0]["value"] if self.sparsities[0] == 0 else None
        if self.trains_reference:
            dense = self.run.metrics("dense")["value"]
        summary = {
            "model": self.settings.model,
            "task": self.settings.task,
            "metric": self.bench.task.metric,
            "start": read_json(self.run.path / "start.json")["start"],
            "dense": dense,
            "rounds": [{key: past[key] for key in ("round", "sparsity", "value", "seconds")} for past in rounds],
            "ticket": f"round-{len(rounds) - 1:02d}/{TICKET}",
        }
        if self.main and not (self.run.path / "summary.json").exists():
            write_json(self.run.path / "summary.json", summary)
        return summary


def _path(text: str) -> Path | None:
    return Path(text) if text else None
