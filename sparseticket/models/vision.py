"""ResNets: how they are built under a head, from a weights file where there is one, and saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from sparseticket.errors import UserError
from sparseticket.files import replace_folder, write_json, write_whole
from sparseticket.models.base import Head, ModelSpec, Network
from sparseticket.models.scene import MODULES, head_of
from sparseticket.models.stages import SceneFormat
from sparseticket.models.vision_layouts import Stored
from sparseticket.models.vision_saved import DESCRIPTION, HEADLESS, WEIGHTS, SavedModel
from sparseticket.models.vision_weights import check_fit, coverage, read_weights
from sparseticket.seeds import derive

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STEM = "conv1.weight"  # never pruned, in either paper's code


@dataclass(frozen=True)
class ImageFormat:
    """What a model eats: square RGB images of ``size`` pixels a side, scaled to 0..1, then (x - mean) / std."""

    size: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


@dataclass(frozen=True)
class VisionModel(ModelSpec):
    """A ResNet by alias. Families say how the bare network is made and where its usual weights come from.

    ``small_stem`` is the 3x3 stride-1 stem without max-pool for 32x32 images; ``class_names`` are the task's, if known.
    With ``scratch``, :meth:`build` loads no weights unless it is given a file of them.
    """

    kind: ClassVar[str] = "vision"
    format: ImageFormat
    head_name: str
    scene: SceneFormat
    small_stem: bool = False
    class_names: tuple[str, ...] | None = None
    scratch: bool = False

    def make_module(self, classes: int) -> nn.Module:
        """The bare network, randomly initialised from torch's global generator."""
        raise NotImplementedError

    def default_weights(self) -> dict[str, Tensor] | None:
        """The weights that this architecture is usually pre-trained with; None where there are none to be had."""
        raise NotImplementedError

    def from_scratch(self) -> VisionModel:
        """See :meth:`ModelSpec.from_scratch`."""
        return replace(self, scratch=True)

    def for_images(self, size: int) -> VisionModel:
        """The same architecture for images of another size."""
        return replace(self, format=replace(self.format, size=size))

    def build(self, head: Head, *, seed: int, weights: Path | None = None) -> Network:
        """See :meth:`ModelSpec.build`. ``weights`` is a ``.th``, ``.pt``, ``.pth``, ``.tar`` or ``.safetensors`` file.

        Raises:
            UserError: the file cannot be read or does not fit, or there is no network to fetch the usual weights.
        """
        if head.kind not in ("image-classification", "projection", *MODULES):
            raise UserError(f"{self.name} is for images: it cannot have a head for {head.kind}.")
        network = self._random_network(head, seed)
        stored = self._stored(weights)
        if stored is None:
            network.notes.append(
                f"no pre-trained weights: {self.name} starts from random initialisation, drawn from the seed "
                "(pass --weights FILE for pre-trained ones)"
            )
            return network
        source = str(weights or f"the usual weights of {self.name}")
        dropped = _load_pretrained(network, stored, source=source)
        if weights is not None:
            network.notes.append(coverage(network.pretrained, network.backbone(), dropped, stored.left, source))
        if network.head_pretrained:
            network.notes.append(f"the head came with {source}, too; it was not drawn from the seed")
        if STEM not in network.pretrained:
            network.notes.append(f"{self.name} for small images: its 3x3 conv1 is drawn from the seed")
        return network

    def _stored(self, weights: Path | None) -> Stored | None:
        if weights is not None:
            return read_weights(weights)
        usual = None if self.scratch else self.default_weights()
        return None if usual is None else Stored(usual, {})

    def _random_network(self, head: Head, seed: int) -> Network:
        module = self.random_module(head, seed)
        prefix = getattr(module, "prefix", "")  # only what carries a scene's head keeps the backbone inside
        return Network(
            spec=self,
            module=module,
            prefix=prefix,
            prunable=prunable_names(module.get_submodule(prefix.removesuffix("."))),
            head=frozenset(
                name
                for name in module.state_dict()
                if not name.startswith(prefix) or name.startswith(f"{self.head_name}.")
            ),
            pretrained=frozenset(),
        )

    def random_module(self, head: Head, seed: int) -> nn.Module:
        """The bare network: backbone drawn from ``derive(seed, "init")``, the head from ``derive(seed, "head")``."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive(seed, "init"))
            # torchvision draws convolutions after the classifier: how many classes a scene has must not move them
            module = self.make_module(1 if head.kind in MODULES else max(1, head.classes))
            torch.default_generator.manual_seed(derive(seed, "head"))
            if head.kind in MODULES:
                delattr(module, self.head_name)
                return MODULES[head.kind](module, head.classes, self.scene)
            classifier = module.get_submodule(self.head_name)
            assert isinstance(classifier, nn.Linear)
            classifier.reset_parameters()
            if head.kind == "projection":
                setattr(module, self.head_name, projection_head(classifier.in_features, head.classes))
        return module

    def untrained(self, network: Network, *, seed: int) -> Network:
        """See :meth:`ModelSpec.untrained`."""
        return replace(network, module=self.random_module(self._head_of(network.module), seed))

    def _head_of(self, module: nn.Module) -> Head:
        if scene := head_of(module):
            return scene
        head = module.get_submodule(self.head_name)
        if isinstance(head, nn.Sequential):
            return Head("projection", head[-1].out_features)
        return Head("image-classification", head.out_features)

    def save(self, network: Network, folder: Path) -> None:
        """Write ``model.safetensors`` (a plain state_dict) and ``model.json``; an earlier save there is replaced.

        A projection head is left out, as pre-training leaves it: what is saved is the backbone, which ends in features.

        Raises:
            UserError: the folder holds other files.
            RunFailure: the disk is full, read-only or failing; ``folder`` is then as it was before.
        """
        if folder.exists() and {file.name for file in folder.iterdir()} - {WEIGHTS, DESCRIPTION}:
            raise UserError(f"{folder} holds other files: give a new folder to save the model in.")
        head, format = self._head_of(network.module), self.format
        classes = HEADLESS if head.kind == "projection" else head.classes
        description = SavedModel(
            architecture=self.name,
            classes=classes,
            class_names=self.class_names,
            size=format.size,
            mean=format.mean,
            std=format.std,
            small_stem=self.small_stem,
            head=head.kind if classes else "image-classification",
        )
        kept = network.module.state_dict() if classes else network.backbone()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in kept.items()}
        with replace_folder(folder) as new:
            write_whole(new / WEIGHTS, safetensors_bytes(tensors))
            write_json(new / DESCRIPTION, asdict(description))


def prunable_names(module: nn.Module) -> tuple[str, ...]:
    """The weights of every convolution but the stem, in model order (ResNet-50: 52 tensors, 23,445,504 weights)."""
    convolutions = (f"{name}.weight" for name, part in module.named_modules() if isinstance(part, nn.Conv2d))
    return tuple(name for name in convolutions if name != STEM)


def projection_head(width: int, dimensions: int) -> nn.Sequential:
    """The MLP of SimCLR and MoCo v2 on pooled features, fp32 [B, width] to [B, dimensions]; MoCo v2's own names."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dimensions))


def _load_pretrained(network: Network, file: Stored, *, source: str) -> list[str]:
    """Copy what was stored into the network; the head only where it is of the same shape. Returns what was not used."""
    spec, stored = network.spec, file.tensors
    assert isinstance(spec, VisionModel)
    of_head = (f"{spec.head_name}.", "fc.")  # published checkpoints call it fc, whatever the network does
    live_head = {name: tensor for name, tensor in network.module.state_dict().items() if name in network.head}
    stored_head = {name: tensor for name, tensor in stored.items() if name.startswith(of_head)}
    fitting_head = _shapes(stored_head) == _shapes(live_head)
    live = network.backbone() | (live_head if fitting_head else {})
    wanted = {name: tensor for name, tensor in stored.items() if fitting_head or name not in stored_head}
    if spec.small_stem and STEM in wanted and wanted[STEM].shape[-2:] == (7, 7):
        del wanted[STEM]  # as in the vision paper: a 7x7 stem has no place on 32x32 images
    missing_allowed = network.head | ({STEM} if spec.small_stem else frozenset())
    check_fit(wanted, live, missing_allowed=missing_allowed, source=source, model=spec.name)
    with torch.no_grad():
        for name, tensor in wanted.items():
            live[name].copy_(tensor)
    network.pretrained = frozenset(wanted) - network.head
    network.head_pretrained = fitting_head
    return [name for name in stored if name not in wanted]


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
