"""What the rest knows of a model: a network with a backbone, what may be pruned in it, and what came pre-trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sparseticket.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sparseticket.masks import Masks

POOLER = "pooler."  # what names of a BERT's pooler begin with inside the backbone; some heads do without it
HeadKind = Literal[
    "sequence-classification",
    "regression",
    "masked-lm",
    "question-answering",
    "image-classification",
    "projection",
    "detection",
    "segmentation",
    "segmentation-v3",
]


@dataclass(frozen=True)
class Head:
    """What a task puts on the backbone: its kind and, for a classifier, how many classes (and their names if known).

    Of a projection, ``classes`` is the number of dimensions that it projects to.
    """

    kind: HeadKind
    classes: int = 0
    labels: tuple[str, ...] = ()


@dataclass
class Network:
    """A backbone with a task's head on it.

    Attributes:
        module: the whole network, a plain transformers or torchvision module.
        prefix: what the backbone's names begin with inside ``module`` ("bert." or "" for a ResNet).
        prunable: names (inside the backbone) of the weights that may be pruned, in model order, pooler included.
        head: names (inside ``module``) of the head's parameters and buffers.
        pretrained: names (inside the backbone) of the tensors and buffers that were read from the pre-trained file.
        head_pretrained: the head came with the checkpoint, so that the network means something before training.
    """

    spec: ModelSpec
    module: nn.Module
    prefix: str
    prunable: tuple[str, ...]
    head: frozenset[str]
    pretrained: frozenset[str]
    head_pretrained: bool = False
    notes: list[str] = field(default_factory=list)  # said once on screen: a fresh MLM head, a random backbone

    @property
    def backbone_module(self) -> nn.Module:
        """The backbone itself, with the names that masks have; it still holds the head where it has no prefix."""
        return self.module.get_submodule(self.prefix.removesuffix("."))

    def backbone(self) -> dict[str, Tensor]:
        """Live parameters and persistent buffers of the backbone, by their names inside the backbone."""
        return {
            name.removeprefix(self.prefix): tensor
            for name, tensor in self.module.state_dict(keep_vars=True).items()
            if name.startswith(self.prefix) and name not in self.head
        }

    def save(self, folder: Path) -> None:
        """Write the network into ``folder`` so that plain transformers or torchvision load it."""
        self.spec.save(self, folder)


@dataclass(frozen=True)
class ModelSpec:
    """A registry entry. Subclasses (text, vision) say how to build, save and feed the model.

    ``name`` is what tickets record: the alias, hub name or, for a folder, the folder's own name (never a path).
    """

    name: str
    kind: Literal["text", "vision"]

    def build(self, head: Head, *, seed: int, weights: Path | None = None) -> Network:
        """A fresh network on the CPU in fp32: pre-trained backbone, and a head drawn from ``seed``
        (``derive(seed, "head")``) unless the checkpoint has one that fits.
        """
        raise NotImplementedError

    def from_scratch(self) -> ModelSpec:
        """The same model without pre-trained weights: all of a network is drawn from the seed.

        Raises:
            UserError: this kind of model has no such beginning here.
        """
        raise UserError(f"{self.name} begins at pre-trained weights: random ones are for vision models.")

    def untrained(self, network: Network, *, seed: int) -> Network:
        """``network`` as its architecture initialises it, drawn from ``seed`` (``derive(seed, "init")``)."""
        raise NotImplementedError

    def save(self, network: Network, folder: Path) -> None:
        """See :meth:`Network.save`."""
        raise NotImplementedError


def parameters_of(module: nn.Module, masks: Masks) -> dict[str, str]:
    """What each parameter that ``masks`` prune is called in ``module``; without a pooler that this one lacks.

    Raises:
        UserError: another is lacking, or is of another shape.
    """
    parameters, owners = dict(module.named_parameters()), {}
    for name, alive in masks.items():
        found = [name] if name in parameters else [own for own in parameters if own.endswith(f".{name}")]
        if not found and name.startswith(POOLER):
            continue
        if len(found) != 1 or parameters[found[0]].shape != alive.shape:
            raise UserError(f"the ticket prunes {name}, which this model does not have: it is for another model.")
        owners[name] = found[0]
    return owners
