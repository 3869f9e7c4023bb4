"""The ResNets for 32x32 images of He et al. 2015 (arXiv 1512.03385, section 4.2), with option-A shortcuts.

Names and arithmetic are those of the widely used PyTorch checkpoints (github.com/akamaster/pytorch_resnet_cifar10).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from sparseticket.models import register
from sparseticket.models.stages import SceneFormat
from sparseticket.models.vision import ImageFormat, VisionModel

# stages of stride 2 and 4; at stride 1 a pyramid or decoder would cost more than all the rest
SCENE = SceneFormat(
    size=128,
    pyramid=("layer3",),
    strides=(4, 8, 16),
    low_level="layer2",
    channels=64,
    convolutions=2,
    dilates=False,
)
BLOCKS_PER_STAGE = {"resnet20-cifar": 3, "resnet32-cifar": 5, "resnet44-cifar": 7, "resnet56-cifar": 9}


class PadShortcut(nn.Module):
    """Option A: every second pixel, and zeros for the channels that the block adds; no parameters."""

    def __init__(self, added_channels: int) -> None:
        super().__init__()
        self.before = added_channels // 2
        self.after = added_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C + added, ceil(H / 2), ceil(W / 2)]."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Identity() if stride == 1 else PadShortcut(channels - channels_in)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, channels, H / stride, W / stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarResNetModule(nn.Module):
    """Stem, three stages of 16, 32 and 64 channels, mean over the image, linear classifier."""

    def __init__(self, blocks_per_stage: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks_per_stage, stride=1)
        self.layer2 = _stage(16, 32, blocks_per_stage, stride=2)
        self.layer3 = _stage(32, 64, blocks_per_stage, stride=2)
        self.linear = nn.Linear(64, classes)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Images, fp32 [B, 3, 32, 32], to logits [B, classes]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))


def _stage(channels_in: int, channels: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = BasicBlock(channels_in, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))


@dataclass(frozen=True)
class CifarResNet(VisionModel):
    """ResNet-20, 32, 44 or 56 for 32x32 images; pre-trained only from a file."""

    def make_module(self, classes: int) -> nn.Module:
        """See :class:`CifarResNetModule`."""
        return CifarResNetModule(BLOCKS_PER_STAGE[self.name], classes)

    def default_weights(self) -> dict[str, Tensor] | None:
        """None: nobody publishes these where torchvision or the hub would find them."""
        return None


@register(*BLOCKS_PER_STAGE)
def _make(alias: str) -> VisionModel:
    return CifarResNet(name=alias, format=ImageFormat(size=32), head_name="linear", scene=SCENE)
