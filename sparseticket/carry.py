"""What a protocol keeps over a pruning instead of rewinding it: weights, head or optimizer, in one file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sparseticket.errors import UserError
from sparseticket.models import Network
from sparseticket.models.base import POOLER
from sparseticket.rewind import head_state
from sparseticket.settings import Protocol
from sparseticket.tensors import load_tensors, save_tensors


def save_carry(path: Path, network: Network, optimizer_state: dict[str, Tensor], protocol: Protocol) -> None:
    """Write what ``protocol`` keeps of a trained network; no file where it keeps nothing."""
    kept = {
        "backbone": _kept_backbone(network, protocol),
        "head": head_state(network) if protocol.head == "keep" else {},
        "optimizer": optimizer_state if protocol.optimizer_state == "keep" else {},
    }
    tensors = {f"{part}/{name}": tensor for part, state in kept.items() for name, tensor in state.items()}
    if _keeps_something(protocol):
        save_tensors(path, tensors)


@torch.no_grad()
def load_carry(path: Path, network: Network, protocol: Protocol) -> dict[str, Tensor] | None:
    """Put kept weights and head into ``network``; returns the optimizer's state, or None where that is fresh.

    Raises:
        UserError: the file is missing or damaged, or not of this network.
    """
    if not _keeps_something(protocol):
        return None
    live = {"backbone": network.backbone(), "head": head_state(network)}
    optimizer_state = {}
    for name, tensor in load_tensors(path)[0].items():
        part, _, rest = name.partition("/")
        if part == "optimizer":
            optimizer_state[rest] = tensor
        else:
            if part not in live or rest not in live[part] or live[part][rest].shape != tensor.shape:
                raise UserError(f"{path} is not of this run: its {name} fits nothing. Copy it again.")
            live[part][rest].copy_(tensor)
    return optimizer_state or None


def _kept_backbone(network: Network, protocol: Protocol) -> dict[str, Tensor]:
    if protocol.rewind == "none":
        return network.backbone()
    if protocol.rewinds == "pruned":
        pruned = {name for name in network.prunable if protocol.prune_pooler or not name.startswith(POOLER)}
        return {name: tensor for name, tensor in network.backbone().items() if name not in pruned}
    return {}


def _keeps_something(protocol: Protocol) -> bool:
    backbone = protocol.rewind == "none" or protocol.rewinds == "pruned"
    return backbone or "keep" in (protocol.head, protocol.optimizer_state)
