"""Any images sorted into class folders, on disk, in a zip or in a tar."""

from __future__ import annotations

from torch import Tensor

from sparseticket.errors import UserError
from sparseticket.models.vision import VisionModel
from sparseticket.tasks import register
from sparseticket.tasks.base import TaskOptions
from sparseticket.tasks.class_folders import LAYOUT, LabelledFiles, identify, open_class_folders, split_by_folders
from sparseticket.tasks.image_files import DataFiles
from sparseticket.tasks.image_pixels import (
    DecodedPixels,
    Pixels,
    RandomCropPixels,
    hold_if_it_fits,
    resize_and_crop_to,
    resize_to,
)
from sparseticket.tasks.image_task import SMALL_SIDE, ImageTask, Split


class FileImages(ImageTask):
    """Classification of image files, brought to the model's size.

    Small models' images are resized, shifted and mirrored; for a model of large images training crops are torchvision's
    random resized ones, decoded anew each epoch. ``scale`` is the share of the image that such a crop covers, and
    ``large_view`` what evaluation sees.
    """

    scale = (0.08, 1.0)  # as for ImageNet
    large_view = staticmethod(resize_and_crop_to)

    def __init__(
        self,
        name: str,
        spec: VisionModel,
        files: DataFiles,
        train: LabelledFiles,
        evaluation: LabelledFiles,
        class_names: tuple[str, ...],
        data_id: str,
        batch_size: int,
    ) -> None:
        size = spec.format.size
        small = size <= SMALL_SIDE
        shape = resize_to(size) if small else self.large_view(size)
        train_pixels = DecodedPixels(files, train.names, shape if small else _unchanged)
        super().__init__(
            name,
            spec=spec,
            train=Split(hold_if_it_fits(train_pixels, size) if small else train_pixels, train.labels),
            evaluation=Split(hold_if_it_fits(DecodedPixels(files, evaluation.names, shape), size), evaluation.labels),
            class_names=class_names,
            data_id=data_id,
            batch_size=batch_size,
        )

    def augmented(self, *, seed: int, round: int, epoch: int) -> Pixels:
        """See :meth:`ImageTask.augmented`; large images get ImageNet's training view."""
        size, pixels = self.format.size, self._train.pixels
        if size <= SMALL_SIDE:
            return super().augmented(seed=seed, round=round, epoch=epoch)
        assert isinstance(pixels, DecodedPixels)
        return RandomCropPixels(pixels, size, scale=self.scale, seed=seed, round=round, epoch=epoch)


@register("image-folder", kind="vision", recipe="cvpr21/image-folder")
class ImageFolder(FileImages):
    """``--data``: a folder, zip or tar with ``train/<class>/`` and ``test|val|valid|validation|eval/<class>/``."""

    def __init__(self, spec: VisionModel, options: TaskOptions) -> None:
        if options.data is None:
            raise UserError(f"task image-folder needs --data: a folder, zip or tar with {LAYOUT}.")
        files = open_class_folders(options.data)
        train, evaluation, class_names = split_by_folders(files)
        data_id, self.notes = identify(files, train, evaluation)
        super().__init__("image-folder", spec, files, train, evaluation, class_names, data_id, options.batch_size)


def _unchanged(image: Tensor) -> Tensor:
    return image
