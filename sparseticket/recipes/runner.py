"""Run a whole recipe: find, then transfer where it says so; what is finished is skipped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparseticket.errors import UserError
from sparseticket.imp import find
from sparseticket.options import default_recipe_folder
from sparseticket.progress import Screen
from sparseticket.recipes import Recipe
from sparseticket.recipes.study import Study
from sparseticket.recipes.study_runner import run_study
from sparseticket.runs import TICKET, RunFolder
from sparseticket.show import show_beside_paper, show_find, show_transfer
from sparseticket.team import ALONE, Team
from sparseticket.transfer import transfer
from sparseticket.transfer_plan import plan


def run_recipe(
    recipe: Recipe | Study,
    *,
    data: Path | None,
    weights: Path | None,
    out: Path | None,
    screen: Screen,
    weights_by_name: Mapping[str, Path] | None = None,
    team: Team = ALONE,
) -> dict[str, Any]:
    """Run it into ``out`` (default ``runs/RECIPE``), shared by a ``team``; returns what each part summarised.

    ``weights_by_name`` are those of a study's steps that name theirs, ``weights`` those of all others.
    """
    folder = out or default_recipe_folder(recipe.name)
    by_name = weights_by_name or {}
    if isinstance(recipe, Study):
        return run_study(recipe, folder, data=data, weights=weights, by_name=by_name, screen=screen, team=team)
    if by_name:
        raise UserError(f"recipe {recipe.name} has one network: give its weights as --weights FILE, without a name.")
    settings = replace(
        recipe.settings,
        data=str(data or recipe.settings.data),
        weights=str(weights or recipe.settings.weights),
    ).whole()
    screen.say(f"{recipe.title} ({recipe.name})")
    found = team.once("find", lambda: find(settings, folder, screen=screen)) or find(settings, folder, screen=screen)
    show_find(screen, found, folder)
    if recipe.transfer is None:
        return {"find": found}
    number = range(len(found["rounds"]))[recipe.transfer.round]
    ticket = RunFolder(folder).round(number) / TICKET
    loaded, settings, beside = plan(ticket, seeds=recipe.transfer.seeds, controls=tuple(recipe.transfer.controls))
    transferred = transfer(loaded, settings, beside, screen=screen, team=team)
    show_transfer(screen, transferred, beside)
    if recipe.transfer.paper:
        ours = {arm: entry["mean"] for arm, entry in transferred["arms"].items()}
        show_beside_paper(screen, f"{transferred['metric']}, %", ours, recipe.transfer.paper)
    return {"find": found, "transfer": transferred}
