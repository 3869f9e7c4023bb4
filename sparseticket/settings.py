"""What a run is: model, task, protocol and training; each field named, checked, and in run.toml and in tickets."""

from __future__ import annotations

import math
import re
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_type_hints

from sparseticket.data_places import recorded
from sparseticket.errors import UserError
from sparseticket.pattern import NOfM, parse
from sparseticket.schedule import SNAP, check_sparsity, kind_and_step, round_sparsities

RANDOM = "random"  # instead of a weights file: none, everything is drawn from the seed
POLY_POWER = 0.9  # DeepLab, arXiv 1606.00915, section 4.1


@dataclass(frozen=True)
class Length:
    """A length of training: ``3ep`` (epochs, may be fractional) or ``500it`` (optimizer steps)."""

    value: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> Length:
        """Read ``3ep`` or ``500it``; anything else is a :class:`UserError`."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(ep|it)", str(text).strip())
        if not match or float(match[1]) <= 0 or (match[2] == "it" and not float(match[1]).is_integer()):
            raise UserError(f"{text!r} is not a length: write 3ep for three epochs or 500it for 500 steps.")
        return cls(float(match[1]), match[2])

    def steps(self, steps_per_epoch: int) -> int:
        """The number of optimizer steps, at least 1."""
        return max(1, round(self.value * steps_per_epoch)) if self.unit == "ep" else int(self.value)


@dataclass(frozen=True)
class Rewind:
    """Where weights go back to: ``theta_p``, a point of the training (``5%``, ``1ep``, ``500it``), or ``none``."""

    text: str

    def __post_init__(self) -> None:
        if self.text not in ("theta_p", "none") and not self._share:
            try:
                Length.parse(self.text)
            except UserError as error:
                raise UserError(
                    f"{self.text!r} is nothing to rewind to: write theta_p, a share of the training (5%), "
                    "a length (1ep, 500it), or none for no rewinding."
                ) from error

    @property
    def _share(self) -> float | None:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)%", self.text)
        share = float(match[1]) / 100 if match else None
        return share if share and share < 1 else None

    def step(self, total: int, steps_per_epoch: int) -> int:
        """The step that is rewound to: 0 for θ_p (and where nothing is rewound)."""
        if self.text in ("theta_p", "none"):
            return 0
        step = round(self._share * total) if self._share else Length.parse(self.text).steps(steps_per_epoch)
        if not 0 < step < total:
            raise UserError(f"rewinding to {self.text} is step {step}, which is not inside a round of {total} steps.")
        return step


class _Checked:
    """Checks a settings class: choices against their ``Literal``, numbers against what they can be."""

    FROM_ZERO: ClassVar[tuple[str, ...]] = ()  # whole numbers that may be 0

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for item in fields(self):
            value, hint = getattr(self, item.name), hints[item.name]
            choices = get_args(hint)
            label = item.name.replace("_", "-")
            if choices and all(isinstance(choice, str) for choice in choices) and value not in choices:
                raise UserError(f"{label} is one of {', '.join(choices)}, not {value!r}.")
            if hint is bool and not isinstance(value, bool):
                raise UserError(f"{label} is true or false, not {value!r}.")
            least = 0 if item.name in self.FROM_ZERO else 1
            if hint is int and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise UserError(f"{label} is a whole number from {least}, not {value!r}.")
            if hint is float and not (_is_number(value) and value >= 0):
                raise UserError(f"{label} is a number from 0, not {value!r}.")
            if hint is str and not isinstance(value, str):
                raise UserError(f"{label} is a text, not {value!r}.")


@dataclass(frozen=True)
class Protocol(_Checked):
    """How tickets are found: the fields on which papers and released code differ.

    ``docs/design.md``, "Paper and released code", has both readings of each.

    Attributes:
        name: whose reading this is, ``paper`` or ``released``.
        schedule: see :mod:`sparseticket.schedule`.
        sparsity: the target, a fraction.
        pattern: see :mod:`sparseticket.pattern`; kept in its one written form. N:M has one sparsity and one step.
        rewind: where the backbone goes back to after a pruning.
        rewinds: what of the backbone goes back: all of it, or the pruned matrices and filters alone.
        head: goes back to γ_i, or keeps its trained value.
        optimizer_state: fresh in every round, or kept over prunings (masked).
        lr_schedule: restarts in every round, or is one schedule over all rounds.
        prune_pooler: a BERT's ``pooler.dense`` is pruned too.
        prune_first: the first pruning comes before any training.
    """

    name: Literal["paper", "released"] = "paper"
    schedule: str = "linear:0.1"
    sparsity: float = 0.7
    pattern: str = "unstructured"
    rewind: str = "theta_p"
    rewinds: Literal["backbone", "pruned"] = "backbone"
    head: Literal["rewind", "keep"] = "rewind"
    optimizer_state: Literal["fresh", "keep"] = "fresh"
    lr_schedule: Literal["restart", "keep"] = "restart"
    prune_pooler: bool = False
    prune_first: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.sparsity, float):
            check_sparsity(self.sparsity)
        super().__post_init__()
        pattern = parse(self.pattern)
        object.__setattr__(self, "pattern", str(pattern))
        Rewind(self.rewind)
        self.sparsities()
        if isinstance(pattern, NOfM):
            self._check_n_of_m(pattern)

    def sparsities(self) -> list[float]:
        """The sparsity of each round's training."""
        return round_sparsities(self.schedule, self.sparsity, prune_first=self.prune_first)

    def rounds_in_all(self) -> int:
        """The rounds over which one learning rate schedule runs (``lr_schedule = "keep"``), whatever the target.

        The released code's runs over ten rounds of 10 % each: 2e-5 to 1.8e-5 in a round.
        """
        rounds = len(self.sparsities())
        return max(rounds, round(1 / kind_and_step(self.schedule)[1])) if self.schedule.startswith("linear") else rounds

    def _check_n_of_m(self, pattern: NOfM) -> None:
        if abs(self.sparsity - pattern.sparsity) > SNAP:
            raise UserError(
                f"pattern {pattern} is {pattern.sparsity:.4g} sparse and nothing else, not {self.sparsity:g}: leave "
                f"--sparsity out, or set it to {pattern.sparsity:.4g}."
            )
        one_step = f"linear:1/{pattern.m}"
        steps = self.schedule.startswith("steps:")
        if steps or (":" in self.schedule and kind_and_step(self.schedule) != kind_and_step(one_step)):
            raise UserError(
                f"pattern {pattern} prunes 1 of every {pattern.m} a round, not {self.schedule}: leave --schedule out, "
                f"or set it to {one_step}, one-round or one-shot."
            )


@dataclass(frozen=True)
class Training(_Checked):
    """How one network is trained. Shapes in time (milestones, warm-up) are fractions of the round.

    Attributes:
        round_length: ``3ep`` or ``500it``.
        batch_size: global, whatever the number of processes.
        max_length: tokens of a text; not used for images.
        clip: largest norm of the gradient, 0 for none.
        decay: the learning rate over a round: linear to 0, constant, ×0.1 at each of ``milestones``, half a cosine to
            ``final_lr``, or DeepLab's poly, (1 − step / steps)^0.9.
        precision: mixed precision, by Accelerate.
        temperature: what similarities are divided by in ``simclr`` and ``moco``; these fields are theirs alone:
        nt_xent: ``simclr``'s mean over a batch, of −log p (its paper) or of p before the logarithm (the released code).
        order: images drawn anew each epoch, or as they are listed, class by class (the released ``simclr``).
        blur: views of images above 64 pixels may be blurred (both papers; not the released ``simclr``).
        queue: keys of past batches that ``moco`` holds against an image.
        key_momentum: of ``moco``'s momentum encoder: k ← m·k + (1 − m)·q.
        kernels: on a GPU, let a layer run on a sparse kernel where that was measured to be faster; or never.
    """

    round_length: str = "3ep"
    batch_size: int = 32
    max_length: int = 128
    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"
    lr: float = 2e-5
    weight_decay: float = 0.0
    eps: float = 1e-8
    momentum: float = 0.9
    clip: float = 0.0
    decay: Literal["linear", "constant", "steps", "cosine", "poly"] = "linear"
    final_lr: float = 0.0
    milestones: list[float] = field(default_factory=list)
    warmup: float = 0.0
    precision: Literal["no", "fp16", "bf16"] = "no"
    temperature: float = 0.5
    nt_xent: Literal["mean-of-logs", "log-of-mean"] = "mean-of-logs"
    order: Literal["shuffled", "listed"] = "shuffled"
    blur: bool = True
    queue: int = 65536
    key_momentum: float = 0.999
    kernels: Literal["auto", "off"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        Length.parse(self.round_length)
        for name in ("lr", "temperature"):
            if getattr(self, name) == 0:
                raise UserError(f"{name} is a number above 0.")
        if self.key_momentum > 1:
            raise UserError(f"key-momentum is a share, from 0 to 1, not {self.key_momentum}.")
        milestones = self.milestones
        if not (isinstance(milestones, list) and all(_is_number(m) and 0 < m < 1 for m in milestones)):
            raise UserError(f"milestones are fractions of a round, above 0 and below 1, not {milestones!r}.")
        if not 0 <= self.warmup < 1:
            raise UserError(f"warmup is a fraction of a round, from 0 and below 1, not {self.warmup}.")

    def lr_factor(self, step: int, total: int) -> float:
        """What the learning rate is multiplied with at ``step`` (from 0) of a schedule of ``total`` steps."""
        warmup = round(self.warmup * total)
        if step < warmup:
            return (step + 1) / warmup
        if self.decay == "linear":
            return (total - step) / (total - warmup)
        if self.decay == "steps":
            return 0.1 ** sum(step >= round(milestone * total) for milestone in self.milestones)
        done = (step - warmup) / (total - warmup)
        if self.decay == "cosine":
            final = self.final_lr / self.lr
            return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2
        if self.decay == "poly":
            return (1 - done) ** POLY_POWER
        return 1.0


@dataclass(frozen=True)
class RunSettings(_Checked):
    """Everything needed to run a ``find`` again.

    Attributes:
        data: path of the data, absolute, or "" for a task that needs none or takes it from the hub.
        weights: path of the weights θ_p, ``random`` for none (drawn from the seed), or "" for the model's own.
        dense: where pruning comes first, one dense network is trained for reference.
    """

    FROM_ZERO: ClassVar[tuple[str, ...]] = ("seed",)

    model: str
    task: str
    data: str = ""
    weights: str = ""
    seed: int = 0
    dense: bool = True
    protocol: Protocol = field(default_factory=Protocol)
    training: Training = field(default_factory=Training)

    def whole(self) -> RunSettings:
        """The same with whole paths, so that it can be run again from elsewhere; names that are none stay."""
        return replace(
            self,
            model=str(Path(self.model).resolve()) if Path(self.model).is_dir() else self.model,
            data=recorded(Path(self.data)) if self.data else "",
            weights=self.weights if self.weights in ("", RANDOM) else str(Path(self.weights).resolve()),
        )


def from_table(kind: type, table: dict[str, Any], *, where: str) -> Any:
    """Make a settings class from a TOML table; unknown keys are a :class:`UserError` that lists the known ones."""
    if not isinstance(table, dict):
        raise UserError(f"{where}: a table of settings belongs here, not {table!r}.")
    known = {item.name for item in fields(kind)}
    if unknown := sorted(table.keys() - known):
        raise UserError(f"{where}: there is no setting {unknown[0]!r}. Settings: {', '.join(sorted(known))}.")
    needed = {item.name for item in fields(kind) if item.default is MISSING and item.default_factory is MISSING}
    if missing := sorted(needed - table.keys()):
        raise UserError(f"{where}: it lacks {missing[0]}.")
    try:
        return kind(**table)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
