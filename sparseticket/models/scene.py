"""Networks that find boxes or label pixels: a classification ResNet as their backbone, everything else fresh.

Masks, θ and tickets know the backbone by the names that it has in classification, so a ticket moves between all of
them; feature pyramid, heads and decoder are the head γ: drawn from the seed, never pruned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sparseticket.models.base import Head, Network
from sparseticket.models.deeplab import DeepLab, DeepLabPlus
from sparseticket.models.detector import Detector
from sparseticket.models.vision_weights import check_fit
from sparseticket.seeds import derive

if TYPE_CHECKING:
    from sparseticket.models.vision import VisionModel

MODULES = {"detection": Detector, "segmentation": DeepLabPlus, "segmentation-v3": DeepLab}


def scene_module(spec: VisionModel, head: Head, seed: int) -> nn.Module:
    """The bare network: backbone drawn from ``derive(seed, "init")``, the rest from ``derive(seed, "head")``."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "init"))
        body = spec.make_module(1)
        delattr(body, spec.head_name)
        torch.default_generator.manual_seed(derive(seed, "head"))
        return MODULES[head.kind](body, head.classes, spec.scene)


def scene_network(
    spec: VisionModel, head: Head, seed: int, stored: Mapping[str, Tensor] | None, source: str
) -> Network:
    """A network for ``head``, its backbone from the classifier's weights ``stored`` unless they are None.

    Raises:
        UserError: they do not fit the backbone.
    """
    from sparseticket.models.vision import prunable_names

    module = scene_module(spec, head, seed)
    prefix = module.prefix
    network = Network(
        spec=spec,
        module=module,
        prefix=prefix,
        prunable=prunable_names(module.get_submodule(prefix.removesuffix("."))),
        head=frozenset(name for name in module.state_dict() if not name.startswith(prefix)),
        pretrained=frozenset(),
    )
    if stored is None:
        return network
    live = network.backbone()
    of_classifier = (f"{spec.head_name}.", "fc.")  # published checkpoints call it fc, whatever the network does
    wanted = {name: tensor for name, tensor in stored.items() if not name.startswith(of_classifier)}
    check_fit(wanted, live, missing_allowed=frozenset(), source=source, model=spec.name)
    with torch.no_grad():
        for name, tensor in wanted.items():
            live[name].copy_(tensor)
    return replace(network, pretrained=frozenset(wanted))


def head_of(module: nn.Module) -> Head | None:
    """The head that a network of :func:`scene_module` has; None for a classifier."""
    kind = next((kind for kind, made in MODULES.items() if type(module) is made), None)
    return Head(kind, module.classes) if kind else None
