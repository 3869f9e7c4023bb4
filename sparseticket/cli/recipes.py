"""``sparseticket recipes ls|show|copy|check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument

app = typer.Typer(help="List, show, copy and check recipes: both papers' settings.", no_args_is_help=True)


@app.command("ls")
def ls() -> None:
    """List the recipes, one whole name a line."""
    from sparseticket.recipes import names

    for name in names():
        print(name)


@app.command("show")
def show(recipe: Annotated[str, Argument(help="A name of `recipes ls`, or a .toml file.")]) -> None:
    """Print a recipe as it stands."""
    from sparseticket.recipes import text_of

    print(text_of(recipe), end="")


@app.command("copy")
def copy(
    recipe: Annotated[str, Argument(help="A name of `recipes ls`.")],
    to: Annotated[Path, Argument(help="A new .toml file of your own.")],
) -> None:
    """Copy a recipe to a file, to change it there."""
    from sparseticket.recipes import copy_to

    copy_to(recipe, to)
    print(f"copied to {to}")


@app.command("check")
def check(recipe: Annotated[str, Argument(help="A name of `recipes ls`, or a .toml file.")]) -> None:
    """Check a recipe: its tables, settings, model and task."""
    from sparseticket.recipes import check_names, load_any

    check_names(load_any(recipe))
    print(f"{recipe}: fine")
