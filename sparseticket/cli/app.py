"""The verbs, in the order in which they are used."""

from __future__ import annotations

import typer

from sparseticket import __version__
from sparseticket.cli import (
    bench,
    compare,
    control,
    convert,
    env,
    export,
    find,
    import_masks,
    inspect,
    matrix,
    recipes,
    run,
    transfer,
    tune_kernels,
)

app = typer.Typer(
    help="Find lottery tickets in pre-trained models, train and transfer them, and ship them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"sparseticket {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    debug: bool = typer.Option(False, "--debug", help="Show a traceback with an error."),
) -> None:
    """Find lottery tickets in pre-trained models, train and transfer them, and ship them."""


app.command("find")(find.find)
app.command("transfer")(transfer.transfer)
app.command("matrix")(matrix.matrix)
app.command("control")(control.control)
app.command("compare")(compare.compare)
app.command("inspect")(inspect.inspect)
app.command("import")(import_masks.import_masks)
app.command("convert")(convert.convert)
app.command("export")(export.export)
app.command("bench")(bench.bench)
app.add_typer(recipes.app, name="recipes")
app.command("run")(run.run)
app.command("tune-kernels")(tune_kernels.tune_kernels)
app.command("env")(env.env)
