"""DeepLabv3 of torchvision's parts, and the decoder of DeepLabv3+, on the stages of a ResNet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP
from torchvision.ops import Conv2dNormActivation

from sparseticket.models.stages import SceneFormat, dilate, stage_names, stages_of, width_of

FINE_RATES, COARSE_RATES = (12, 24, 36), (6, 12, 18)  # of maps with 1/8 and 1/16 of a 512-pixel image's side
LOW_CHANNELS = 48  # arXiv 1802.02611, section 4.1


class DeepLab(nn.Module):
    """DeepLabv3 (Chen et al. 2017, arXiv 1706.05587) as torchvision has it: atrous pooling over the last stage.

    Names of the backbone begin with ``backbone.``. A stage that is dilated shrinks to 1/8 of the image, not 1/32.
    """

    prefix = "backbone."

    def __init__(self, backbone: nn.Module, classes: int, scene: SceneFormat) -> None:
        super().__init__()
        if scene.dilates:
            dilate(backbone, stages=2)
        self.backbone, self.classes, self.last = backbone, classes, stage_names(backbone)[-1]
        width, channels = width_of(backbone, self.last), scene.channels
        self.head = nn.Sequential(
            ASPP(width, FINE_RATES if scene.dilates else COARSE_RATES, channels),
            Conv2dNormActivation(channels, channels),
            nn.Conv2d(channels, classes, 1),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Images, fp32 [B, 3, S, S], to logits of their pixels [B, classes, S, S]."""
        return enlarge(self.head(stages_of(self.backbone, pixels, [self.last])[self.last]), pixels)


class DeepLabPlus(nn.Module):
    """DeepLabv3+ (Chen et al. 2018, arXiv 1802.02611): the pooled map, enlarged, beside a fine stage's edges.

    Names of the backbone begin with ``backbone.``. The last stage is dilated to 1/16 of the image (section 4).
    """

    prefix = "backbone."

    def __init__(self, backbone: nn.Module, classes: int, scene: SceneFormat) -> None:
        super().__init__()
        if scene.dilates:
            dilate(backbone, stages=1)
        self.backbone, self.classes = backbone, classes
        self.low, self.last = scene.low_level, stage_names(backbone)[-1]
        channels = scene.channels
        self.pooling = ASPP(width_of(backbone, self.last), COARSE_RATES, channels)
        self.edges = Conv2dNormActivation(width_of(backbone, self.low), LOW_CHANNELS, 1)
        self.decoder = nn.Sequential(
            Conv2dNormActivation(channels + LOW_CHANNELS, channels),
            Conv2dNormActivation(channels, channels),
            nn.Conv2d(channels, classes, 1),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Images, fp32 [B, 3, S, S], to logits of their pixels [B, classes, S, S]."""
        stages = stages_of(self.backbone, pixels, [self.low, self.last])
        edges = self.edges(stages[self.low])
        pooled = enlarge(self.pooling(stages[self.last]), edges)
        return enlarge(self.decoder(torch.cat([pooled, edges], 1)), pixels)


def enlarge(maps: Tensor, like: Tensor) -> Tensor:
    """``maps`` [B, C, h, w] as large as ``like`` [B, ., H, W], bilinear."""
    return F.interpolate(maps, size=like.shape[-2:], mode="bilinear", align_corners=False)
