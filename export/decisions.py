"""Does an INT8 file decide as PyTorch does? Its numbers differ by design; what is read off them should not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from sparseticket.errors import RunFailure
from sparseticket.export.loaded_model import LoadedModel, by_name
from sparseticket.export.verify import open_session, run
from sparseticket.tasks import Task

ROWS = 256  # of the task's evaluation split, at most
RANDOM_ROWS = 64
SAME_DIRECTION = 0.95  # cosine of two embeddings that count as equal
SAME_VALUE = 0.1  # of what lies between the least and the largest: two results of a regression that count as equal


def check_decisions(model: LoadedModel, file: Path, least: float, task: Task | None) -> dict[str, float]:
    """The share of equal decisions by output: on the task's evaluation data, or on random inputs where there is none.

    A decision is the largest logit (of a text, an image, a token, a place or pixel of an image; over the text, for the
    ends of an answer), a regression's value to within a tenth of the span of all, the direction of an embedding or of a
    detector's distances to within a cosine of 0.95.

    Raises:
        RunFailure: names the output whose share is below ``least``.
    """
    session = open_session(file)
    equal: dict[str, list[np.ndarray]] = {name: [] for name in model.outputs}
    values: list[tuple[np.ndarray, np.ndarray]] = []  # of a regression, whose span only all rows together have
    for inputs in _random(model) if task is None else _of_task(model, task):
        expected = {name: tensor.numpy() for name, tensor in model.answer(inputs).items()}
        got = run(session, inputs, list(expected), "the inputs on which decisions are compared")
        real = inputs["attention_mask"].numpy() > 0 if "attention_mask" in inputs else None
        for name, array in expected.items():
            if name == "logits" and array.ndim == 2 and array.shape[-1] == 1:
                values.append((array, got[name]))
            else:
                equal[name].append(same_decisions(name, array, got[name], real))
    if values:
        equal["logits"].append(same_values(*map(np.concatenate, zip(*values, strict=True))))
    shares = {name: float(np.concatenate(parts).mean()) for name, parts in equal.items()}
    for name, share in shares.items():
        if not share >= least:
            raise RunFailure(
                f"the INT8 file decides differently from PyTorch: of output {name!r}, {share:.1%} of the decisions are "
                f"equal on {'random inputs' if task is None else task.name}, and at least {least:.1%} must be. Nothing "
                "was kept. "
                + (
                    "Random inputs can be harder than real ones: give real ones with --data, or "
                    if task is None
                    else "If that is good enough, "
                )
                + f"lower --agreement (now {least:g})."
            )
    return shares


def same_values(expected: np.ndarray, got: np.ndarray) -> np.ndarray:
    """Which results of a regression, [rows, 1] each, are equal, bool [rows]."""
    return np.abs(got - expected).ravel() <= SAME_VALUE * np.ptp(expected)


def same_decisions(name: str, expected: np.ndarray, got: np.ndarray, real: np.ndarray | None) -> np.ndarray:
    """Which decisions are equal, bool [decisions]; ``real`` [batch, tokens] is False where a text is padding."""
    if name == "logits" and expected.ndim == 4:  # of pixels: [batch, classes, height, width]
        return (expected.argmax(1) == got.argmax(1)).ravel()
    if name.endswith("logits"):
        same = expected.argmax(-1) == got.argmax(-1)
    else:
        lengths = np.linalg.norm(expected, axis=-1) * np.linalg.norm(got, axis=-1)
        same = (expected * got).sum(-1) >= SAME_DIRECTION * lengths
    return same[real] if real is not None and same.ndim == 2 else same.ravel()


def _random(model: LoadedModel) -> Iterator[Mapping[str, Tensor]]:
    size = 16 if model.kind == "text" else 8
    for seed in range(RANDOM_ROWS // size):
        yield model.example(size, min(32, model.max_length), padded=True, seed=seed)


def _of_task(model: LoadedModel, task: Task) -> Iterator[Mapping[str, Tensor]]:
    rows = 0
    for batch in task.batches("eval", seed=0, round=0, epoch=0):
        inputs = {"pixel_values": batch["pixels"]} if model.kind == "vision" else by_name(model.inputs, batch)
        yield inputs
        rows += len(next(iter(inputs.values())))
        if rows >= ROWS:
            return
