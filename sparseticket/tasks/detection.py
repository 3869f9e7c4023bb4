"""Detection: boxes around objects, in Pascal VOC's layout; average precision as COCO defines it.

Images are brought to the model's square. That stretches boxes and what is found alike, and IoU, which all of average
precision is made of, does not change under it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from sparseticket.errors import UserError
from sparseticket.models import Head
from sparseticket.models.detector import decode
from sparseticket.models.vision import VisionModel
from sparseticket.seeds import generator
from sparseticket.tasks import register
from sparseticket.tasks.base import Batch, Stateless, TaskOptions
from sparseticket.tasks.data_identity import identify_pairs
from sparseticket.tasks.evaluating import evaluating
from sparseticket.tasks.image_files import DataFiles
from sparseticket.tasks.image_pixels import DecodedPixels, Pixels, hold_if_it_fits, normalised, resize_to
from sparseticket.tasks.row_batches import RowBatches
from sparseticket.tasks.scenes import EVAL_BATCH, for_scenes
from sparseticket.tasks.voc import LAYOUT, Annotation, open_layout, read_annotations, read_splits, sizes_of

NO_BOX = -1  # the label of what fills up a batch to as many boxes as its richest image has
METRICS = {"AP": "map", "AP50": "map_50", "AP75": "map_75"}  # ours, and torchmetrics' names


class BoxedImages:
    """One split: images brought to ``size``, and their boxes in its pixels."""

    def __init__(
        self, files: DataFiles, ids: list[str], found: list[Annotation], classes: tuple[str, ...], size: int
    ) -> None:
        number = {name: index for index, name in enumerate(classes)}
        names = tuple(_image(name) for name in ids)
        for name, one in zip(names, found, strict=True):
            if (real := files.image_size(name)) != one.size:
                upright = "Store it upright (EXIF may turn it where it is shown)"
                mend = upright if real == one.size[::-1] else "Resize it back"
                raise UserError(
                    f"{files.source}: {name} is {real[1]} x {real[0]} pixels, and its annotation is of an image of "
                    f"{one.size[1]} x {one.size[0]}. {mend}, or take it out of the lists."
                )
        self.pixels: Pixels = hold_if_it_fits(DecodedPixels(files, names, resize_to(size)), size)
        scales = [torch.tensor([size / one.size[1], size / one.size[0]]).repeat(2) for one in found]
        self.boxes = [one.boxes * scale for one, scale in zip(found, scales, strict=True)]
        self.labels = [torch.tensor([number[name] for name in one.names], dtype=torch.int64) for one in found]
        self.difficult = [one.difficult for one in found]

    def __len__(self) -> int:
        return len(self.boxes)


@register("detection", kind="vision", recipe="cvpr21/detection", library="pycocotools")
class Detection(Stateless):
    """``--data``: a folder, zip or tar in Pascal VOC's layout, or one around it (VOCdevkit)."""

    name, metric = "detection", "AP"

    def __init__(self, spec: VisionModel, options: TaskOptions) -> None:
        if options.data is None:
            raise UserError(f"task detection needs --data: a folder, zip or tar with {LAYOUT}.")
        files = open_layout(options.data, "Annotations", "JPEGImages", "ImageSets")
        if files is None:
            raise UserError(f"--data {options.data}: expected a folder, zip or tar with {LAYOUT}.")
        splits = read_splits(files, "ImageSets/Main", "Annotations/{}.xml")
        train, evaluation = (read_annotations(files, ids) for ids in splits)
        for what, found in (("train on", train), ("evaluate on", evaluation)):
            if not _classes(found, difficult=False):
                raise UserError(f"--data {options.data}: the images to {what} have no boxes, or difficult ones alone.")
        self.class_names = tuple(sorted(_classes(train)))
        taught, asked = (_classes(found, difficult=False) for found in (train, evaluation))
        if strangers := sorted(asked - taught | _classes(evaluation) - set(self.class_names)):
            raise UserError(
                f"--data {options.data}: images to evaluate on have classes that are not trained on: "
                f"{', '.join(strangers[:3])}."
            )
        self.head = Head("detection", len(self.class_names))
        self.format, self.strides = for_scenes(spec).format, spec.scene.strides
        self.batch_size = options.batch_size
        pairs = [[(_image(one), f"Annotations/{one}.xml") for one in ids] for ids in splits]
        sizes_of(files, (name for split in pairs for pair in split for name in pair))
        self.data_id, self.notes = identify_pairs(files, *pairs)
        size = self.format.size
        self._train = BoxedImages(files, splits[0], train, self.class_names, size)
        self._eval = BoxedImages(files, splits[1], evaluation, self.class_names, size)

    def adapt(self, spec: VisionModel) -> VisionModel:
        """The model as this task needs it."""
        return replace(for_scenes(spec), class_names=self.class_names)

    def batches(self, split: str, *, seed: int, round: int, epoch: int) -> Sequence[Batch]:
        """Batches of ``pixels`` fp32 [B, 3, S, S], ``boxes`` fp32 [B, K, 4] in pixels of these, ``labels`` int64 [B, K]
        (-1 where an image has fewer) and ``difficult`` bool [B, K]. In training half of the images are mirrored, as in
        torchvision's own training of FCOS, and difficult boxes are left out.
        """
        if split == "eval":
            return RowBatches(self._eval_batch, torch.arange(len(self._eval)), EVAL_BATCH, in_workers=True)
        if split != "train":
            raise ValueError(f"no split {split!r}: train or eval")
        mirrored = torch.rand(len(self._train), generator=generator(seed, "augment", round, epoch)) < 0.5
        order = torch.randperm(len(self._train), generator=generator(seed, "order", round, epoch))
        return RowBatches(
            lambda rows: self._train_batch(rows, mirrored), order, self.batch_size, drop_single=True, in_workers=True
        )

    def _eval_batch(self, rows: Tensor) -> Batch:
        images = self._eval
        return {
            "pixels": normalised(images.pixels[rows], self.format),
            "boxes": _padded([images.boxes[row] for row in rows], 0.0),
            "labels": _padded([images.labels[row] for row in rows], NO_BOX),
            "difficult": _padded([images.difficult[row] for row in rows], False),
        }

    def _train_batch(self, rows: Tensor, mirrored: Tensor) -> Batch:
        images, size = self._train, self.format.size
        pixels = images.pixels[rows]
        flipped = mirrored[rows]
        pixels = torch.where(flipped[:, None, None, None], pixels.flip(-1), pixels)
        kept = [~images.difficult[row] for row in rows]
        boxes = [images.boxes[row][keep] for row, keep in zip(rows, kept, strict=True)]
        boxes = [_mirror(box, size) if flip else box for box, flip in zip(boxes, flipped, strict=True)]
        return {
            "pixels": normalised(pixels, self.format),
            "boxes": _padded(boxes, 0.0),
            "labels": _padded([images.labels[row][keep] for row, keep in zip(rows, kept, strict=True)], NO_BOX),
        }

    def loss(self, model: nn.Module, batch: Batch, *, step: int) -> Tensor:
        """FCOS's loss (:meth:`sparseticket.models.detector.Detector.loss`), a scalar."""
        real = batch["labels"] != NO_BOX
        boxes = [box[keep] for box, keep in zip(batch["boxes"], real, strict=True)]
        labels = [label[keep] for label, keep in zip(batch["labels"], real, strict=True)]
        return model.loss(batch["pixels"], boxes, labels)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """``AP`` (mean over IoU 0.5 to 0.95), ``AP50`` and ``AP75``, means over the classes, as fractions.

        COCO's 101-point average precision, by torchmetrics on pycocotools. Difficult boxes are COCO's crowds: what is
        found in them is neither right nor wrong.
        """
        from torchmetrics.detection import MeanAveragePrecision

        measured = MeanAveragePrecision()
        with evaluating(model) as device:
            for batch in self.batches("eval", seed=0, round=0, epoch=0):
                found = decode(model(batch["pixels"].to(device)), self.format.size, self.strides)
                measured.update(found, _true_boxes(batch))
        result = measured.compute()
        return {ours: result[theirs].item() for ours, theirs in METRICS.items()}


def _image(name: str) -> str:
    return f"JPEGImages/{name}.jpg"


def _classes(found: list[Annotation], *, difficult: bool = True) -> set[str]:
    """The classes of the boxes, with or without difficult ones."""
    return {name for one in found for name, hard in zip(one.names, one.difficult, strict=True) if difficult or not hard}


def _true_boxes(batch: Batch) -> list[dict[str, Tensor]]:
    real = batch["labels"] != NO_BOX
    return [
        {"boxes": boxes[keep], "labels": labels[keep], "iscrowd": difficult[keep].long()}
        for boxes, labels, difficult, keep in zip(
            batch["boxes"], batch["labels"], batch["difficult"], real, strict=True
        )
    ]


def _mirror(boxes: Tensor, size: int) -> Tensor:
    """x1, y1, x2, y2 [K, 4] as they are in an image of ``size`` pixels whose left is its right."""
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack([size - x2, y1, size - x1, y2], 1)


def _padded(parts: list[Tensor], value: float) -> Tensor:
    return pad_sequence(parts, batch_first=True, padding_value=value)
