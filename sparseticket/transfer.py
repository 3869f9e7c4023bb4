"""Train a ticket on a task beside dense networks and controls that share its seeds, and say whether it matches."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sparseticket import masks as mask_algebra
from sparseticket.checkpoint import Checkpoint, check_interval
from sparseticket.controls import CONTROLS, check_control
from sparseticket.errors import UserError
from sparseticket.files import write_json
from sparseticket.masks import Masks
from sparseticket.models import resolve
from sparseticket.progress import Screen
from sparseticket.recipes import task_defaults
from sparseticket.runs import SETTINGS, THETA, TICKET, RunFolder, read_settings
from sparseticket.settings import Training, from_table
from sparseticket.tasks import TaskOptions
from sparseticket.theta import file_hash
from sparseticket.ticket import POOLER, Ticket
from sparseticket.training import Round, make_accelerator, train
from sparseticket.verdict import Arm, judge
from sparseticket.workbench import Workbench


@dataclass(frozen=True)
class TransferSettings:
    """What a transfer is: which ticket on which task, how it is trained, and what it is compared with."""

    ticket: str  # identity
    model: str
    task: str
    data: str
    weights: str
    seeds: int
    controls: list[str]
    allow_other_weights: bool
    training: Training

    @property
    def arms(self) -> list[str]:
        """Dense first: it is the measure."""
        return ["dense", "ticket", *self.controls]


def plan(
    ticket_path: Path,
    *,
    task: str | None = None,
    data: Path | None = None,
    weights: Path | None = None,
    seeds: int = 3,
    controls: tuple[str, ...] = (),
    allow_other_weights: bool = False,
    training: dict[str, Any] | None = None,
) -> tuple[Ticket, TransferSettings, Path]:
    """Fill in what was left out: from the ticket and its run on its own task, from the recipe on another.

    Returns the ticket, the settings and the default folder: beside the run that the ticket came from.
    """
    ticket = Ticket.load(ticket_path)
    if seeds < 1:
        raise UserError(f"--seeds is how many runs each arm has, from 1, not {seeds}.")
    run = ticket_path.resolve().parent.parent
    found = read_settings(run / SETTINGS) if (run / SETTINGS).is_file() else None
    own_task = task is None or task == ticket.task.get("name")
    task = task or ticket.task.get("name")
    if task is None:
        raise UserError("this ticket does not say on which task it was found: name one with --task.")
    if own_task and ticket.training:
        base = from_table(Training, ticket.training, where=f"the training in {ticket_path}")
    else:
        base = task_defaults(task).training
    kept_theta = _own_theta(ticket, ticket_path)
    if ticket.theta_file and not (kept_theta or weights or allow_other_weights):
        raise UserError(
            f"the weights that this ticket belongs to are in no published file, but in the {THETA} of its run, which "
            "is missing beside it or not the one that it names: copy that file into the ticket's folder, give it "
            "with --weights FILE, or use the model's own weights with --allow-other-weights."
        )
    settings = TransferSettings(
        ticket=ticket.identity,
        model=found.model if found else ticket.model,
        task=task,
        data=str(data.resolve()) if data else (found.data if found and own_task else ""),
        weights=str(weights.resolve()) if weights else str(kept_theta or (found.weights if found else "")),
        seeds=seeds,
        controls=[check_control(control) for control in controls],
        allow_other_weights=allow_other_weights,
        training=replace(base, **(training or {})),
    )
    try:
        resolve(settings.model)
    except UserError as error:
        raise UserError(
            f"{error}\nThis is what the ticket says of its model. Where that was a folder, use the ticket where its "
            f"run left it, as RUN/round-NN/{TICKET} beside RUN/{SETTINGS}."
        ) from error
    folder = run if found else ticket_path.resolve().parent
    return ticket, settings, folder / f"transfer-{task}-{ticket.identity[:8]}"


def transfer(
    ticket: Ticket, settings: TransferSettings, out: Path, *, screen: Screen, checkpoint_every: float = 300.0
) -> dict[str, Any]:
    """Train every arm with every seed, resuming what is there; returns (and leaves) ``transfer.json``."""
    check_interval(checkpoint_every)
    accelerator = make_accelerator(settings.training.precision)
    screen.console.quiet |= not accelerator.is_main_process
    screen.trainings = len(settings.arms) * settings.seeds
    run = RunFolder(out)

    def open_folder() -> None:
        with accelerator.main_process_first():
            RunFolder.open(out, asdict(settings), what="transfer.toml")
        accelerator.wait_for_everyone()

    for seed in range(settings.seeds):
        missing = [arm for arm in settings.arms if not run.finished(f"{arm}-seed{seed}")]
        if not missing:
            continue
        options = TaskOptions(_path(settings.data), settings.training.batch_size, settings.training.max_length)
        work = Workbench.build(
            settings.model,
            settings.task,
            options,
            seed=seed,
            weights=_path(settings.weights),
            accelerator=accelerator,
            screen=screen,
        )
        masks = fit(ticket, work, allow_other_weights=settings.allow_other_weights)
        open_folder()  # only now: what does not fit is refused before anything is written
        for arm in missing:
            _train_arm(arm, seed, _arm_masks(arm, masks, seed), work, settings, run, checkpoint_every)
    open_folder()
    return _summarise(settings, run, ticket, main=accelerator.is_main_process)


def fit(ticket: Ticket, work: Workbench, *, allow_other_weights: bool = False) -> Masks:
    """The ticket's masks for this network, after checking that both are of the same θ.

    A pooler that the network lacks is left out, and said; everything else must be there.
    """
    backbone, theta = work.network.backbone(), work.theta()
    masks = {name: mask for name, mask in ticket.masks.items() if name in theta or not name.startswith(POOLER)}
    for name, mask in masks.items():
        if name not in backbone:
            raise UserError(
                f"this ticket is of {ticket.model!r} and prunes {name}, which {work.spec.name!r} does not have: "
                f"use it with {ticket.model!r}."
            )
        if backbone[name].shape != mask.shape:
            raise UserError(
                f"this ticket is of {ticket.model!r}: its {name} is {tuple(mask.shape)}, and that of "
                f"{work.spec.name!r} is {tuple(backbone[name].shape)}. Use it with {ticket.model!r}."
            )
    if allow_other_weights:
        work.screen.note("the weights are not checked against the ticket's (--allow-other-weights).")
        return masks
    lacking = ticket.check_theta(theta)
    if lacking:
        shown = ", ".join(lacking[:4]) + (f" and {len(lacking) - 4} more" if len(lacking) > 4 else "")
        work.screen.note(f"in one of ticket and network only: {shown}.")
    return masks


def _arm_masks(arm: str, masks: Masks, seed: int) -> Masks:
    if arm == "dense":
        return {name: mask.new_ones(mask.shape) for name, mask in masks.items()}
    return masks if arm == "ticket" else CONTROLS[arm](masks, seed)


def _train_arm(
    arm: str, seed: int, masks: Masks, work: Workbench, settings: TransferSettings, run: RunFolder, every: float
) -> None:
    part = f"{arm}-seed{seed}"
    work.origin.restore(work.network)
    checkpoint = Checkpoint(run.path / part / "checkpoint.safetensors", every)
    begun = time.monotonic()
    with work.screen.training(part) as on_step:
        train(
            work.network,
            work.task,
            masks,
            settings.training,
            Round(seed, 0),
            accelerator=work.accelerator,
            checkpoint=checkpoint,
            on_step=on_step,
        )
    metrics = work.evaluate()
    value = metrics[work.task.metric]
    work.screen.say(f"{part}: {work.task.metric} {value:.2%}")
    if work.accelerator.is_main_process:
        if seed == 0:  # a network of each arm to look at or export; the values of all
            work.network.save(run.path / part / "model")
        run.finish(
            part,
            {
                "metric": work.task.metric,
                "value": value,
                "metrics": metrics,
                "sparsity": mask_algebra.sparsity(masks),
                "seconds": time.monotonic() - begun,
            },
        )
        checkpoint.path.unlink(missing_ok=True)
    work.accelerator.wait_for_everyone()


def _summarise(settings: TransferSettings, run: RunFolder, ticket: Ticket, *, main: bool) -> dict[str, Any]:
    results = {arm: [run.metrics(f"{arm}-seed{seed}") for seed in range(settings.seeds)] for arm in settings.arms}
    arms = {arm: Arm([result["value"] for result in of_arm]) for arm, of_arm in results.items()}
    verdict = judge(arms["ticket"], arms["dense"])
    summary = {
        "model": settings.model,
        "task": settings.task,
        "metric": results["dense"][0]["metric"],
        "ticket": ticket.identity,
        "sparsity": results["ticket"][0]["sparsity"],
        "seeds": list(range(settings.seeds)),
        "arms": {name: arm.table() for name, arm in arms.items()},
        "matching": verdict.matching,
        "strict": verdict.strict,
        "reason": verdict.reason,
    }
    if settings.allow_other_weights:
        summary["allow_other_weights"] = True
    if main:
        write_json(run.path / "transfer.json", summary)
    return summary


def _own_theta(ticket: Ticket, path: Path) -> Path | None:
    """``theta.safetensors`` of a ticket whose θ is a state of its run: beside the ticket or in the run's folder."""
    if ticket.theta_file is None:
        return None
    for folder in (path.resolve().parent, path.resolve().parent.parent):
        candidate = folder / THETA
        if candidate.is_file() and file_hash(candidate) == ticket.theta_file:
            return candidate
    return None


def _path(text: str) -> Path | None:
    return Path(text) if text else None
