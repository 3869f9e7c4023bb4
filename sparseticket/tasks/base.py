"""What the training loop knows of a task. A new task is one file with a class that has these members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sparseticket.models import Head
    from sparseticket.settings import Training

Batch = Mapping[str, "Tensor"]


@dataclass(frozen=True)
class TaskOptions:
    """What a user may say about a task's data. ``batch_size`` is global; ``max_length`` (tokens) is for text only.

    The others are ``simclr``'s and ``moco``'s, and explained at :class:`sparseticket.settings.Training`.
    """

    data: Path | None = None
    batch_size: int = 32
    max_length: int = 128
    temperature: float = 0.5
    nt_xent: str = "mean-of-logs"
    order: str = "shuffled"
    blur: bool = True
    queue: int = 65536
    key_momentum: float = 0.999

    @classmethod
    def of(cls, training: Training, data: str) -> TaskOptions:
        """Those that a training's settings hold; ``data`` is a path, or "" for none."""
        named = {item.name: getattr(training, item.name) for item in fields(cls) if item.name != "data"}
        return cls(Path(data) if data else None, **named)


MASKED_ACCURACY = "masked_accuracy"  # of masked language modelling, the pre-training task of BERT


class Task(Protocol):
    """A task = data + head + loss + metric.

    ``batches`` is a sequence, so that a resumed round goes straight to its next batch: element i is a function of
    (split, seed, round, epoch, i) alone, tensors on the CPU, every tensor's first dimension the batch. Its length does
    not depend on seed, round or epoch. Split "train" is shuffled and augmented, "eval" is neither. An example's own
    randomness (augmentation, MLM masking) is a function of (seed, round, epoch, index of the example). A sequence whose
    elements take long to make says so with the attribute ``in_workers = True`` (:mod:`sparseticket.tasks.prefetch`).

    A task may have two more: ``class_names``, in the order of its labels, which an export compares with the model's;
    and ``adapt(spec)``, which gives the model's spec as this task needs it (a smaller stem for images of 32 x 32).
    """

    name: str
    metric: str  # the key of evaluate()'s result that verdicts use
    head: Head
    data_id: str  # SHA-256 that tells two data sets apart (by their content; images of many GB by names and sizes)
    notes: Sequence[str]  # what its user has to know of the data

    def batches(self, split: str, *, seed: int, round: int, epoch: int) -> Sequence[Batch]: ...

    def begin(self, model: nn.Module, *, seed: int, round: int) -> Sequence[nn.Module]:
        """Called before a training's first step, and before a checkpoint is loaded; ``model`` is masked already.

        Returns networks with the names of ``model`` that the task keeps beside it (a momentum encoder): pruned weights
        are 0 in them too, which is enforced as it is in ``model``.
        """

    def loss(self, model: nn.Module, batch: Batch, *, step: int) -> Tensor:
        """Mean loss over the batch, a scalar; ``batch`` is on the model's device."""

    def after_step(self, model: nn.Module) -> None:
        """Called after every optimizer step (a momentum encoder, a queue)."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Metrics as fractions over the whole evaluation split, in eval mode, restoring the mode that was."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Stateless:
    """The half of a task that most tasks leave empty."""

    notes: Sequence[str] = ()

    def begin(self, model: nn.Module, *, seed: int, round: int) -> Sequence[nn.Module]:
        return ()

    def after_step(self, model: nn.Module) -> None:
        return None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        return None
