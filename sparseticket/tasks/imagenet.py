"""ImageNet classification: the pre-training of torchvision's weights, as a task to find tickets on."""

from __future__ import annotations

from sparseticket.errors import UserError
from sparseticket.models.vision import VisionModel
from sparseticket.tasks import register
from sparseticket.tasks.base import TaskOptions
from sparseticket.tasks.image_folder import ImageFolder


@register("imagenet", kind="vision", recipe="cvpr21/imagenet")
class ImageNet(ImageFolder):
    """``--data``: ImageNet unpacked, ``train/n01440764/*.JPEG`` and so on, ``val/`` sorted the same way.

    Classes are numbered in the order of their folders, which is that of torchvision's weights: with all 1,000 of them
    the pre-trained classifier is kept.
    """

    def __init__(self, spec: VisionModel, options: TaskOptions) -> None:
        if options.data is None:
            raise UserError(
                "task imagenet needs --data: ImageNet's folder with train/<class>/*.JPEG and val/<class>/*.JPEG. It is "
                "at www.image-net.org, for those who register; val comes unsorted, and "
                "torchvision.datasets.ImageNet sorts it."
            )
        super().__init__(spec, options)
        self.name = "imagenet"
