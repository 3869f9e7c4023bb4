"""Which model folder a SOURCE on the command line means: a run, a round, a ticket in its round, or a model folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sparseticket.errors import UserError
from sparseticket.runs import TICKET

WHAT_A_SOURCE_IS = (
    "A SOURCE is one of: a run folder that `sparseticket find` wrote, one of its round folders, an arm of "
    "a transfer (ticket-seed0), the ticket inside one of these, or a model folder (config.json or model.json beside "
    "model.safetensors)."
)


@dataclass(frozen=True)
class Source:
    """A trained model on disk.

    Attributes:
        model: the folder that holds the model.
        home: the folder the user means by it (the run, the round, the model folder itself); exports go in here.
        label: how reports call it: the names of a few folders, never a path of this machine.
        ticket: the ticket file that the user named, or the one beside the model.
    """

    model: Path
    home: Path
    label: str
    ticket: Path | None = None


def is_model_folder(folder: Path) -> bool:
    """True where ``folder`` holds safetensors weights and the description that goes with them."""
    described = (folder / "config.json").is_file() or (folder / "model.json").is_file()
    return described and bool(list(folder.glob("model*.safetensors")))


def resolve(source: Path | None, *, runs: Path = Path("runs")) -> Source:
    """Find the model that ``source`` means; None is the newest finished run in ``runs``.

    Raises:
        UserError: there is no such file, or it is none of the things a SOURCE can be, or it is not finished.
    """
    if source is None:
        return _from_run(_newest_finished_run(runs))
    source = source.absolute()
    if not source.exists():
        raise UserError(f"there is no {source}. {WHAT_A_SOURCE_IS}")
    if source.is_file():
        return _from_ticket(source)
    if is_model_folder(source):
        return Source(source, source, source.name)
    if (source / "model").is_dir():
        return _from_round(source)
    if _rounds(source) or (source / "run.toml").is_file() or (source / "summary.json").is_file():
        return _from_run(source)
    if list(source.glob("*.pt2")):
        raise UserError(f"{source} holds a program (.pt2), which PyTorch runs and this does not read: name its SOURCE.")
    raise UserError(f"{source} holds no model that can be read. {WHAT_A_SOURCE_IS}")


def _from_run(run: Path) -> Source:
    finished = [folder for folder in _rounds(run) if (folder / "done").is_file()]
    if not finished:
        raise UserError(
            f"no round in {run} is finished yet: run `sparseticket find` again to continue it, then export."
        )
    found = _from_round(finished[-1])
    return replace(found, home=run)


def _from_round(folder: Path) -> Source:
    model = folder / "model"
    if not (folder / "done").is_file():
        raise UserError(f"{folder} is not finished: run `sparseticket find` again to continue it, then export.")
    if not is_model_folder(model):
        raise UserError(f"{model} should hold the round's trained model and does not. {WHAT_A_SOURCE_IS}")
    ticket = folder / TICKET
    label = f"{folder.parent.name}/{folder.name}/model"
    return Source(model, folder, label, ticket if ticket.is_file() else None)


def _from_ticket(file: Path) -> Source:
    if file.suffix == ".ticket" and (file.parent / "model").is_dir():
        return replace(_from_round(file.parent), ticket=file)
    if file.suffix == ".ticket":
        raise UserError(
            f"{file.name} holds masks and no trained weights, and there is no model/ folder beside it: "
            f"train it (`sparseticket transfer`), or name the run it came from. {WHAT_A_SOURCE_IS}"
        )
    raise UserError(f"{file} is a file, and not a ticket. {WHAT_A_SOURCE_IS}")


def _rounds(run: Path) -> list[Path]:
    folders = [folder for folder in run.glob("round-*") if folder.is_dir() and folder.name[6:].isdigit()]
    return sorted(folders, key=lambda folder: int(folder.name[6:]))


def _newest_finished_run(runs: Path) -> Path:
    finished = [file for file in runs.glob("*/summary.json") if _rounds(file.parent)]
    if not finished:
        raise UserError(f"no SOURCE was named, and there is no finished run in {runs.absolute()}. {WHAT_A_SOURCE_IS}")
    return max(finished, key=lambda file: file.stat().st_mtime).parent.absolute()
