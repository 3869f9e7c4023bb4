"""Segmentation: a class for every pixel; mean intersection over union."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassJaccardIndex
from torchvision import tv_tensors
from torchvision.transforms import v2

from sparseticket.errors import UserError
from sparseticket.models import Head
from sparseticket.models.base import HeadKind
from sparseticket.models.vision import VisionModel
from sparseticket.seeds import derive, generator
from sparseticket.tasks import register
from sparseticket.tasks.base import Batch, Stateless, TaskOptions
from sparseticket.tasks.contrast import processes
from sparseticket.tasks.data_identity import identify_pairs
from sparseticket.tasks.evaluating import evaluating
from sparseticket.tasks.image_pixels import normalised, resize_to
from sparseticket.tasks.mask_files import LAYOUT, VOID, MaskedImages, find_layout
from sparseticket.tasks.row_batches import RowBatches
from sparseticket.tasks.scenes import EVAL_BATCH, for_scenes

CROP = (0.25, 1.0)  # of the image's area: sides of a half to all of it


class Segmentation(Stateless):
    """``--data``: a folder, zip or tar in CamVid's layout or in Pascal VOC's, or one around it.

    The decoder is that of ``head``: DeepLabv3+ (``segmentation``) or DeepLabv3 (``segmentation-v3``).
    """

    metric = "mIoU"

    def __init__(self, head: HeadKind, spec: VisionModel, options: TaskOptions) -> None:
        if options.data is None:
            raise UserError(f"task {head} needs --data: a folder, zip or tar with {LAYOUT}.")
        if options.batch_size == 1:
            raise UserError(f"task {head} needs --batch-size 2 or more: BatchNorm has no variance over one image.")
        self.name = head
        layout = find_layout(options.data)
        self._train, self._eval = MaskedImages(layout, layout.train), MaskedImages(layout, layout.evaluation)
        self.class_names = layout.classes
        self.head = Head(head, len(layout.classes))
        self.data_id, self.notes = identify_pairs(layout.files, layout.train, layout.evaluation)
        self.format = for_scenes(spec).format
        self.batch_size = options.batch_size
        size = self.format.size
        self._view = v2.Compose([v2.RandomResizedCrop(size, CROP, antialias=True), v2.RandomHorizontalFlip()])
        self._whole = resize_to(size)

    def adapt(self, spec: VisionModel) -> VisionModel:
        """The model as this task needs it."""
        return replace(for_scenes(spec), class_names=self.class_names)

    def begin(self, model: nn.Module, *, seed: int, round: int) -> Sequence[nn.Module]:
        """See :meth:`sparseticket.tasks.base.Task.begin`; refuses batches of which a process would have one image."""
        for rows in self.batches("train", seed=seed, round=round, epoch=0).rows if processes() > 1 else ():
            if len(rows) < 2 * processes():
                raise UserError(
                    f"task {self.name} over {processes()} processes leaves one of them a single image of a batch of "
                    f"{len(rows)}, over which BatchNorm has no variance: choose a --batch-size by which each process "
                    f"has two or more, also of the last batch (there are {len(self._train)} images)."
                )
        return ()

    def batches(self, split: str, *, seed: int, round: int, epoch: int) -> Sequence[Batch]:
        """In training ``pixels`` fp32 [B, 3, S, S] and ``masks`` int64 [B, S, S] of random crops, half are flipped.

        In evaluation ``pixels`` of whole images brought to S, and ``rows`` int64 [B]: which images they are of.
        """
        if split == "eval":
            return RowBatches(self._eval_batch, torch.arange(len(self._eval)), EVAL_BATCH, in_workers=True)
        if split != "train":
            raise ValueError(f"no split {split!r}: train or eval")
        if len(self._train) == 1:
            raise UserError(
                f"task {self.name} has one image to train on, and needs two: BatchNorm has no variance over one."
            )
        order = torch.randperm(len(self._train), generator=generator(seed, "order", round, epoch))
        draws = derive(seed, "augment", round, epoch)
        return RowBatches(
            lambda rows: self._train_batch(rows, draws), order, self.batch_size, drop_single=True, in_workers=True
        )

    def _eval_batch(self, rows: Tensor) -> Batch:
        pixels = torch.stack([self._whole(self._eval[row][0]) for row in rows.tolist()])
        return {"pixels": normalised(pixels, self.format), "rows": rows}

    def _train_batch(self, rows: Tensor, draws: int) -> Batch:
        with torch.random.fork_rng(devices=[]):
            views = [self._drawn_view(row, derive(draws, row)) for row in rows.tolist()]
        images, masks = (torch.stack(part) for part in zip(*views, strict=True))
        return {"pixels": normalised(images, self.format), "masks": masks.long()}

    def _drawn_view(self, row: int, seed: int) -> tuple[Tensor, Tensor]:
        torch.default_generator.manual_seed(seed)
        image, mask = self._train[row]
        seen = self._view(tv_tensors.Image(image), tv_tensors.Mask(mask))
        return tuple(part.as_subclass(Tensor) for part in seen)

    def loss(self, model: nn.Module, batch: Batch, *, step: int) -> Tensor:
        """Mean cross-entropy of the pixels that are not void, a scalar; 0 where all are."""
        masks = batch["masks"]
        summed = F.cross_entropy(model(batch["pixels"]), masks, ignore_index=VOID, reduction="sum")
        return summed / (masks != VOID).sum().clamp(min=1)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """``mIoU`` over all pixels but void ones, in each mask's own size, and the share of them that is right.

        Mean over the classes that the masks or the answers have, of one confusion matrix over all images.
        """
        jaccard = MulticlassJaccardIndex(self.head.classes, ignore_index=VOID, validate_args=False)
        with evaluating(model) as device:
            for batch in self.batches("eval", seed=0, round=0, epoch=0):
                for row, logits in zip(batch["rows"].tolist(), model(batch["pixels"].to(device)).cpu(), strict=True):
                    mask = self._eval[row][1]
                    answer = F.interpolate(logits[None].float(), mask.shape, mode="bilinear", align_corners=False)
                    jaccard.update(answer.argmax(1), mask[None].long())
        counts = jaccard.confmat.double()
        return {"mIoU": jaccard.compute().item(), "pixel accuracy": (counts.trace() / counts.sum().clamp(min=1)).item()}


@register("segmentation", kind="vision", recipe="cvpr21/segmentation")
def _plus(spec: VisionModel, options: TaskOptions) -> Segmentation:
    return Segmentation("segmentation", spec, options)


@register("segmentation-v3", kind="vision", recipe="cvpr21/segmentation-v3")
def _v3(spec: VisionModel, options: TaskOptions) -> Segmentation:
    return Segmentation("segmentation-v3", spec, options)
