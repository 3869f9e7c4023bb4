"""``sparseticket transfer``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from sparseticket.cli.training import (
    BatchSize,
    CheckpointEvery,
    Kernels,
    Lr,
    MaxLength,
    Optimizer,
    Precision,
    RoundLength,
    WeightDecay,
)

SIDE_BY_SIDE = "Under torchrun or accelerate launch: each process trains networks of its own, not a share of a batch."

WEIGHTS = (
    "File of the ticket's θ. Default: that of its run. If θ is a later state that already lies beside the ticket, give "
    "the file of the pre-trained weights, with which dense networks begin."
)


def transfer(
    ticket: Annotated[Path, Argument(help="A ticket file: RUN/round-NN/ticket.ticket.")],
    task: Annotated[str | None, Option(help="Task to train it on. Default: the one it was found on.")] = None,
    seeds: Annotated[int, Option(help="Runs of each arm: 3 is seeds 0, 1, 2.")] = 3,
    control: Annotated[
        list[str] | None, Option(help="Another arm, as `sparseticket control` has them; repeatable.")
    ] = None,
    round_length: RoundLength = None,
    optimizer: Optimizer = None,
    lr: Lr = None,
    batch_size: BatchSize = None,
    max_length: MaxLength = None,
    weight_decay: WeightDecay = None,
    precision: Precision = None,
    kernels: Kernels = None,
    weights: Annotated[Path | None, Option(help=WEIGHTS)] = None,
    allow_other_weights: Annotated[bool, Option(help="Use the ticket with weights that are not its own.")] = False,
    data: Annotated[Path | None, Option(help="File or folder of the task's data.")] = None,
    out: Annotated[Path | None, Option(help="Folder. Default: beside the run that the ticket came from.")] = None,
    side_by_side: Annotated[bool, Option("--side-by-side", help=SIDE_BY_SIDE)] = False,
    checkpoint_every: CheckpointEvery = 300.0,
) -> None:
    """Train dense against ticket over several seeds, and give the verdict. Run again to continue."""
    from sparseticket.options import given
    from sparseticket.progress import Screen
    from sparseticket.show import show_transfer
    from sparseticket.tasks import check_options
    from sparseticket.team import team_of
    from sparseticket.transfer import transfer as train_arms
    from sparseticket.transfer_plan import plan

    team = team_of(side_by_side)
    training = given(
        {
            "round_length": round_length,
            "batch_size": batch_size,
            "max_length": max_length,
            "optimizer": optimizer,
            "lr": lr,
            "weight_decay": weight_decay,
            "precision": precision,
            "kernels": kernels,
        }
    )
    loaded, settings, beside = plan(
        ticket,
        task=task,
        data=data,
        weights=weights,
        seeds=seeds,
        controls=tuple(control or ()),
        allow_other_weights=allow_other_weights,
        training=training,
    )
    check_options(settings.task, training)
    screen, folder = Screen(quiet=not team.main), out or beside
    done = train_arms(loaded, settings, folder, screen=screen, checkpoint_every=checkpoint_every, team=team)
    show_transfer(screen, done, folder)
