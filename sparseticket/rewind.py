"""What goes back to where: an independent copy of a network's state, and the proof that a rewind restored it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseticket.errors import RunFailure
from sparseticket.models import Network
from sparseticket.theta import tensor_hashes


def head_state(network: Network) -> dict[str, Tensor]:
    """Live parameters and buffers of the head γ, by their names inside the whole module."""
    return {name: t for name, t in network.module.state_dict(keep_vars=True).items() if name in network.head}


@dataclass(frozen=True)
class Origin:
    """θ_i and γ_i: copies that share no memory with the network, and the hashes taken when they were copied.

    (The papers' MLM script kept an alias of the live weights for a copy, and so rewound nothing.)
    """

    backbone: dict[str, Tensor]
    head: dict[str, Tensor]
    hashes: dict[str, dict[str, str]]

    @classmethod
    def of(cls, network: Network) -> Origin:
        """Copy what ``network`` holds now."""
        return cls.from_tensors(network.backbone(), head_state(network))

    @classmethod
    def from_tensors(cls, backbone: dict[str, Tensor], head: dict[str, Tensor]) -> Origin:
        """Copy these tensors."""
        parts = {
            part: {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
            for part, tensors in (("backbone", backbone), ("head", head))
        }
        return cls(**parts, hashes={part: tensor_hashes(tensors) for part, tensors in parts.items()})

    def theta(self, names: frozenset[str]) -> dict[str, str]:
        """The hashes of those backbone tensors that make θ's identity."""
        return {name: digest for name, digest in self.hashes["backbone"].items() if name in names}

    @torch.no_grad()
    def restore(self, network: Network, *, backbone: bool = True, head: bool = True) -> None:
        """Put back the chosen parts, weights and buffers, and verify that each tensor is bit-equal to the original.

        Raises:
            RunFailure: a tensor is not what it was; names it.
        """
        chosen = {"backbone": backbone, "head": head}
        live = {"backbone": network.backbone(), "head": head_state(network)}
        for part in (part for part, wanted in chosen.items() if wanted):
            for name, original in getattr(self, part).items():
                live[part][name].copy_(original)
            for name, digest in tensor_hashes(live[part]).items():
                if digest != self.hashes[part][name]:
                    raise RunFailure(f"rewinding did not restore {part} {name}. This is a bug: please report it.")
