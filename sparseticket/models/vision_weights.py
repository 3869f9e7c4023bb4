"""Weights files of vision models: read, checked against the network before they are used, and what of them was used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sparseticket.errors import UserError
from sparseticket.models.vision_layouts import Stored, convert
from sparseticket.weights_file import read_tensors

COUNTER = "num_batches_tracked"  # files from before torch 0.4.1 have none


def read_weights(path: Path) -> Stored:
    """The tensors of a weights file by their plain names: fp32, integers as they are, on the CPU.

    Raises:
        UserError: there is no such file, or it holds no dictionary of tensors, or the same tensor twice.
    """
    found = {name: _plain(name, tensor) for name, tensor in read_tensors(path).items()}
    return convert(found, f"--weights {path}")


def _plain(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    counts = name.endswith(COUNTER) and tensor.isfinite().all()  # .half() over a state_dict makes them floats too
    return tensor.to(torch.int64 if counts else torch.float32)


def check_fit(
    stored: Mapping[str, Tensor],
    live: Mapping[str, Tensor],
    *,
    missing_allowed: frozenset[str],
    source: str,
    model: str,
) -> None:
    """Refuse weights that are not the network's: other names, shapes or kinds of number, or values that cannot be.

    Raises:
        UserError: names what does not fit. Absent BatchNorm counters and ``missing_allowed`` are fine.
    """
    required = {name for name in live if not name.endswith(COUNTER)} - missing_allowed
    shared = [name for name in stored if name in live]
    shapes = {name: (tuple(stored[name].shape), tuple(live[name].shape)) for name in shared}
    problems = {
        "not in the model": [name for name in stored if name not in live],
        "missing": [name for name in live if name in required and name not in stored],
        "of another shape": [f"{n} {has} instead of {needs}" for n, (has, needs) in shapes.items() if has != needs],
        "of another kind of number": [
            name for name in shared if stored[name].is_floating_point() != live[name].is_floating_point()
        ],
        "not finite": [name for name in shared if not stored[name].isfinite().all()],
        "negative variances": [n for n in shared if n.endswith("running_var") and (stored[n] < 0).any()],
    }
    found = [f"{problem}: {_first_three(names)}" for problem, names in problems.items() if names]
    ranked = [stored[name] for name in shared if stored[name].dim() > 1]
    if ranked and not any(weight.any() for weight in ranked):
        found.append("all weights are 0, and could not be ranked")
    if found:
        covered = sum(name in required and has == needs for name, (has, needs) in shapes.items())
        raise UserError(
            f"{source} does not fit {model}: {covered} of the {len(required)} tensors that it needs are there.\n  "
            + "\n  ".join(found)
            + "\nChoose the --model that the weights were saved from, or other weights."
        )


def coverage(
    loaded: frozenset[str], backbone: Iterable[str], dropped: Iterable[str], left: Mapping[str, int], source: str
) -> str:
    """One sentence: how much of the backbone came from ``source``, what of it was not used, and what it lacked.

    BatchNorm's counters are not counted: old files have none.
    """
    names = [name for name in backbone if not name.endswith(COUNTER)]
    missing = [name for name in names if name not in loaded]
    unused = [f"{count} of its {kind}" for kind, count in left.items()]
    if beside := list(dropped):
        unused.append(f"{len(beside)} that do not fit this network ({', '.join(beside[:3])})")
    said = [f"{len(names) - len(missing)} of the {len(names)} tensors of the backbone come from {source}"]
    if unused:
        said.append(f"not used: {', '.join(unused)}")
    if missing:
        said.append(f"not in it: {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}")
    return "; ".join(said)


def _first_three(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
