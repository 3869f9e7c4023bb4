"""Replacing a text model's backbone by the tensors of a file."""

from __future__ import annotations

from pathlib import Path

import torch

from sparseticket.errors import UserError
from sparseticket.models.base import POOLER, Network
from sparseticket.weights_file import read_tensors


def replace_backbone(network: Network, path: Path) -> None:
    """Copy the state dict in ``path`` over the backbone, and write into ``network`` what was loaded.

    Names may carry the backbone's prefix ("bert.") or not. Head tensors in the file are left alone.

    Raises:
        UserError: the file cannot be read, lacks a tensor of the backbone (other than the pooler's) or holds one of
            another shape or of values that are not finite. The network is then unchanged.
    """
    given = {_plain(name, network.prefix): tensor for name, tensor in read_tensors(path).items()}
    backbone = network.backbone()
    missing = [name for name in backbone if name not in given]
    needed = [name for name in missing if name in network.pretrained and not name.startswith(POOLER)]
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
    network.pretrained = network.pretrained | loaded
    kept = f"; not in it and kept from the checkpoint: {', '.join(missing)}" if missing else ""
    network.notes.append(f"{len(loaded)} of {len(backbone)} backbone tensors come from {path.name}{kept}.")


def _plain(name: str, prefix: str) -> str:
    """A name inside the backbone: no DataParallel or model prefix, and LayerNorm's names of today."""
    name = name.removeprefix("module.").removeprefix(prefix)
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
