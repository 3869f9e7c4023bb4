"""The stages of a classification ResNet, for heads that see where in the image something is."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class SceneFormat:
    """How a family of ResNets sees whole scenes: the detector's pyramid, the segmenter's decoder, and their widths.

    Attributes:
        size: side of its square images in pixels.
        pyramid: the stages that the feature pyramid begins with, fine to coarse.
        strides: pixels between neighbouring places of each level of the pyramid; two levels more than stages.
        low_level: the fine stage that the decoder of DeepLabv3+ looks at again.
        channels: width of pyramid, towers, atrous pooling and decoder.
        convolutions: of each of the detector's two towers.
        dilates: for segmentation the last stages keep their resolution, by dilation.
    """

    size: int
    pyramid: tuple[str, ...]
    strides: tuple[int, ...]
    low_level: str
    channels: int
    convolutions: int
    dilates: bool


def stages_of(resnet: nn.Module, x: Tensor, wanted: Sequence[str]) -> OrderedDict[str, Tensor]:
    """Outputs [B, C, H, W] of the ``wanted`` stages (layer1, …), fine to coarse, of a torchvision or CIFAR ResNet."""
    out = F.relu(resnet.bn1(resnet.conv1(x)))
    out = resnet.maxpool(out) if hasattr(resnet, "maxpool") else out
    found = OrderedDict()
    for name in stage_names(resnet):
        out = resnet.get_submodule(name)(out)
        if name in wanted:
            found[name] = out
    return found


def stage_names(resnet: nn.Module) -> list[str]:
    """layer1, layer2, … of a ResNet, fine to coarse."""
    return [name for name, _ in resnet.named_children() if name.startswith("layer")]


def width_of(resnet: nn.Module, stage: str) -> int:
    """Channels that a stage puts out."""
    norms = [part for part in resnet.get_submodule(stage)[-1].modules() if isinstance(part, nn.BatchNorm2d)]
    return norms[-1].num_features


def dilate(resnet: nn.Module, *, stages: int) -> None:
    """Let the last ``stages`` keep their input's resolution: stride 1, and the taps that follow twice as far apart.

    DeepLabv3 (arXiv 1706.05587, section 3.2); torchvision's ``replace_stride_with_dilation``, which refuses the
    BasicBlocks of ResNet-18 and 34. Weights keep their shapes.
    """
    rate = 1
    for name in stage_names(resnet)[-stages:]:
        for part in resnet.get_submodule(name).modules():
            if isinstance(part, nn.Conv2d):
                halves, part.stride = part.stride == (2, 2), (1, 1)
                if part.kernel_size == (3, 3):
                    part.dilation, part.padding = (rate, rate), (rate, rate)
                    rate *= 2 if halves else 1
