"""Tensors by name in one safetensors file, for θ, heads and checkpoints: checked when read, never unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sparseticket.errors import UserError
from sparseticket.files import write_whole


def save_tensors(path: Path, tensors: Mapping[str, Tensor], **record: Any) -> None:
    """Write copies of ``tensors`` and a JSON ``record`` to ``path``, whole or not at all."""
    ready = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    metadata = {"record": json.dumps(record, sort_keys=True)}

    def write(temporary: Path) -> None:
        try:
            safetensors.torch.save_file(ready, temporary, metadata)
        except SafetensorError as error:  # a full disk, among others
            raise OSError(str(error)) from error

    write_whole(path, write)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the record that :func:`save_tensors` wrote.

    Raises:
        UserError: the file is missing or is not as it was written.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            record = json.loads((file.metadata() or {}).get("record", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, record  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is missing or damaged ({error}). Copy it again, or remove it and run again."
        ) from error
