"""Train a ticket on a task beside dense networks and controls that share its seeds, and say whether it matches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparseticket import masks as mask_algebra
from sparseticket.checkpoint import Checkpoint, check_interval
from sparseticket.controls import Control, control_of
from sparseticket.errors import UserError
from sparseticket.files import write_json
from sparseticket.finished_arms import part_of, take_finished
from sparseticket.masks import Masks
from sparseticket.models.base import POOLER
from sparseticket.on_kernels import say_where_not
from sparseticket.permute import check_fits
from sparseticket.progress import Screen
from sparseticket.pruning import Pruner
from sparseticket.runs import CHECKPOINT, FINISHED, TICKET, RunFolder
from sparseticket.settings import Rewind
from sparseticket.tasks import TaskOptions
from sparseticket.team import ALONE, Team
from sparseticket.ticket import Ticket
from sparseticket.training import Round, make_accelerator, total_steps, train
from sparseticket.transfer_plan import TRANSFER_SETTINGS, TransferSettings
from sparseticket.verdict import Arm, Verdict, judge
from sparseticket.workbench import Workbench

if TYPE_CHECKING:
    from accelerate import Accelerator


def transfer(
    ticket: Ticket,
    settings: TransferSettings,
    out: Path,
    *,
    screen: Screen,
    checkpoint_every: float = 300.0,
    others: Sequence[Path] = (),
    team: Team = ALONE,
) -> dict[str, Any]:
    """Train every arm with every seed, resuming what is there; returns (and leaves) ``transfer.json``.

    What a transfer in one of the folders ``others`` has finished under the same settings is taken from there. The
    processes of a ``team`` share the arms and seeds.
    """
    check_interval(checkpoint_every)
    accelerator = make_accelerator(settings.training.precision)
    screen.console.quiet |= not accelerator.is_main_process
    say_where_not(screen, settings.training, accelerator.device)
    screen.expect(len(settings.arms) * settings.seeds, shorter="fewer --seeds, or a smaller --round-length")
    run = RunFolder(out)

    def open_folder() -> None:
        with accelerator.main_process_first():
            team.once(f"open {out}", lambda: RunFolder.open(out, asdict(settings), what=TRANSFER_SETTINGS))
            team.once(f"take from others to {out}", lambda: take_finished(run, settings, others))
        accelerator.wait_for_everyone()

    was_finished = all(run.finished(part_of(arm, seed)) for arm in settings.arms for seed in range(settings.seeds))
    if others:
        open_folder()  # what can be taken needs no network to be built
    for seed in range(settings.seeds):
        work = None
        for arm in settings.arms:
            part = part_of(arm, seed)
            if run.finished(part) or not team.takes(f"{out}/{part}"):
                continue
            if work is None:
                work = _build(settings, settings.weights, seed, accelerator, screen)
                masks, pruner = fit(ticket, work, allow_other_weights=settings.allow_other_weights)
                dense = _dense(ticket, work, settings, seed)
                for control in settings.controls:
                    control_of(control).check(masks, pruner, work.network)
                open_folder()  # only now: what does not fit is refused before anything is written
                _check_data(run, settings, work.task.data_id)
            own = (dense if arm == "dense" else work).copy()
            arm_masks = _set_up(arm, own, ticket, masks, pruner, seed)
            _train_arm(arm, seed, arm_masks, ticket, own, settings, run, checkpoint_every)
    open_folder()
    if was_finished:
        screen.note(FINISHED.format(out))
    team.wait(f"the end of {out}")
    return _summarise(settings, run, ticket, main=accelerator.is_main_process)


def _check_data(run: RunFolder, settings: TransferSettings, data_id: str) -> None:
    """Refuse to put runs on other data beside what is finished, or was taken from another transfer."""
    for part in (part_of(arm, seed) for arm in settings.arms for seed in range(settings.seeds)):
        if run.finished(part) and run.metrics(part).get("data_id", data_id) != data_id:
            raise UserError(
                f"the data of {settings.task} have changed since {run.path / part} was trained: what is trained now "
                "would not compare with it. Bring the data back, or take another --out."
            )


def _build(settings: TransferSettings, weights: str, seed: int, accelerator: Accelerator, screen: Screen) -> Workbench:
    options = TaskOptions.of(settings.training, settings.data)
    return Workbench.build(
        settings.model,
        settings.task,
        options,
        seed=seed,
        weights=_path(weights),
        accelerator=accelerator,
        screen=screen,
    )


def _dense(ticket: Ticket, work: Workbench, settings: TransferSettings, seed: int) -> Workbench:
    """What the dense arm begins with, checked: the ticket's weights, or those that it names."""
    if settings.dense_weights == settings.weights:
        dense = work
    else:
        dense = _build(settings, settings.dense_weights, seed, work.accelerator, work.screen)
        work.take_head(dense)  # one may have come with θ_p, and all arms of a seed share theirs
    if not settings.allow_other_weights:
        ticket.check_theta_p(dense.theta())
    return dense


def fit(ticket: Ticket, work: Workbench, *, allow_other_weights: bool = False) -> tuple[Masks, Pruner]:
    """The ticket's masks for this network and its pattern laid over it, after checking that both are of the same θ.

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
    pruner = Pruner.of(ticket.pattern, work.network.backbone_module, mask_algebra.counted(masks))
    pruner.check(masks)
    check_fits(work.network, ticket.permutations)
    if allow_other_weights:
        work.screen.note("the weights are not checked against the ticket's (--allow-other-weights).")
        return masks, pruner
    lacking = ticket.check_theta(theta)
    if lacking:
        shown = ", ".join(lacking[:4]) + (f" and {len(lacking) - 4} more" if len(lacking) > 4 else "")
        work.screen.note(f"in one of ticket and network only: {shown}.")
    return masks, pruner


def _set_up(arm: str, work: Workbench, ticket: Ticket, masks: Masks, pruner: Pruner, seed: int) -> Masks:
    """Put the arm's weights into its own copy of the network, permuted as the ticket is; returns its masks."""
    if arm == "dense":
        return {name: mask.new_ones(mask.shape) for name, mask in masks.items()}
    control = Control() if arm == "ticket" else control_of(arm)
    if control.weights:
        work.begin_at(control.weights(work.network, work.theta().keys(), seed))
    work.permute(ticket.permutations)
    return control.masks(masks, pruner, work.network.backbone(), seed) if control.masks else masks


def _train_arm(
    arm: str,
    seed: int,
    masks: Masks,
    ticket: Ticket,
    work: Workbench,
    settings: TransferSettings,
    run: RunFolder,
    every: float,
) -> None:
    part = part_of(arm, seed)
    work.same_on_every_process(masks)
    work.origin.restore(work.network)
    start = Rewind(settings.start).step(*total_steps(work.task, settings.training)) if settings.start else 0
    place = Round(seed, 0, start=0 if arm == "dense" else start)  # dense networks train from θ_p, all the way
    checkpoint = Checkpoint(run.path / part / CHECKPOINT, every)
    begun = time.monotonic()
    with work.screen.training(part) as on_step:
        train(
            work.network,
            work.task,
            masks,
            settings.training,
            place,
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
            if arm == "ticket":  # beside its model, as in a round: an export says what it was made of
                ticket.save(run.path / part / TICKET)
        run.finish(
            part,
            {
                "task": settings.task,
                "metric": work.task.metric,
                "data_id": work.task.data_id,
                "value": value,
                "metrics": metrics,
                "max_length": settings.training.max_length,
                "sparsity": mask_algebra.sparsity(masks),
                "seconds": time.monotonic() - begun,
            },
        )
        checkpoint.path.unlink(missing_ok=True)
    work.accelerator.wait_for_everyone()


def _summarise(settings: TransferSettings, run: RunFolder, ticket: Ticket, *, main: bool) -> dict[str, Any]:
    results = {arm: [run.metrics(part_of(arm, seed)) for seed in range(settings.seeds)] for arm in settings.arms}
    arms = {arm: Arm([result["value"] for result in of_arm]) for arm, of_arm in results.items()}
    verdicts = {arm: _verdict(arm, arms, ticket, settings) for arm in arms if arm != "dense"}
    summary = {
        "model": settings.model,
        "task": settings.task,
        "metric": results["dense"][0]["metric"],
        "ticket": ticket.identity,
        "sparsity": results["ticket"][0]["sparsity"],
        "seeds": list(range(settings.seeds)),
        "arms": {name: arm.table() | _every_metric(results[name]) for name, arm in arms.items()},
        **verdicts["ticket"].table(),
        "verdicts": {arm: verdict.table() for arm, verdict in verdicts.items()},
        "differences": {arm: _difference(arms["ticket"], arms[arm]).table() for arm in settings.controls},
    }
    if settings.allow_other_weights:
        summary["allow_other_weights"] = True
    if main:
        write_json(run.path / "transfer.json", summary)
    return summary


def _every_metric(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Where a task has several (AP50 beside AP), what each run has of each."""
    names = runs[0]["metrics"]
    return {"metrics": {name: [run["metrics"][name] for run in runs] for name in names}} if len(names) > 1 else {}


def _difference(ticket: Arm, control: Arm) -> Arm:
    """Ticket minus control, seed by seed: both share its head and batches, so what these scatter alike cancels."""
    return Arm([ours - theirs for ours, theirs in zip(ticket.values, control.values, strict=True)])


def _verdict(arm: str, arms: dict[str, Arm], ticket: Ticket, settings: TransferSettings) -> Verdict:
    """The ticket can be winning where it began with pre-trained weights; a control never: nobody found it."""
    if arm != "ticket" or ticket.control is not None:
        return judge(arms[arm], arms["dense"])
    published = ticket.theta_file is None  # a state of its run is random, or of a later step
    at_theta_p = published and not settings.start and not settings.allow_other_weights
    return judge(arms[arm], arms["dense"], at_theta_p=at_theta_p)


def _path(text: str) -> Path | None:
    return Path(text) if text else None
