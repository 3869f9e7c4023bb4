"""Weights files of vision models: read without unpickling, and checked against the network before they are used."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from torch import Tensor

from sparseticket.errors import UserError

TORCH_SUFFIXES = (".th", ".pt", ".pth", ".tar")
WRAPPERS = ("module.", "backbone.")  # DataParallel, and detection code
COUNTER = "num_batches_tracked"  # files from before torch 0.4.1 have none


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by their plain names: fp32, integers as they are, on the CPU.

    Raises:
        UserError: there is no such file, it is of another kind, or it holds no plain dictionary of tensors.
    """
    if path.is_dir():
        raise UserError(f"--weights {path} is a folder: name the file, e.g. {path / 'model.safetensors'}.")
    if not path.is_file():
        raise UserError(f"--weights {path}: there is no such file.")
    if path.suffix == ".safetensors":
        stored: Any = _read_safetensors(path)
    elif path.suffix in TORCH_SUFFIXES:
        stored = _read_torch(path)
    else:
        raise UserError(f"--weights {path}: expected a file named {', '.join(TORCH_SUFFIXES)} or .safetensors.")
    for key in ("state_dict", "model"):
        if isinstance(stored, Mapping) and isinstance(stored.get(key), Mapping):
            stored = stored[key]
    if (
        not isinstance(stored, Mapping)
        or not stored
        or not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in stored.items())
    ):
        raise UserError(f"--weights {path} holds no dictionary of tensors by name (a state_dict).")
    plain = {_without_wrappers(name): _as_fp32(tensor) for name, tensor in stored.items()}
    if len(plain) != len(stored):
        raise UserError(f"--weights {path} holds the same tensor twice, with and without {' or '.join(WRAPPERS)}.")
    return plain


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors_load(path.read_bytes())
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"--weights {path} cannot be read as safetensors: {error}.") from error


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"--weights {path} is damaged, or holds more than tensors and could run code when loaded: "
            "save its state_dict alone, or as safetensors."
        ) from error
    except Exception as error:  # foreign bytes fail in a dozen ways, IndexError among them
        raise UserError(f"--weights {path} cannot be read as a torch file: it is damaged or no such file.") from error


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
