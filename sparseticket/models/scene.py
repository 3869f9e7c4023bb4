"""Networks that find boxes or label pixels: a classification ResNet as their backbone, everything else fresh.

Masks, θ and tickets know the backbone by the names that it has in classification, so a ticket moves between all of
them; feature pyramid, heads and decoder are the head γ: drawn from the seed, never pruned.
"""

from __future__ import annotations

from torch import nn

from sparseticket.models.base import Head
from sparseticket.models.deeplab import DeepLab, DeepLabPlus
from sparseticket.models.detector import Detector

MODULES = {"detection": Detector, "segmentation": DeepLabPlus, "segmentation-v3": DeepLab}


def head_of(module: nn.Module) -> Head | None:
    """The head of one of these networks; None for a classifier."""
    kind = next((kind for kind, made in MODULES.items() if type(module) is made), None)
    return Head(kind, module.classes) if kind else None
