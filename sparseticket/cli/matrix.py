"""``sparseticket matrix``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from sparseticket.cli.training import BatchSize, CheckpointEvery, Kernels, Lr, MaxLength, Precision, RoundLength
from sparseticket.cli.transfer import SIDE_BY_SIDE


def matrix(
    tickets: Annotated[list[Path], Argument(help="Ticket files: the rows.")],
    task: Annotated[list[str], Option(help="A column. May be given several times.")],
    seeds: Annotated[int, Option(help="Runs of each arm: 3 is seeds 0, 1, 2.")] = 3,
    control: Annotated[list[str] | None, Option(help="Another arm in every cell, as in transfer.")] = None,
    round_length: RoundLength = None,
    batch_size: BatchSize = None,
    lr: Lr = None,
    max_length: MaxLength = None,
    precision: Precision = None,
    kernels: Kernels = None,
    weights: Annotated[
        Path | None,
        Option(help="File of the pre-trained weights. Default: that of the tickets' runs, or the model's."),
    ] = None,
    data: Annotated[
        list[str] | None, Option(help="Folder with a folder a task (SST-2, CoLA, squad, …), or TASK=PATH, repeated.")
    ] = None,
    out: Annotated[Path, Option(help="Folder. Cells that it has are not trained again.")] = Path("runs/matrix"),
    side_by_side: Annotated[bool, Option("--side-by-side", help=SIDE_BY_SIDE)] = False,
    checkpoint_every: CheckpointEvery = 300.0,
) -> None:
    """Train every ticket on every task: table, heat map, both readings. Run again to continue, or to add some."""
    from sparseticket.data_places import places
    from sparseticket.matrix import Asked, name_rows
    from sparseticket.matrix import matrix as train_cells
    from sparseticket.options import given
    from sparseticket.progress import Screen
    from sparseticket.show import show_matrix
    from sparseticket.tasks import check_options
    from sparseticket.team import team_of

    team = team_of(side_by_side)
    root, by_task = places(data or ())
    training = given(
        {
            "round_length": round_length,
            "batch_size": batch_size,
            "lr": lr,
            "max_length": max_length,
            "precision": precision,
            "kernels": kernels,
        }
    )
    for column in task:
        check_options(column, training)
    asked = Asked(name_rows(tickets), task, seeds, tuple(control or ()), root, by_task, weights, training)
    screen = Screen(quiet=not team.main)
    show_matrix(screen, train_cells(asked, out, screen=screen, checkpoint_every=checkpoint_every, team=team), out)
