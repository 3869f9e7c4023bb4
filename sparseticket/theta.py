"""The identity of a network's starting weights θ: one SHA-256 a tensor, so that a ticket knows its own θ."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def tensor_hash(name: str, tensor: Tensor) -> str:
    """SHA-256 over name, dtype, shape and bytes (row-major, little endian)."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    digest = hashlib.sha256(f"{name}|{str(tensor.dtype).removeprefix('torch.')}|{tuple(tensor.shape)}|".encode())
    digest.update(flat.numpy())
    return digest.hexdigest()


def tensor_hashes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """:func:`tensor_hash` of each, by name."""
    return {name: tensor_hash(name, tensor) for name, tensor in tensors.items()}


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
