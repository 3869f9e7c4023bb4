"""What every image classification task shares: batches, loss and accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from sparseticket.models import Head
from sparseticket.models.vision import VisionModel
from sparseticket.seeds import generator
from sparseticket.tasks.base import Batch, Stateless
from sparseticket.tasks.evaluating import evaluating
from sparseticket.tasks.image_pixels import Pixels, ShiftedPixels, normalised
from sparseticket.tasks.prefetch import made_ahead
from sparseticket.tasks.row_batches import RowBatches

SMALL_SIDE = 64  # pixels; larger images are augmented and evaluated as ImageNet is
EVAL_BATCH_SMALL, EVAL_BATCH_LARGE = 500, 64  # 64 images of 224x224 keep ResNet-50's activations near 1 GB


@dataclass(frozen=True)
class Split:
    """Images and their classes, int64 [N]."""

    pixels: Pixels
    labels: Tensor


class ImageTask(Stateless):
    """Classification of images. A subclass reads its data and calls this constructor.

    ``side`` is that of the images, in pixels, where they decide the input's size: a torchvision ResNet gets the 3x3
    stem for small ones. None leaves that to the model.
    """

    metric = "accuracy"
    side: int | None = None

    def __init__(
        self,
        name: str,
        *,
        spec: VisionModel,
        train: Split,
        evaluation: Split,
        class_names: Sequence[str],
        data_id: str,
        batch_size: int,
        shift: bool = True,
        flip: bool = True,
    ) -> None:
        self.name = name
        self.head = Head("image-classification", len(class_names))
        self.class_names = tuple(class_names)
        self.data_id = data_id
        self.format = self.adapt(spec).format
        self.batch_size = batch_size
        self.shift, self.flip = shift, flip
        self._train, self._eval = train, evaluation

    def adapt(self, spec: VisionModel) -> VisionModel:
        """The model as this task needs it: with the task's class names, and a stem for the size of its images."""
        if self.side is not None and spec.format.size != self.side:
            spec = spec.for_images(self.side)
        return replace(spec, class_names=self.class_names)

    def augmented(self, *, seed: int, round: int, epoch: int) -> Pixels:
        """The training images as they look in this epoch: as they are, or shifted and perhaps mirrored."""
        if not self.shift:
            return self._train.pixels
        return ShiftedPixels(self._train.pixels, flip=self.flip, seed=seed, round=round, epoch=epoch)

    def batches(self, split: str, *, seed: int, round: int, epoch: int) -> Sequence[Batch]:
        """See :class:`sparseticket.tasks.base.Task`: ``{"pixels": float32 [B, 3, S, S], "labels": int64 [B]}``."""
        if split == "eval":
            size = EVAL_BATCH_SMALL if self.format.size <= SMALL_SIDE else EVAL_BATCH_LARGE
            return self._batches(self._eval, torch.arange(len(self._eval.labels)), size)
        if split != "train":
            raise ValueError(f"no split {split!r}: train or eval")
        order = torch.randperm(len(self._train.labels), generator=generator(seed, "order", round, epoch))
        augmented = Split(self.augmented(seed=seed, round=round, epoch=epoch), self._train.labels)
        return self._batches(augmented, order, self.batch_size, drop_single=True)

    def _batches(self, split: Split, order: Tensor, size: int, *, drop_single: bool = False) -> RowBatches:
        def make(rows: Tensor) -> Batch:
            return {"pixels": normalised(split.pixels[rows], self.format), "labels": split.labels[rows]}

        return RowBatches(make, order, size, drop_single=drop_single, in_workers=True)

    def loss(self, model: nn.Module, batch: Batch, *, step: int) -> Tensor:
        """Mean cross-entropy, a scalar."""
        return F.cross_entropy(model(batch["pixels"]), batch["labels"])

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """``{"accuracy": share of the evaluation images that are classified right}``, on the model's device."""
        with evaluating(model) as device:
            accuracy = MulticlassAccuracy(self.head.classes, average="micro").to(device)
            for batch in made_ahead(self.batches("eval", seed=0, round=0, epoch=0), device):
                accuracy.update(model(batch["pixels"].to(device)), batch["labels"].to(device))
            return {"accuracy": accuracy.compute().item()}
