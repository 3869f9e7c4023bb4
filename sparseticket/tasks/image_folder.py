"""Any images sorted into class folders, on disk, in a zip or in a tar."""

from __future__ import annotations

from sparseticket.errors import UserError
from sparseticket.models.vision import VisionModel
from sparseticket.tasks import register
from sparseticket.tasks.base import TaskOptions
from sparseticket.tasks.class_folders import LAYOUT, open_class_folders, split_by_folders
from sparseticket.tasks.image_files import identity
from sparseticket.tasks.image_pixels import (
    DecodedPixels,
    Pixels,
    RandomCropPixels,
    hold_if_it_fits,
    resize_and_crop_to,
    resize_to,
)
from sparseticket.tasks.image_task import SMALL_SIDE, ImageTask, Split


@register("image-folder", kind="vision", recipe="cvpr21/image-folder")
class ImageFolder(ImageTask):
    """``--data``: a folder, zip or tar with ``train/<class>/`` and ``test|val|valid|validation|eval/<class>/``.

    Images are brought to the model's size; for a model of large images training crops are torchvision's random
    resized ones, decoded anew each epoch.
    """

    def __init__(self, spec: VisionModel, options: TaskOptions) -> None:
        if options.data is None:
            raise UserError(f"task image-folder needs --data: a folder, zip or tar with {LAYOUT}.")
        files = open_class_folders(options.data)
        train, evaluation, class_names = split_by_folders(files)
        size = spec.format.size
        if size <= SMALL_SIDE:
            train_pixels = hold_if_it_fits(DecodedPixels(files, train.names, resize_to(size)), size)
            eval_shape = resize_to(size)
        else:
            train_pixels = DecodedPixels(files, train.names, _unchanged)
            eval_shape = resize_and_crop_to(size)
        super().__init__(
            "image-folder",
            spec=spec,
            train=Split(train_pixels, train.labels),
            evaluation=Split(
                hold_if_it_fits(DecodedPixels(files, evaluation.names, eval_shape), size), evaluation.labels
            ),
            class_names=class_names,
            data_id=identity({name: files.sizes[name] for name in (*train.names, *evaluation.names)}),
            batch_size=options.batch_size,
        )

    def augmented(self, *, seed: int, round: int, epoch: int) -> Pixels:
        """See :meth:`ImageTask.augmented`; large images get ImageNet's training view."""
        size, pixels = self.format.size, self._train.pixels
        if size <= SMALL_SIDE:
            return super().augmented(seed=seed, round=round, epoch=epoch)
        assert isinstance(pixels, DecodedPixels)
        return RandomCropPixels(pixels, size, seed=seed, round=round, epoch=epoch)


def _unchanged(image):  # noqa: ANN001, ANN202
    return image
