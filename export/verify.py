"""Does a written ONNX file answer as the PyTorch model does? Asked on shapes that users will send."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from sparseticket.errors import RunFailure
from sparseticket.export.loaded_model import LoadedModel


@dataclass(frozen=True)
class Tolerance:
    """|ONNX - PyTorch| may be at most ``atol`` + ``rtol`` * |PyTorch|, in units of the output."""

    atol: float
    rtol: float


@dataclass(frozen=True)
class Asked:
    """One shape that was asked: batch, tokens (0 for images), padded or not, and the largest absolute difference."""

    batch: int
    length: int
    padded: bool
    max_abs_error: float


def shapes(model: LoadedModel) -> list[tuple[int, int, bool]]:
    """(batch, tokens, padded) to ask: one and several rows, a single token, odd lengths, padding, the longest."""
    if model.kind == "vision":
        return [(1, 0, False), (2, 0, False), (5, 0, False)]
    wanted = [
        (1, 1, False),
        (1, 8, False),
        (3, 7, True),
        (2, 33, True),
        (5, 128, True),
        (1, model.max_length, False),
    ]
    return [(batch, min(length, model.max_length), padded) for batch, length, padded in wanted]


def verify(model: LoadedModel, file: Path, tolerance: Tolerance) -> list[Asked]:
    """Ask both the same, and return the largest difference for each shape.

    Raises:
        RunFailure: ONNX Runtime refuses the file or a shape, or an answer differs by more than the tolerance.
    """
    try:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise RunFailure(f"ONNX Runtime {onnxruntime.__version__} does not load the exported file: {error}") from error
    return [_ask(model, session, shape, tolerance) for shape in shapes(model)]


def _ask(
    model: LoadedModel,
    session: onnxruntime.InferenceSession,
    shape: tuple[int, int, bool],
    tolerance: Tolerance,
) -> Asked:
    batch, length, padded = shape
    words = f"batch {batch}" + (f", {length} tokens{', padded' if padded else ''}" if length else "")
    inputs = model.example(batch, length, padded=padded)
    expected = model.answer(inputs)
    try:
        got = session.run(list(expected), {name: tensor.numpy() for name, tensor in inputs.items()})
    except Exception as error:
        raise RunFailure(f"ONNX Runtime cannot run the exported file at {words}: {error}") from error
    largest = 0.0
    for (name, reference), array in zip(expected.items(), got, strict=True):
        largest = max(largest, _difference(name, reference.numpy(), array, tolerance, words))
    return Asked(batch, length, padded, largest)


def _difference(name: str, expected: np.ndarray, got: np.ndarray, tolerance: Tolerance, words: str) -> float:
    if expected.shape != got.shape:
        raise RunFailure(f"output {name!r} has shape {got.shape} instead of {expected.shape} at {words}.")
    error = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    largest = float(error.max(initial=0.0))
    within = error <= tolerance.atol + tolerance.rtol * np.abs(expected)  # a NaN is never within
    if not within.all():
        raise RunFailure(
            f"the exported file answers differently from PyTorch: output {name!r} at {words} differs by up to "
            f"{largest:.3g}, and at most {tolerance.atol:g} + {tolerance.rtol:g} x |value| is allowed. "
            "Nothing was kept. --atol and --rtol widen what is allowed, if you know the difference is harmless."
        )
    return largest
