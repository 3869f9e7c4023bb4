"""``sparseticket run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from sparseticket.cli.transfer import SIDE_BY_SIDE


def run(
    recipe: Annotated[str, Argument(help="A name of `sparseticket recipes ls`, or a .toml file.")],
    data: Annotated[Path | None, Option(help="The task's data, or a folder that holds those of several.")] = None,
    weights: Annotated[Path | None, Option(help="File of the pre-trained weights.")] = None,
    out: Annotated[Path | None, Option(help="Folder. Default: runs/RECIPE.")] = None,
    side_by_side: Annotated[bool, Option("--side-by-side", help=SIDE_BY_SIDE)] = False,
) -> None:
    """Run a whole recipe: find, then transfer where it says so; or all its steps. Run again to continue."""
    from sparseticket.progress import Screen
    from sparseticket.recipes import load_any
    from sparseticket.recipes.runner import run_recipe
    from sparseticket.team import team_of

    team = team_of(side_by_side)
    run_recipe(load_any(recipe), data=data, weights=weights, out=out, screen=Screen(quiet=not team.main), team=team)
