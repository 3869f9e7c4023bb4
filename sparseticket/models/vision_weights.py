"""Weights files of vision models: brought to plain names, and checked against the network before they are used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from sparseticket.errors import UserError
from sparseticket.weights_file import read_tensors

WRAPPERS = ("module.", "backbone.")  # DataParallel, and detection code
COUNTER = "num_batches_tracked"  # files from before torch 0.4.1 have none


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by their plain names: fp32, integers as they are, on the CPU.

    Raises:
        UserError: there is no such file, or it holds no dictionary of tensors, or the same tensor twice.
    """
    stored = read_tensors(path)
    plain = {_without_wrappers(name): _as_fp32(tensor) for name, tensor in stored.items()}
    if len(plain) != len(stored):
        raise UserError(f"--weights {path} holds the same tensor twice, with and without {' or '.join(WRAPPERS)}.")
    return plain


def _without_wrappers(name: str) -> str:
    while name.startswith(WRAPPERS):
        name = name.split(".", 1)[1]
    return name


def _as_fp32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32) if tensor.is_floating_point() else tensor


def check_fit(
    stored: Mapping[str, Tensor],
    live: Mapping[str, Tensor],
    *,
    missing_allowed: frozenset[str],
    source: str,
    model: str,
) -> None:
    """Refuse weights that are not the network's: other names, shapes or kinds of number, or values not finite.

    Raises:
        UserError: names what does not fit. Absent BatchNorm counters and ``missing_allowed`` are fine.
    """
    required = {name for name in live if not name.endswith(COUNTER)} - missing_allowed
    shared = [name for name in stored if name in live]
    problems = [
        _list("not in the model: ", (name for name in stored if name not in live)),
        _list("missing: ", (name for name in live if name in required and name not in stored)),
        _list(
            "of another shape: ",
            (
                f"{name} {tuple(stored[name].shape)} instead of {tuple(live[name].shape)}"
                for name in shared
                if stored[name].shape != live[name].shape
            ),
        ),
        _list(
            "of another kind of number: ",
            (name for name in shared if stored[name].is_floating_point() != live[name].is_floating_point()),
        ),
        _list("not finite: ", (name for name in shared if not stored[name].isfinite().all())),
    ]
    found = [problem for problem in problems if problem]
    if found:
        raise UserError(
            f"{source} does not fit {model}.\n  "
            + "\n  ".join(found)
            + "\nChoose the --model that the weights were saved from, or other weights."
        )


def _list(title: str, names: Iterable[str], shown: int = 3) -> str:
    found = list(names)
    more = f" and {len(found) - shown} more" if len(found) > shown else ""
    return f"{title}{', '.join(found[:shown])}{more}" if found else ""
