"""Files of tensors by name, from safetensors or torch: read without unpickling, and checked to be what they should."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from sparseticket.errors import UserError

KEPT_UNDER = ("state_dict", "model")  # where a training checkpoint keeps its tensors


def read_tensors(path: Path, what: str = "--weights") -> dict[str, Tensor]:
    """The tensors in ``path`` on the CPU, as they are: of a .safetensors file, or of what ``torch.save`` wrote.

    Args:
        path: the file.
        what: how messages call the file: the option that it came by.

    Raises:
        UserError: there is no such file, it cannot be read, or it holds something else than dense tensors by name.
    """
    if not path.is_file():
        raise UserError(f"{what} {path}: there is no file of that name. Name the file itself, not its folder.")
    try:
        if path.suffix == ".safetensors":
            stored: Any = load_file(path)
        else:
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # foreign bytes fail in a dozen ways, IndexError among them
        raise UserError(
            f"{what} {path} cannot be read as tensors: it is damaged, or holds more than tensors and could run code "
            "when loaded.\nPickled code is never run: save the dictionary of tensors alone, with torch.save or as "
            "safetensors."
        ) from error
    for _ in KEPT_UNDER:  # one may lie in the other
        inside = [key for key in KEPT_UNDER if isinstance(stored, Mapping) and isinstance(stored.get(key), Mapping)]
        filled = [key for key in inside if any(isinstance(value, Tensor) for value in stored[key].values())]
        if len(filled) > 1:
            raise UserError(f"{what} {path} holds both {' and '.join(filled)}: save the one that is meant alone.")
        if inside:
            stored = stored[(filled or inside)[0]]
    if (
        not isinstance(stored, Mapping)
        or not stored
        or not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in stored.items())
    ):
        raise UserError(f"{what} {path} holds no dictionary of tensors by name (a state_dict).")
    if odd := [name for name, tensor in stored.items() if not _is_plain(tensor)]:
        raise UserError(
            f"{what} {path}: {odd[0]} is sparse, complex, quantized or without values. Save plain, dense tensors."
        )
    return dict(stored)


def _is_plain(tensor: Tensor) -> bool:
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
    return dense and not tensor.is_complex() and not tensor.is_quantized
