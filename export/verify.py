"""Does a written ONNX file answer as the PyTorch model does? Asked on shapes that users will send."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from torch import Tensor

from sparseticket.errors import RunFailure, UserError
from sparseticket.export import native, runtime
from sparseticket.export.loaded_model import LoadedModel
from sparseticket.export.options import Options

TOLERANCES = {  # atol, rtol
    ("fp32", "text"): (1e-4, 0.0),
    ("fp32", "vision"): (1e-4, 1e-4),
    ("fp16", "text"): (2e-2, 2e-2),
    ("fp16", "vision"): (2e-2, 2e-2),
    ("bf16", "text"): (0.16, 0.16),  # three bits fewer than fp16; trained MiniLMs needed 0.10, ResNets 0.15
    ("bf16", "vision"): (0.16, 0.16),
}
LONGEST_ASKED = 1024  # attention over 8,192 tokens, as ModernBERT takes, would need gigabytes a layer, and minutes
Shape = tuple[int, int, bool]  # batch, tokens (0 for images), padded


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


def tolerance(options: Options, model: LoadedModel) -> Tolerance:
    """What was asked for, or what this project's models need in this dtype."""
    atol, rtol = TOLERANCES[options.dtype, model.kind]
    return Tolerance(atol if options.atol is None else options.atol, rtol if options.rtol is None else options.rtol)


def shapes(model: LoadedModel) -> list[Shape]:
    """(batch, tokens, padded) to ask: one and several rows, a single token, odd lengths, padding, the longest.

    Of a model that takes more than 1,024 tokens it is these.
    """
    if model.kind == "vision":
        return [(1, 0, False), (2, 0, False), (5, 0, False)]
    wanted = [
        (1, 1, False),
        (1, 8, False),
        (3, 7, True),
        (2, 33, True),
        (5, 128, True),
        (1, LONGEST_ASKED, False),
    ]
    return [(batch, min(length, model.max_length), padded) for batch, length, padded in wanted]


def open_session(file: Path, *, library: bool = True) -> onnxruntime.InferenceSession:
    """``file`` in ONNX Runtime on the CPU; :class:`RunFailure` where it does not load.

    Sparse operators run in the library where it is built, or, without ``library``, in their bodies.
    """
    try:
        if library and native.find_library() is not None:
            return runtime.session(file)
        return onnxruntime.InferenceSession(file, providers=[runtime.CPU])
    except Exception as error:
        if isinstance(error, UserError) and not isinstance(error, runtime.NotLoaded):
            raise
        raise RunFailure(f"ONNX Runtime {onnxruntime.__version__} does not load the exported file: {error}") from error


def verify(model: LoadedModel, file: Path, tolerance: Tolerance | None, *, library: bool = True) -> list[Asked]:
    """Ask both the same, and return the largest difference for each shape.

    ``tolerance`` None (INT8) asks only that every shape runs, and that the answers are finite and of the right shape.

    Raises:
        RunFailure: ONNX Runtime refuses the file or a shape, or an answer differs by more than the tolerance.
    """
    session = open_session(file, library=library)
    names = list(model.outputs)
    return compare(model, lambda inputs, words: run(session, inputs, names, words), tolerance)


def both_worlds(model: LoadedModel, file: Path, tolerance: Tolerance | None) -> dict[str, Any]:
    """What the report says of a file with sparse operators, which :func:`verify` has asked as this machine runs it.

    Where that was with the library, it is asked again without, as a machine runs it that does not have it.

    Raises:
        RunFailure: as :func:`verify`.
    """
    if native.find_library() is None:
        return {"verified_with": None, "missing": native.MISSING}
    asked = verify(model, file, tolerance, library=False)
    return {"verified_with": native.isa(), "max_abs_error_without": max(one.max_abs_error for one in asked)}


def compare(
    model: LoadedModel,
    ask: Callable[[Mapping[str, Tensor], str], Mapping[str, np.ndarray]],
    tolerance: Tolerance | None,
) -> list[Asked]:
    """The largest difference between ``ask(inputs, words for an error)`` and the model, for each of :func:`shapes`.

    Raises:
        RunFailure: an answer of the model is not finite, or one differs by more than the tolerance.
    """
    asked = []
    for batch, length, padded in shapes(model):
        words = f"batch {batch}" + (f", {length} tokens{', padded' if padded else ''}" if length else "")
        inputs = model.example(batch, length, padded=padded)
        expected = {name: tensor.numpy() for name, tensor in model.answer(inputs).items()}
        if lost := [name for name, array in expected.items() if not np.isfinite(array).all()]:
            raise RunFailure(
                f"the model itself answers with infinite or NaN values: output {lost[0]!r} at {words}, in PyTorch. Its "
                "weights are damaged or come from a training that diverged. Nothing was kept."
            )
        got = ask(inputs, words)
        errors = [_difference(name, array, got[name], tolerance, words) for name, array in expected.items()]
        asked.append(Asked(batch, length, padded, max(errors)))
    return asked


def run(
    session: onnxruntime.InferenceSession, inputs: Mapping[str, Tensor], outputs: list[str], words: str
) -> dict[str, np.ndarray]:
    """The session's outputs by name; :class:`RunFailure` that says ``words`` where it cannot run."""
    try:
        feeds = {name: tensor.contiguous().numpy() for name, tensor in inputs.items()}
        return dict(zip(outputs, session.run(outputs, feeds), strict=True))
    except Exception as error:
        raise RunFailure(f"ONNX Runtime cannot run the exported file at {words}: {error}") from error


def _difference(name: str, expected: np.ndarray, got: np.ndarray, tolerance: Tolerance | None, words: str) -> float:
    if expected.shape != got.shape:
        raise RunFailure(f"output {name!r} has shape {got.shape} instead of {expected.shape} at {words}.")
    error = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    largest = float(error.max(initial=0.0))
    if tolerance is None:
        if not np.isfinite(error).all():
            raise RunFailure(f"output {name!r} is not finite at {words}. Nothing was kept.")
        return largest
    within = error <= tolerance.atol + tolerance.rtol * np.abs(expected)  # a NaN is never within
    if not within.all():
        raise RunFailure(
            f"the exported file answers differently from PyTorch: output {name!r} at {words} differs by up to "
            f"{largest:.3g}, and at most {tolerance.atol:g} + {tolerance.rtol:g} x |value| is allowed. "
            "Nothing was kept. --atol and --rtol widen what is allowed, if you know the difference is harmless."
        )
    return largest
