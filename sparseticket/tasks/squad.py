"""SQuAD v1.1: find the words of a passage that answer a question."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sparseticket.models import Head
from sparseticket.models.text import TextModel
from sparseticket.tasks import register
from sparseticket.tasks.base import Batch, Stateless, TaskOptions
from sparseticket.tasks.evaluating import evaluating
from sparseticket.tasks.row_batches import RowBatches
from sparseticket.tasks.squad_data import Passages, read
from sparseticket.tasks.squad_score import exact_match, f1
from sparseticket.tasks.squad_windows import Windows, best_spans, cut, encode
from sparseticket.tasks.text_batches import (
    EVAL_BATCH,
    by_length,
    digest,
    fitting_length,
    shuffled_by_length,
)

PLACES = ("window", "targets")  # what a batch holds beside the model's inputs


class QuestionAnswering(Stateless):
    """Where an answer begins and ends, each by a softmax over the tokens (BERT, arXiv 1810.04805, section 4.2).

    A prediction is the passage's own text under the best span over all windows of a question. BERT's code further lets
    a token begin an answer only in the window that shows most around it, and looks at its 20 best beginnings and ends;
    here every window may, and every span is looked at.
    """

    metric = "f1"
    head = Head("question-answering")

    def __init__(self, name: str, spec: TextModel, options: TaskOptions, train: Passages, evaluation: Passages) -> None:
        self.name = name
        self.data_id = digest(*(part for split in (train, evaluation) for part in (split.texts, split.questions)))
        self._batch_size = options.batch_size
        self._limit = fitting_length(spec, options.max_length)
        tokenizer = spec.tokenizer()
        self._pad_id = tokenizer.pad_token_id
        self._evaluation, self._texts = evaluation, encode(tokenizer, evaluation.texts)
        self._windows = {
            "train": cut(tokenizer, train, encode(tokenizer, train.texts), self._limit, train=True),
            "eval": cut(tokenizer, evaluation, self._texts, self._limit, train=False),
        }

    def batches(self, split: str, *, seed: int, round: int, epoch: int) -> Sequence[Batch]:
        """See :class:`Task`; beside the inputs, ``window`` [rows] and for training ``targets`` [rows, 2]."""
        windows = self._windows[split]

        def make(rows: Tensor) -> Batch:
            batch = windows.rows.pad(rows.tolist(), self._pad_id, self._limit) | {"window": rows}
            return batch if windows.targets is None else batch | {"targets": windows.targets[rows]}

        if split == "train":
            order = shuffled_by_length(windows.rows, self._batch_size, seed=seed, round=round, epoch=epoch)
            return RowBatches(make, order, self._batch_size)
        return RowBatches(make, by_length(windows.rows), EVAL_BATCH)

    def loss(self, model: nn.Module, batch: Batch, *, step: int) -> Tensor:
        """The mean of the cross entropies of the answer's first and last token."""
        first, last = batch["targets"].unbind(1)
        starts, ends = _logits(model, batch)
        return (cross_entropy(starts, first) + cross_entropy(ends, last)) / 2

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """F1 and exact match over the questions of the evaluation split."""
        with evaluating(model) as device:
            predictions = self._predict(extract_model_from_parallel(model), device)
        scores = {"f1": 0.0, "exact_match": 0.0}
        for question, prediction in zip(self._evaluation.questions, predictions, strict=True):
            answers = [answer.text for answer in question.answers]
            scores["f1"] += f1(prediction, answers)
            scores["exact_match"] += exact_match(prediction, answers)
        return {name: total / len(predictions) for name, total in scores.items()}

    def _predict(self, network: nn.Module, device: torch.device) -> list[str]:
        """The answer to each question; "" where its passage has no token."""
        windows = self._windows["eval"]
        best: list[tuple[float, str]] = [(-torch.inf, "")] * len(self._evaluation.questions)
        for batch in self.batches("eval", seed=0, round=0, epoch=0):
            rows = batch["window"]
            starts, ends = _logits(network, {name: tensor.to(device) for name, tensor in batch.items()})
            spans = best_spans(starts, ends, windows.first[rows].to(device), windows.length[rows].to(device))
            for row, score, first, last in zip(rows.tolist(), *(part.tolist() for part in spans), strict=True):
                question = int(windows.question[row])
                if score > best[question][0]:
                    best[question] = score, self._text_under(windows, row, first, last)
        return [text for _, text in best]

    def _text_under(self, windows: Windows, row: int, first: int, last: int) -> str:
        passage = self._evaluation.questions[int(windows.question[row])].passage
        in_passage = int(windows.token[row] - windows.first[row])
        characters = self._texts.characters_of(passage)
        begin, end = int(characters[in_passage + first, 0]), int(characters[in_passage + last, 1])
        return self._evaluation.texts[passage][begin:end]


def _logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    answer = model(**{name: tensor for name, tensor in batch.items() if name not in PLACES})
    return answer.start_logits.float(), answer.end_logits.float()


@register("squad", kind="text", recipe="neurips20/squad")
def make(spec: TextModel, options: TaskOptions) -> QuestionAnswering:
    """SQuAD v1.1, from its own files or from the hub."""
    return QuestionAnswering("squad", spec, options, *read(options.data))
