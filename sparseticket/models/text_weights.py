"""Replacing a text model's backbone by the tensors of a file."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from sparseticket.errors import UserError
from sparseticket.models.base import Network


def replace_backbone(network: Network, path: Path) -> None:
    """Copy the state dict in ``path`` over the backbone, and write into ``network`` what was loaded.

    Names may carry the backbone's prefix ("bert.") or not. Head tensors in the file are left alone.

    Raises:
        UserError: the file cannot be read, lacks a tensor of the backbone (other than the pooler's) or holds one of
            another shape or of values that are not finite. The network is then unchanged.
    """
    given = {_plain(name, network.prefix): tensor for name, tensor in read_state_dict(path).items()}
    backbone = network.backbone()
    missing = [name for name in backbone if name not in given]
    needed = [name for name in missing if name in network.pretrained and not name.startswith("pooler.")]
    if needed:
        raise UserError(
            f"{path.name} does not hold the backbone of {network.spec.name}: {needed[0]} (and {len(needed) - 1} more "
            f"of {len(backbone)} tensors) is missing from it."
        )
    for name in backbone.keys() & given.keys():
        if given[name].shape != backbone[name].shape:
            raise UserError(
                f"{path.name} does not fit {network.spec.name}: {name} is {tuple(given[name].shape)} in the file and "
                f"{tuple(backbone[name].shape)} in the model."
            )
        if given[name].is_floating_point() and not given[name].isfinite().all():
            raise UserError(f"{path.name} holds values that are not finite in {name}.")
    with torch.no_grad():
        for name in backbone.keys() & given.keys():
            backbone[name].copy_(given[name])
    loaded = frozenset(backbone.keys() & given.keys())
    network.prunable = tuple(name for name in network.prunable if name in loaded or name in network.pretrained)
    network.pretrained = network.pretrained | loaded
    kept = f"; not in it and kept from the checkpoint: {', '.join(missing)}" if missing else ""
    network.notes.append(f"{len(loaded)} of {len(backbone)} backbone tensors come from {path.name}{kept}.")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a ``torch.save``d state dict (loaded with ``weights_only=True``)."""
    if not path.is_file():
        raise UserError(f"there is no weights file {path}.")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # foreign bytes fail in a dozen ways, IndexError among them
        raise UserError(
            f"{path} could not be read as weights: it must be a .safetensors file or a state dict that "
            "torch.load(weights_only=True) accepts."
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"{path} holds no state dict (names to tensors).")
    return state


def _plain(name: str, prefix: str) -> str:
    """A name inside the backbone: no DataParallel or model prefix, and LayerNorm's names of today."""
    name = name.removeprefix("module.").removeprefix(prefix)
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
