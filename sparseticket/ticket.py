"""A ticket = masks + provenance, and its file: safetensors with packed bits and one JSON record, never unpickled."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sparseticket import masks as mask_algebra
from sparseticket.errors import UserError
from sparseticket.files import write_whole
from sparseticket.masks import Masks
from sparseticket.models.base import POOLER, parameters_of
from sparseticket.pattern import Pattern, parse
from sparseticket.permute import is_permutation
from sparseticket.pruning.purity import check_masks

# 1 is unstructured; earlier versions read only that, and would count what dies with a head; 3 names θ_p
FORMATS = (1, 2, 3)
PERMUTATION = "permutation:"  # before the axis' name in the file; the rest of its tensors are masks


@dataclass(frozen=True)
class Ticket:
    """Masks by parameter name inside the backbone, and what says where they come from.

    Masks of one dimension are those of biases and BatchNorm entries that die with a head, a neuron or a channel.

    Attributes:
        masks: bool tensors, True is alive, on the CPU.
        model: alias or hub name of the model.
        theta: SHA-256 of each backbone tensor of the weights that the ticket belongs to.
        theta_file: SHA-256 of ``theta.safetensors``, where θ is a state of the run and no published checkpoint.
        theta_p: as ``theta``, of the weights that dense networks beside it begin with, where they are others: what its
            run began with, or a control was made from. None where they are its θ, and in tickets of before it was kept.
        scheduled_sparsity: the sparsity that the schedule asked for, a fraction.
        pattern: where its zeros may lie, as :mod:`sparseticket.pattern` writes it.
        task: name, metric and ``data_id`` of the task it was found on; whether its ``head`` was pre-trained or fresh.
        protocol: every field of the protocol; training: every setting of the training.
        metrics: what the rounds before this ticket measured, as fractions; ``conversion``: what ticket it was made of.
        permutations: int32 [n] by axis (:mod:`sparseticket.permute`) where regrouping made it. Masks are in permuted
            coordinates then, ``theta`` is not: a network is permuted after its weights were checked.
    """

    masks: Masks
    model: str
    theta: dict[str, str]
    scheduled_sparsity: float
    theta_file: str | None = None
    theta_p: dict[str, str] | None = None
    pattern: str = "unstructured"
    task: dict[str, Any] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    round: int = 0
    seeds: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    permutations: dict[str, Tensor] = field(default_factory=dict)

    @property
    def sparsity(self) -> float:
        """Share of pruned weights over all matrices and filters, 0 to 1."""
        return mask_algebra.sparsity(self.masks)

    def masks_in(self, module: nn.Module) -> Masks:
        """The masks by the names that ``module``'s parameters have, with whatever head; as ``use_kernels`` takes them.

        Raises:
            UserError: ``module`` lacks a parameter that the ticket prunes (a pooler apart), or has another shape of it.
        """
        return {own: self.masks[name] for name, own in parameters_of(module, self.masks).items()}

    @property
    def control(self) -> str | None:
        """The kind of control that this is; None for a ticket that was found."""
        made = self.metrics.get("control")
        return str(made.get("kind", "")) if isinstance(made, dict) else None

    def record(self) -> dict[str, Any]:
        """The JSON record: all but the tensors. Holds no time, host or path."""
        record = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("masks", "permutations")}
        if self.theta_p is None:
            del record["theta_p"]  # so that tickets of before it was kept have the identity that they had
        shapes = {name: list(mask.shape) for name, mask in self.masks.items()}
        return {"format": _format(self), "sparsity": self.sparsity, "shapes": shapes, **record}

    @property
    def identity(self) -> str:
        """SHA-256 over names, shapes, bytes of masks and permutations, and the canonical JSON record."""
        return _identity(self.record(), self._tensors())

    def _tensors(self) -> dict[str, Tensor]:
        masks = {name: mask_algebra.pack(mask) for name, mask in self.masks.items()}
        return masks | {PERMUTATION + axis: order.contiguous() for axis, order in self.permutations.items()}

    def save(self, path: Path) -> None:
        """Write the ticket to ``path``, whole or not at all."""
        packed, record = self._tensors(), self.record()
        # one entry: safetensors writes several in an order that differs from process to process
        metadata = {"sparseticket": _canonical(record | {"identity": _identity(record, packed)})}
        write_whole(path, safetensors.torch.save(packed, metadata))

    @classmethod
    def load(cls, path: Path) -> Ticket:
        """Read and validate a ticket.

        Raises:
            UserError: the file is missing, is no ticket, is of a newer format, or is not as it was written.
        """
        record, packed = _read(path)
        try:
            shapes, permutations = record.pop("shapes"), _permutations(packed)
            if not shapes:
                raise ValueError("it has no masks")
            if shapes.keys() != packed.keys():
                raise ValueError(f"its record and its masks differ: {sorted(shapes.keys() ^ packed.keys())[0]}")
            masks = {name: _unpack(name, packed[name], shape) for name, shape in shapes.items()}
            stated, version = record.pop("sparsity"), record.pop("format")
            ticket = cls(masks=masks, permutations=permutations, **_checked(record))
            if version != _format(ticket):
                raise ValueError(f"format {version} is not that of what it holds")
            check_masks(_canonical_pattern(ticket.pattern), masks)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not a valid ticket: {error}. Make it again, or copy it again.") from error
        if ticket.sparsity != stated:
            raise UserError(f"{path} is not a valid ticket: it says {stated} and its masks have {ticket.sparsity}.")
        return ticket

    def check_theta(self, theta: dict[str, str]) -> list[str]:
        """Check that a network with these hashes is the ticket's own θ.

        Every pruned tensor must be there and agree (a pooler, which some heads do without, may be missing); of the
        others, those that both sides have must agree. Returns what one side lacks.

        Raises:
            UserError: names the first tensor that differs or is missing.
        """
        if name := self._differing(self.theta, theta):
            raise UserError(
                f"this ticket belongs to other weights of {self.model!r}: {name} differs. Give its own weights "
                "with --weights FILE, or use it all the same with --allow-other-weights."
            )
        return sorted(self.theta.keys() ^ theta.keys())

    def check_theta_p(self, theta: dict[str, str]) -> None:
        """Check that a dense network with these hashes begins where one beside this ticket has to, as far as is known.

        Raises:
            UserError: names the first tensor that differs or is missing.
        """
        if self.theta_p is not None and (name := self._differing(self.theta_p, theta)):
            raise UserError(
                f"dense networks beside this ticket begin with the weights of {self.model!r} that "
                f"{'it was made from' if self.control else 'its run began with'}, and these are others: {name} "
                f"differs. Use the ticket where it was written, or give that file with --weights FILE (the ticket's "
                "own theta.safetensors has to lie beside it then)."
            )

    def _differing(self, wanted: dict[str, str], theta: dict[str, str]) -> str | None:
        """The first tensor whose hash differs. Raises if either lacks a pruned one, but ``theta`` may lack a pooler."""
        for name in self.masks:
            if name not in wanted:
                raise UserError(f"this ticket does not say which weights {name} belongs to: make it again.")
            if name not in theta and not name.startswith(POOLER):
                raise UserError(
                    f"this ticket prunes {name} of {self.model!r}, which this network does not have (or not from its "
                    f"pre-trained file): use the ticket with {self.model!r}."
                )
        return next((name for name, digest in wanted.items() if theta.get(name, digest) != digest), None)


def check_ticket_out(out: Path, *inputs: Path) -> None:
    """Refuse to write a ticket over what is read, over a round of a run, or over anything that is no ticket.

    Raises:
        UserError: says what ``--out`` is.
    """
    if any(out.resolve() == path.resolve() for path in inputs):
        raise UserError(f"--out {out} is what is read: name another file.")
    if out.is_dir():
        raise UserError(f"--out {out} is a folder: name a file in it.")
    if any(
        parent.name.startswith("round-") and (parent / "metrics.json").is_file() for parent in out.absolute().parents
    ):
        raise UserError(f"--out {out} lies inside a finished round of a run: name a file outside of it.")
    if out.exists():
        try:
            _read(out)
        except UserError as error:
            raise UserError(f"--out {out} is there already, and is no ticket: name another file.") from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise UserError(f"there is no ticket {path}. A run keeps its tickets as RUN/round-NN/ticket.ticket.")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            packed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a ticket, or it is truncated or damaged ({error}). Copy it again.") from error
    if "sparseticket" not in metadata:
        raise UserError(f"{path} is a safetensors file but not a ticket: it has no sparseticket record.")
    try:
        record = json.loads(metadata["sparseticket"])
        version, stated = record["format"], record.pop("identity", None)
        identity = _identity(record, packed) if version in FORMATS else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not a valid ticket: its record cannot be read. Copy it again.") from error
    if version not in FORMATS:
        raise UserError(
            f"{path} is a ticket of format {version}; this version reads up to {FORMATS[-1]}: update sparseticket."
        )
    if stated != identity:
        raise UserError(f"{path} is damaged: its content does not give its identity hash. Copy it again.")
    return record, packed


def _checked(record: dict[str, Any]) -> dict[str, Any]:
    """The record, when each field is of the type that :class:`Ticket` gives it (it may have been made by hand)."""
    tables = ("theta", "task", "protocol", "training", "seeds", "metrics", "versions")
    kinds = {"model": str, "pattern": str, "round": int, "scheduled_sparsity": float, "theta_file": str | None}
    for name, kind in (kinds | dict.fromkeys(tables, dict)).items():
        if not isinstance(record[name], kind):
            raise ValueError(f"its {name} is {record[name]!r}")
    if not isinstance(record.get("theta_p", {}), dict):
        raise ValueError(f"its theta_p is {record['theta_p']!r}")
    return record


def _format(ticket: Ticket) -> int:
    if ticket.theta_p is not None:
        return 3
    return 1 if ticket.pattern == "unstructured" else 2


def _canonical_pattern(text: str) -> Pattern:
    try:
        pattern = parse(text)
    except UserError as error:
        raise ValueError(str(error)) from error
    if str(pattern) != text:
        raise ValueError(f"its pattern is {text!r}, which is written {pattern}")
    return pattern


def _permutations(packed: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the permutations out of the file's tensors; that they fit a network is checked where it is permuted."""
    names = [name for name in packed if name.startswith(PERMUTATION)]
    found = {name.removeprefix(PERMUTATION): packed.pop(name) for name in names}
    for axis, order in found.items():
        if not is_permutation(order):
            raise ValueError(f"what it holds for {axis} is no permutation")
    return found


def _unpack(name: str, packed: Tensor, shape: list[int]) -> Tensor:
    if not all(isinstance(side, int) and side > 0 for side in shape):
        raise ValueError(f"{name} has the shape {shape}")
    try:
        return mask_algebra.unpack(packed, tuple(shape))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _canonical(record: dict[str, Any]) -> str:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _identity(record: dict[str, Any], packed: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(_canonical(record).encode())
    for name in sorted(packed):
        digest.update(f"|{name}|{tuple(record.get('shapes', {}).get(name, ()))}|".encode())
        digest.update(packed[name].numpy().tobytes())
    return digest.hexdigest()
