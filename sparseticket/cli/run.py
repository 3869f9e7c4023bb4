"""``sparseticket run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from sparseticket.cli.transfer import SIDE_BY_SIDE


def run(
    recipe: Annotated[str, Argument(help="A name of `sparseticket recipes ls`, or a .toml file.")],
    data: Annotated[Path | None, Option(help="The task's data, or a folder that holds those of several.")] = None,
    weights: Annotated[
        list[str] | None,
        Option(help="File of the pre-trained weights, or NAME=FILE where steps name theirs; repeatable."),
    ] = None,
    model: Annotated[str | None, Option(help="Another model than the recipe's.")] = None,
    seeds: Annotated[int | None, Option(min=1, help="Runs of each arm, instead of the recipe's.")] = None,
    precision: Annotated[
        str | None, Option(help="Of every training, instead of the recipe's: no, fp16 or bf16.")
    ] = None,
    out: Annotated[Path | None, Option(help="Folder. Default: runs/RECIPE.")] = None,
    side_by_side: Annotated[bool, Option("--side-by-side", help=SIDE_BY_SIDE)] = False,
) -> None:
    """Run a whole recipe: find, then transfer where it says so; or all its steps. Run again to continue."""
    from sparseticket.data_places import places
    from sparseticket.progress import Screen
    from sparseticket.recipes import check_names, load_any
    from sparseticket.recipes.runner import run_recipe
    from sparseticket.team import team_of

    asked = load_any(recipe).instead(model=model, seeds=seeds, precision=precision)
    check_names(asked)
    own, by_name = places(weights or (), option="--weights", example="simclr")
    team = team_of(side_by_side)
    screen = Screen(quiet=not team.main)
    run_recipe(asked, data=data, weights=own, weights_by_name=by_name, out=out, screen=screen, team=team)
