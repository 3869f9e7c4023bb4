"""What a transfer is, and how what a user left out is filled in: from the ticket and its run, or from a recipe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparseticket.controls import check_control, control_of
from sparseticket.data_places import recorded
from sparseticket.errors import UserError
from sparseticket.models import resolve
from sparseticket.recipes import task_defaults
from sparseticket.runs import SETTINGS, THETA, TICKET, read_settings
from sparseticket.settings import RANDOM, RunSettings, Training, from_table
from sparseticket.theta import file_hash
from sparseticket.ticket import Ticket

TRANSFER_SETTINGS = "transfer.toml"


@dataclass(frozen=True)
class TransferSettings:
    """What a transfer is: which ticket on which task, how it is trained, and what it is compared with."""

    ticket: str  # identity
    model: str
    task: str
    data: str
    weights: str
    dense_weights: str  # θ_p of the dense arm: other than the ticket's θ where that is a later state of its run
    start: str  # where the ticket's trainings begin, where its run rewound to a step: 5%, 1ep, 500it
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
    check_weights(weights)
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
    own_weights, dense_weights = _beginnings(
        ticket, ticket_path, found, weights, allow_other_weights=allow_other_weights
    )
    settings = TransferSettings(
        ticket=ticket.identity,
        model=found.model if found else ticket.model,
        task=task,
        data=recorded(data) if data else (found.data if found and own_task else ""),
        weights=own_weights,
        dense_weights=dense_weights,
        start=_rewind_step(ticket) if own_task else "",
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


def check_weights(weights: Path | None) -> None:
    """Refuse ``--weights`` of no file, and ``random``, which a search takes: each seed would draw another θ."""
    if str(weights) == RANDOM:
        raise UserError(
            "--weights random: a ticket begins at its own weights. The control random-weights trains its mask on "
            "random ones."
        )
    if weights is not None and not weights.is_file():
        raise UserError(f"there is no file {weights}: give the weights' file with --weights.")


def own_theta(ticket: Ticket, path: Path) -> Path | None:
    """``theta.safetensors`` of a ticket whose θ is a state of its run: beside the ticket or in the run's folder."""
    if ticket.theta_file is None:
        return None
    for folder in (path.resolve().parent, path.resolve().parent.parent):
        candidate = folder / THETA
        if candidate.is_file() and file_hash(candidate) == ticket.theta_file:
            return candidate
    return None


def begins_elsewhere(ticket: Ticket) -> bool:
    """Whether dense networks beside a ticket begin with weights other than θ: θ_p, or those of a control's source."""
    changed = ticket.control is not None and control_of(ticket.control).weights is not None
    return changed or bool(_rewind_step(ticket)) or ticket.theta_p is not None


def _rewind_step(ticket: Ticket) -> str:
    """Where its run rewound to: 5%, 1ep, 500it; "" where that was no later state than its beginning."""
    rewound = str(ticket.protocol.get("rewind", "theta_p"))
    return rewound if ticket.round and rewound not in ("theta_p", "none") else ""


def _beginnings(
    ticket: Ticket, path: Path, found: RunSettings | None, weights: Path | None, *, allow_other_weights: bool
) -> tuple[str, str]:
    """The files of the weights with which the ticket and dense networks begin; "" is the model's own.

    ``weights`` is the ticket's file. If that lies beside the ticket already, and dense networks begin with another,
    ``weights`` is theirs.
    """
    kept = own_theta(ticket, path)
    if ticket.theta_file and not (kept or weights or allow_other_weights):
        raise UserError(
            f"the weights that this ticket belongs to are in no published file, but in the {THETA} of its run, which "
            "is missing beside it or not the one that it names: copy that file into the ticket's folder, give it "
            "with --weights FILE, or use the model's own weights with --allow-other-weights."
        )
    own = str(weights.resolve() if weights else kept or (found.weights if found else ""))
    if not begins_elsewhere(ticket):
        return own, own
    if allow_other_weights:
        return own, _theta_p(ticket, path, found)
    tells = found is None or ticket.theta_p is not None  # or the run alone knows, whatever is given
    if weights and kept and tells and file_hash(weights) != ticket.theta_file:
        return str(kept), own
    if found is None and ticket.theta_p is None:
        raise UserError(
            "this ticket does not say which weights dense networks beside it begin with, as tickets do today: use it "
            f"where it was written, or give that file with --weights FILE, the ticket's own {THETA} beside it."
        )
    return own, _theta_p(ticket, path, found)


def _theta_p(ticket: Ticket, path: Path, found: RunSettings | None) -> str:
    if found is None:
        return ""
    run = path.resolve().parent.parent
    drawn = (run / "round-00" if _rewind_step(ticket) else run) / THETA  # of a run that began with random weights
    return str(drawn) if drawn.is_file() else found.weights
