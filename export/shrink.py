"""Remove dead heads, neurons and channels from a network: the same answers from smaller matrices.

What remains are the same modules of transformers and torchvision with smaller weights: BertSelfAttention and its like
reshape with -1 and the size of a head, so that layers may keep different numbers of heads.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from sparseticket.errors import UserError
from sparseticket.masks import Masks
from sparseticket.models.base import parameters_of
from sparseticket.models.families import KINDS, Family, families

HEAD_COUNTS = ("num_attention_heads", "n_heads")


@dataclass(frozen=True)
class Kept:
    """Which heads, neurons or channels of one layer are kept: ``kept`` of ``count``, in order."""

    kind: str
    layer: str
    count: int
    kept: tuple[int, ...]


@dataclass(frozen=True)
class Shrunk:
    """A smaller network (a plain module), and what of each layer it keeps."""

    module: nn.Module
    kept: tuple[Kept, ...]

    @property
    def is_smaller(self) -> bool:
        return any(len(layer.kept) < layer.count for layer in self.kept)


def shrink(model: nn.Module, masks: Masks | None = None) -> Shrunk:
    """A copy of ``model`` without the heads, neurons and channels that nothing reads.

    An entry is removed when every weight that reads it is exactly 0 (a neuron's column, a head's columns of the output,
    a channel's slice of the next convolution), because only then is its contribution 0 whatever it computes. One whose
    own rows alone are pruned stays: GELU(bias) and BatchNorm's bias pass through it. Every layer keeps at least one.

    Args:
        model: a BERT-like network of transformers, or a torchvision or CIFAR ResNet; it stays as it is.
        masks: by name inside the backbone, applied first; None where pruned weights are already 0.

    Raises:
        UserError: the model has no such layers, or the masks are not for it.
    """
    module = copy.deepcopy(model)
    backbone = backbone_of(module)
    _apply(backbone, masks or {})
    found = []
    for family in reversed(removable(backbone)):  # a channel may be read by filters alone that go themselves
        kept = _read_entries(backbone, family)
        cut(backbone, family, kept)
        found.append(Kept(family.kind, family.layer, family.count, tuple(kept)))
    return Shrunk(module, tuple(reversed(found)))


def backbone_of(model: nn.Module) -> nn.Module:
    """The encoder inside a network of transformers; a ResNet is its own backbone."""
    return getattr(model, "base_model", model)


def removable(backbone: nn.Module) -> list[Family]:
    """Everything in ``backbone`` that can be removed in part, in model order.

    Raises:
        UserError: there is nothing of the kind.
    """
    found = [family for kind in KINDS for family in families(backbone, kind)]
    if getattr(getattr(backbone, "config", None), "model_type", None) == "mpnet":
        found = [family for family in found if family.kind != "heads"]  # all layers share one bias for each head
    if not found:
        raise UserError(
            f"{type(backbone).__name__} cannot be shrunk: give a BERT-like encoder or a torchvision or CIFAR ResNet."
        )
    return found


@torch.no_grad()
def cut(backbone: nn.Module, family: Family, kept: Sequence[int]) -> None:
    """Keep the entries ``kept`` of ``family``, and remove the others at every end, in place."""
    if len(kept) == family.count:
        return
    for end in family.slices:
        owner, _, attribute = end.name.rpartition(".")
        layer = backbone.get_submodule(owner)
        whole = getattr(layer, attribute)
        first = torch.tensor(kept, device=whole.device) * end.size
        part = whole.index_select(end.dim, (first[:, None] + torch.arange(end.size, device=whole.device)).flatten())
        is_parameter = isinstance(whole, nn.Parameter)
        setattr(layer, attribute, nn.Parameter(part, requires_grad=whole.requires_grad) if is_parameter else part)
        _state_sizes(layer)
    if family.kind == "heads":
        _state_heads(backbone.get_submodule(family.layer), len(kept), family.slices[0].size)


def _read_entries(backbone: nn.Module, family: Family) -> list[int]:
    """The entries that some weight reads; the first where none is read."""
    read = torch.zeros(family.count, dtype=torch.bool)
    for end in family.slices:
        if end.dim == 1:
            weight = backbone.get_parameter(end.name).detach()
            read |= (weight != 0).movedim(1, 0).reshape(family.count, -1).any(1).cpu()
    return read.nonzero().flatten().tolist() or [0]


def _state_sizes(layer: nn.Module) -> None:
    """Make the sizes that a layer states those of its weight."""
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.Conv2d):
        layer.out_channels, layer.in_channels = layer.weight.shape[:2]
    else:
        layer.num_features = layer.weight.shape[0]


def _state_heads(attention: nn.Module, heads: int, size: int) -> None:
    for part in attention.modules():
        for name in HEAD_COUNTS:
            if hasattr(part, name):
                setattr(part, name, heads)
        if hasattr(part, "all_head_size"):
            part.all_head_size = heads * size


@torch.no_grad()
def _apply(backbone: nn.Module, masks: Masks) -> None:
    parameters = dict(backbone.named_parameters())
    for name, own in parameters_of(backbone, masks).items():
        parameters[own].masked_fill_(~masks[name].to(parameters[own].device), 0.0)
