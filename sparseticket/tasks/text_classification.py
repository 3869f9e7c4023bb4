"""Classification and regression of texts: what GLUE, a user's files and docstring topics have in common."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassMatthewsCorrCoef
from torchmetrics.regression import PearsonCorrCoef

from sparseticket.models import Head
from sparseticket.models.text import TextModel
from sparseticket.tasks.base import Batch, Stateless, TaskOptions
from sparseticket.tasks.evaluating import evaluating
from sparseticket.tasks.row_batches import RowBatches
from sparseticket.tasks.text_batches import (
    EVAL_BATCH,
    TokenRows,
    by_length,
    digest,
    fitting_length,
    shuffled_by_length,
    tokenize,
)


class Matthews(MulticlassMatthewsCorrCoef):
    """Matthews correlation, 0 where all predictions (or all labels) are one class, as scikit-learn's, which GLUE uses.

    torchmetrics takes a limit there: 0.036 on CoLA's dev set for a network that says "acceptable" to everything.
    """

    def compute(self) -> Tensor:
        """The correlation, float32 []."""
        one_class = any((self.confmat.sum(side) > 0).sum() < 2 for side in (0, 1))
        return torch.zeros((), device=self.device) if one_class else super().compute()


METRICS: dict[str, Callable[[int], Metric]] = {
    "accuracy": lambda classes: MulticlassAccuracy(classes, average="micro"),
    "matthews": Matthews,
    "pearson": lambda _: PearsonCorrCoef(),
}


@dataclass(frozen=True)
class Examples:
    """Texts with their labels: class numbers, or floats for a regression. ``pairs`` holds second texts, if any."""

    texts: Sequence[str]
    labels: Sequence[int] | Sequence[float]
    pairs: Sequence[str] | None = None


@dataclass(frozen=True)
class _Split:
    rows: TokenRows
    labels: Tensor


class TextClassification(Stateless):
    """A text task with one label a text.

    Args:
        classes: 0 for a regression, whose labels are floats.
        labels: the classes' names, where they have some.
        metric: a key of ``METRICS``; a regression's is "pearson", from -1 to 1 (0 where all predictions are equal).
        also: more sets to evaluate on, by what their metric's name ends with ("_mismatched"); verdicts do not use them.
    """

    def __init__(
        self,
        name: str,
        spec: TextModel,
        options: TaskOptions,
        train: Examples,
        evaluation: Examples,
        *,
        classes: int,
        labels: Sequence[str] = (),
        metric: str = "accuracy",
        also: Mapping[str, Examples] | None = None,
    ) -> None:
        self.name = name
        self.metric = metric
        self.head = Head("sequence-classification", classes, tuple(labels)) if classes else Head("regression")
        splits = {"train": train, "eval": evaluation} | {
            f"eval{name}": examples for name, examples in (also or {}).items()
        }
        self.data_id = digest(
            *(part or () for split in splits.values() for part in (split.texts, split.pairs, split.labels))
        )
        self._batch_size = options.batch_size
        self._limit = fitting_length(spec, options.max_length)
        self._pad_id = spec.tokenizer().pad_token_id
        self._splits = {name: self._encode(spec, examples) for name, examples in splits.items()}
        self.notes = (*_shared(train, evaluation), *self._cut())

    def _encode(self, spec: TextModel, examples: Examples) -> _Split:
        rows = tokenize(spec.tokenizer(), examples.texts, examples.pairs, self._limit)
        return _Split(rows, torch.tensor(examples.labels))

    def _cut(self) -> Iterator[str]:
        lengths = torch.cat([split.rows.lengths for split in self._splits.values()])
        if full := int((lengths >= self._limit).sum()):
            yield f"{full} of {len(lengths)} texts have {self._limit} tokens (--max-length) or more, and end there."

    def batches(self, split: str, *, seed: int, round: int, epoch: int) -> Sequence[Batch]:
        """See :class:`Task`; a batch has ``labels`` [rows] beside the model's inputs [rows, width]."""
        data = self._splits[split]

        def make(rows: Tensor) -> Batch:
            return data.rows.pad(rows.tolist(), self._pad_id, self._limit) | {"labels": data.labels[rows]}

        if split == "train":
            order = shuffled_by_length(data.rows, self._batch_size, seed=seed, round=round, epoch=epoch)
            return RowBatches(make, order, self._batch_size)
        return RowBatches(make, by_length(data.rows), EVAL_BATCH)

    def loss(self, model: nn.Module, batch: Batch, *, step: int) -> Tensor:
        """Cross entropy of the logits, or their mean squared error for a regression."""
        logits = _logits(model, batch)
        if self.head.kind == "regression":
            return mse_loss(logits.squeeze(-1), batch["labels"].float())
        return cross_entropy(logits, batch["labels"])

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The task's metric over the evaluation split, and over each other set that it evaluates on."""
        network = extract_model_from_parallel(model)  # every process evaluates everything: nothing to synchronize
        with evaluating(model) as device:
            return {
                self.metric + split.removeprefix("eval"): self._score(network, split, device)
                for split in self._splits
                if split != "train"
            }

    def _score(self, network: nn.Module, split: str, device: torch.device) -> float:
        score = METRICS[self.metric](self.head.classes).to(device)
        for batch in self.batches(split, seed=0, round=0, epoch=0):
            on_device = {name: tensor.to(device) for name, tensor in batch.items()}
            logits = _logits(network, on_device)
            score.update(
                logits.squeeze(-1) if self.head.kind == "regression" else logits.argmax(-1), on_device["labels"]
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchmetrics calls a constant prediction's correlation NaN, and warns
            return float(score.compute().nan_to_num(0.0))


def _shared(train: Examples, evaluation: Examples) -> Iterator[str]:
    known, asked = (set(zip(split.texts, split.pairs or split.texts, strict=True)) for split in (train, evaluation))
    if shared := len(known & asked):
        yield f"{shared} of the {len(asked)} different texts to evaluate on are trained on, too."


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    return model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits.float()
