"""torchvision's ResNets, pre-trained on ImageNet."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torchvision
from torch import Tensor, nn

from sparseticket.errors import UserError
from sparseticket.models import register
from sparseticket.models.stages import SceneFormat
from sparseticket.models.vision import ImageFormat, VisionModel

SCENE = SceneFormat(  # torchvision's FCOS, and both papers' DeepLab
    size=512,
    pyramid=("layer2", "layer3", "layer4"),
    strides=(8, 16, 32, 64, 128),
    low_level="layer1",
    channels=256,
    convolutions=4,
    dilates=True,
)
SMALL_IMAGES = 32  # up to this size the usual stem (7x7 stride 2, then max-pool) would leave 1x1 feature maps


@dataclass(frozen=True)
class TorchvisionResNet(VisionModel):
    """A ResNet of torchvision under torchvision's own names."""

    def make_module(self, classes: int) -> nn.Module:
        """The network of torchvision; with the small stem, its names and later layers are unchanged."""
        module = torchvision.models.get_model(self.name, weights=None, num_classes=classes)
        if self.small_stem:
            module.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
            nn.init.kaiming_normal_(module.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's convs
            module.maxpool = nn.Identity()
        return module

    def for_images(self, size: int) -> VisionModel:
        """Small images get the vision paper's stem: 3x3, stride 1, no max-pool, conv1 drawn fresh."""
        return replace(super().for_images(size), small_stem=size <= SMALL_IMAGES)

    def default_weights(self) -> dict[str, Tensor]:
        """Weights IMAGENET1K_V1, from torchvision's cache or the network."""
        weights = torchvision.models.get_model_weights(self.name).IMAGENET1K_V1
        try:
            return dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True, map_location="cpu"))
        except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors; a wrong hash is a RuntimeError
            raise UserError(
                f"the pre-trained weights of {self.name} could not be fetched from {weights.url}\n  ({error}).\n"
                "Without a network, pass --weights FILE: that file, or any state_dict of this architecture."
            ) from error


@register("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
def _make(alias: str) -> VisionModel:
    return TorchvisionResNet(name=alias, format=ImageFormat(size=224), head_name="fc", scene=SCENE)
