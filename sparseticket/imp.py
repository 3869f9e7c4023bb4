"""Iterative magnitude pruning (IMP): the algorithm box of both papers.

    Train f(x; m⊙θ_i, γ_i) to step t; prune a share of the weights of m⊙θ_t by magnitude; rewind θ to θ_i; repeat.

Round k trains under m_k from the rewound weights, evaluates (the value belongs to m_k's sparsity), then prunes to
m_{k+1}. The last round prunes nothing. It resumes by running again: after the last finished round, and inside one
after its last checkpoint.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sparseticket import masks as mask_algebra
from sparseticket.carry import load_carry, save_carry
from sparseticket.checkpoint import Checkpoint, check_interval
from sparseticket.dense_round import check_same_dense_round, take_dense_round
from sparseticket.errors import UserError
from sparseticket.files import read_json, write_json
from sparseticket.masks import Masks
from sparseticket.models import resolve
from sparseticket.on_kernels import say_where_not
from sparseticket.pattern import check_model, parse
from sparseticket.progress import Screen
from sparseticket.provenance import versions
from sparseticket.pruning import Pruner, magnitude_prune
from sparseticket.rewind import Origin, head_state
from sparseticket.runs import (
    CARRY,
    CHECKPOINT,
    FINISHED,
    GAMMA,
    HEAD,
    START,
    SUMMARY,
    THETA,
    TICKET,
    RunFolder,
    settings_table,
)
from sparseticket.settings import Rewind, RunSettings
from sparseticket.tasks import TaskOptions
from sparseticket.tensors import load_tensors, save_tensors
from sparseticket.theta import file_hash, tensor_hashes
from sparseticket.ticket import Ticket
from sparseticket.training import Round, Trained, make_accelerator, total_steps, train
from sparseticket.workbench import Workbench


def find(
    settings: RunSettings,
    out: Path,
    *,
    screen: Screen,
    checkpoint_every: float = 300.0,
    dense_from: Path | None = None,
) -> dict[str, Any]:
    """Find a ticket, leaving a run folder; returns its ``summary.json``.

    Args:
        settings: what is run.
        out: the run's folder.
        screen: where it is shown.
        checkpoint_every: seconds between checkpoints inside a round.
        dense_from: another run, of which this one takes the dense round (:mod:`sparseticket.dense_round`).
    """
    check_interval(checkpoint_every)
    if (out / SUMMARY).is_file():
        RunFolder.open(out, settings_table(settings))
        summary = read_json(out / SUMMARY)
        Ticket.load(out / str(summary.get("ticket")))  # what is reported as found is there, and whole
        screen.note(FINISHED.format(out))
        return summary
    check_model(parse(settings.protocol.pattern), resolve(settings.model).kind, settings.model)
    accelerator = make_accelerator(settings.training.precision)
    screen.console.quiet |= not accelerator.is_main_process
    say_where_not(screen, settings.training, accelerator.device)
    options = TaskOptions.of(settings.training, settings.data)
    work = Workbench.build(
        settings.model,
        settings.task,
        options,
        seed=settings.seed,
        weights=Path(settings.weights) if settings.weights else None,
        accelerator=accelerator,
        screen=screen,
    )
    search = Search(settings, work, RunFolder(out), checkpoint_every)  # refuses what does not fit before it writes
    if dense_from is not None and not RunFolder(out).finished("round-00"):
        check_same_dense_round(settings, dense_from)
    with accelerator.main_process_first():
        RunFolder.open(out, settings_table(settings))
    accelerator.wait_for_everyone()  # opening removes what a kill left: not while another process writes already
    return search.run_all(dense_from)


class Search:
    """One run of IMP: its settings, its network, and its folder."""

    def __init__(self, settings: RunSettings, work: Workbench, run: RunFolder, checkpoint_every: float) -> None:
        self.settings, self.protocol, self.training = settings, settings.protocol, settings.training
        self.work, self.run, self.checkpoint_every = work, run, checkpoint_every
        self.pruner = Pruner.of(self.protocol.pattern, work.network.backbone_module, self.prunable())
        self.pruner.check_reachable(self.protocol.sparsity)
        self.sparsities = self.protocol.sparsities()
        self.last = len(self.sparsities) - 1
        self.steps, per_epoch = total_steps(work.task, self.training)
        self.rewind_step = Rewind(self.protocol.rewind).step(self.steps, per_epoch)
        # where pruning comes before any training no round is dense: one dense network is trained for reference
        self.trains_reference = self.sparsities[0] > 0 and settings.dense
        self.on_main = work.accelerator.is_main_process
        work.screen.expect(
            len(self.sparsities) + self.trains_reference,
            shorter="a smaller --round-length, a lower --sparsity or a larger step of --schedule",
        )

    def run_all(self, dense_from: Path | None = None) -> dict[str, Any]:
        """The loop of the algorithm box; what is finished is skipped."""
        if (self.run.path / START).exists():
            self.check_beginning()
        else:
            self.start()
        if self.trains_reference:
            self.train_reference()
        if dense_from is not None and not self.run.finished("round-00"):
            take_dense_round(self, dense_from)
        for k in range(len(self.sparsities)):
            if self.run.finished(f"round-{k:02d}"):
                continue
            begun = time.monotonic()
            masks = self.load_ticket(k).masks
            optimizer_state = self.rewind(k)
            trained = self.train(k, masks, optimizer_state)
            result = self.evaluate(k, masks, trained)
            if k < self.last:
                result["seconds_pruning"] = self.prune(k, masks, result)
            self.finish(k, trained, result, begun)
            del trained  # the optimizer's state, twice the weights: not beside that of the next round
        return self.summarise()

    def start(self) -> None:
        """The run's beginning: its first ticket, θ and γ_0 where no published file has them, the first value."""
        value = self.work.evaluate()[self.work.task.metric] if self.work.network.head_pretrained else None
        if self.on_main and (path := self.theta_path(0)):
            save_tensors(path, self.work.origin.backbone)
        if self.on_main and not self.work.network.head_pretrained:
            save_tensors(self.run.path / HEAD, self.work.origin.head)
        masks = self.pruner.dense()
        if self.sparsities[0] > 0:
            masks = magnitude_prune(self.prunable(), masks, self.sparsities[0], self.pruner)
        self.write_ticket(0, masks, measured=[])
        if self.on_main:
            write_json(self.run.path / START, {"start": value})
        self.work.accelerator.wait_for_everyone()

    def theta_path(self, k: int) -> Path | None:
        """The file that holds round k's θ, where no published file does."""
        if k and self.rewind_step:
            return self.run.path / THETA
        if self.work.random_backbone:
            return (self.run.round(0) if self.rewind_step else self.run.path) / THETA
        return None

    def check_beginning(self) -> None:
        """A run that continues has the weights, head and data that it began with.

        Raises:
            UserError: one of them is another now, or a file that holds one is missing or was changed.
        """
        first, origin = self.load_ticket(0), self.work.origin
        changed = "weights" if first.theta != self.work.theta() else ""
        changed = "data" if first.task["data_id"] != self.work.task.data_id else changed
        head = self.run.path / HEAD
        if not self.work.network.head_pretrained and tensor_hashes(load_tensors(head)[0]) != origin.hashes["head"]:
            changed = "head"
        if changed:
            raise UserError(
                f"{self.run.path} was begun with other {changed} than there are now: put back what it was begun with "
                "(versions of sparseticket and its libraries too), or start anew in another folder with --out."
            )
        newest = max(k for k in range(self.last + 1) if (self.run.round(k) / TICKET).exists())
        wanted, path = self.load_ticket(newest).theta_file, self.theta_path(newest)
        if wanted and not (path and path.is_file() and file_hash(path) == wanted):
            raise UserError(
                f"{path} is missing or is not the θ that this run's tickets name: copy it again, or start anew in "
                "another folder with --out."
            )

    def train_reference(self) -> None:
        """Train the dense network under round 0's names: same head, same order of data."""
        if self.run.finished("dense"):
            return
        begun = time.monotonic()
        self.work.origin.restore(self.work.network)
        trained = self.train_under(self.pruner.dense(), "dense", Round(self.settings.seed, 0))
        metrics = self.work.evaluate()
        if self.on_main:
            self.work.network.save(self.run.path / "dense" / "model")
            value = metrics[self.work.task.metric]
            seconds = time.monotonic() - begun
            self.run.finish("dense", {"value": value, "metrics": metrics, "steps": trained.steps, "seconds": seconds})
            (self.run.path / "dense" / CHECKPOINT).unlink(missing_ok=True)
        self.work.accelerator.wait_for_everyone()

    def rewind(self, k: int) -> dict[str, torch.Tensor] | None:
        """Put every part where the protocol says, and verify it; returns the optimizer's state where that is kept."""
        if k == 0:
            self.work.origin.restore(self.work.network)
            return None
        keeps_weights, keeps_head = self.protocol.rewind == "none", self.protocol.head == "keep"
        self.origin(k).restore(self.work.network, backbone=not keeps_weights, head=not keeps_head)
        return load_carry(self.run.round(k - 1) / CARRY, self.work.network, self.protocol)

    def origin(self, k: int) -> Origin:
        """θ_i and γ_i of round k: the pre-trained state, or after round 0 the one kept at the rewind step."""
        if k == 0 or not self.rewind_step:
            return self.work.origin
        return Origin.from_tensors(load_tensors(self.run.path / THETA)[0], load_tensors(self.run.path / GAMMA)[0])

    def train(self, k: int, masks: Masks, optimizer_state: dict[str, torch.Tensor] | None) -> Trained:
        """Train round k to step t; round 0 keeps θ_i on its way, where the protocol rewinds to a step."""
        place = Round(self.settings.seed, k, start=self.rewind_step if k else 0, optimizer_state=optimizer_state)
        if self.protocol.lr_schedule == "keep":
            place.schedule_offset, place.schedule_rounds = k * self.steps, self.protocol.rounds_in_all()
        if k == 0 and self.rewind_step:
            place.at_step = (self.rewind_step, self.keep_theta)
        return self.train_under(masks, f"round-{k:02d}", place)

    def train_under(self, masks: Masks, part: str, place: Round) -> Trained:
        """Train with checkpoints in the part's folder, shown on screen and logged a hundred times."""
        checkpoint = Checkpoint(self.run.path / part / CHECKPOINT, self.checkpoint_every)
        log_every = max(1, self.steps // 100)
        with self.work.screen.training(f"{part} ({mask_algebra.sparsity(masks):.1%} sparse)") as show:

            def on_step(step: int, total: int, loss: float) -> None:
                show(step, total, loss)
                if self.on_main and (step % log_every == 0 or step == total):
                    self.run.log(part=part, step=step, loss=loss)

            return train(
                self.work.network,
                self.work.task,
                masks,
                self.training,
                place,
                accelerator=self.work.accelerator,
                checkpoint=checkpoint,
                on_step=on_step,
            )

    def keep_theta(self) -> None:
        """Keep θ_i and γ_i, the state at the rewind step."""
        if self.on_main:
            save_tensors(self.run.path / THETA, self.work.network.backbone())
            save_tensors(self.run.path / GAMMA, head_state(self.work.network))
        self.work.accelerator.wait_for_everyone()

    def evaluate(self, k: int, masks: Masks, trained: Trained) -> dict[str, Any]:
        """Measure the trained network; the value belongs to the sparsity that it was trained at."""
        metrics = self.work.evaluate()
        value, sparsity = metrics[self.work.task.metric], mask_algebra.sparsity(masks)
        self.work.screen.say(f"round {k}: {sparsity:.2%} sparse, {self.work.task.metric} {value:.2%}")
        return {
            "round": k,
            "sparsity": sparsity,
            "value": value,
            "metrics": metrics,
            "steps": trained.steps,
            "seconds_training": trained.seconds,
            "seconds_checkpoints": trained.seconds_checkpoints,
        }

    def prune(self, k: int, masks: Masks, result: dict[str, Any]) -> float:
        """Prune round k's network to m_{k+1} and keep that ticket; returns the seconds that it took."""
        begun = time.monotonic()
        pruned = magnitude_prune(self.prunable(), masks, self.sparsities[k + 1], self.pruner)
        self.write_ticket(k + 1, pruned, measured=[*(self.run.metrics(f"round-{j:02d}") for j in range(k)), result])
        return time.monotonic() - begun

    def prunable(self) -> dict[str, torch.nn.Parameter]:
        """The live weights that the protocol prunes."""
        return self.work.prunable(self.protocol)

    def load_ticket(self, k: int) -> Ticket:
        """The ticket of round k: m_k and where it comes from."""
        return Ticket.load(self.run.round(k) / TICKET)

    def write_ticket(self, k: int, masks: Masks, *, measured: list[dict[str, Any]]) -> None:
        """Write m_k with its provenance."""
        self.work.same_on_every_process(masks)
        if not self.on_main:
            return
        rewinds_to_step, theta_path = k > 0 and self.rewind_step > 0, self.theta_path(k)
        task = self.work.task
        head = "pre-trained" if self.work.network.head_pretrained else "fresh"
        Ticket(
            masks=masks,
            model=self.work.spec.name,
            theta=self.origin(k).hashes["backbone"] if rewinds_to_step else self.work.theta(),
            theta_file=file_hash(theta_path) if theta_path else None,
            theta_p=self.work.theta() if rewinds_to_step else None,
            scheduled_sparsity=self.sparsities[k],
            pattern=self.protocol.pattern,
            task={"name": task.name, "metric": task.metric, "data_id": task.data_id, "head": head},
            protocol=asdict(self.protocol),
            training=asdict(self.training),
            round=k,
            seeds={"seed": self.settings.seed},
            metrics={"rounds": [{key: past[key] for key in ("round", "sparsity", "value")} for past in measured]},
            versions=versions(),
        ).save(self.run.round(k) / TICKET)

    def finish(self, k: int, trained: Trained, result: dict[str, Any], begun: float) -> None:
        """Keep the trained network and what the next round carries on with; then the marker."""
        if self.on_main:
            folder = self.run.round(k)
            self.work.network.save(folder / "model")
            if k < self.last:
                save_carry(folder / CARRY, self.work.network, trained.optimizer_state, self.protocol)
            self.run.finish(folder.name, {**result, "seconds": time.monotonic() - begun})
            (folder / CHECKPOINT).unlink(missing_ok=True)
            if k:
                (self.run.round(k - 1) / CARRY).unlink(missing_ok=True)
        self.work.accelerator.wait_for_everyone()

    def summarise(self) -> dict[str, Any]:
        """Write summary.json: what was found, as fractions."""
        rounds = [self.run.metrics(f"round-{k:02d}") for k in range(len(self.sparsities))]
        dense = rounds[0]["value"] if self.sparsities[0] == 0 else None
        if self.trains_reference:
            dense = self.run.metrics("dense")["value"]
        summary = {
            "model": self.settings.model,
            "task": self.settings.task,
            "metric": self.work.task.metric,
            "start": read_json(self.run.path / START)["start"],
            "dense": dense,
            "rounds": [{key: past[key] for key in ("round", "sparsity", "value", "seconds")} for past in rounds],
            "ticket": f"{self.run.round(self.last).name}/{TICKET}",
        }
        if self.on_main and not (self.run.path / SUMMARY).exists():
            write_json(self.run.path / SUMMARY, summary)
        self.work.accelerator.wait_for_everyone()  # whoever asks next whether it is there hears the same
        return summary
