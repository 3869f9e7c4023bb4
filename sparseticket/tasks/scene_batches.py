"""What tasks on whole scenes share: pixels scaled and normalised, an evaluation that leaves modes as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as VF

from sparseticket.models.vision import ImageFormat, VisionModel
from sparseticket.tasks.base import Batch

EVAL_BATCH = 8


def for_scenes(spec: VisionModel) -> VisionModel:
    """The model for scenes: at the size that its family sees them in (``models/stages.py``)."""
    return spec.for_images(spec.scene.size)


def normalised(pixels: Tensor, format: ImageFormat) -> Tensor:
    """uint8 [B, 3, S, S] as the model takes it: fp32, (x / 255 - mean) / std, channels last."""
    scaled = VF.to_dtype(pixels, torch.float32, scale=True)
    return VF.normalize(scaled, list(format.mean), list(format.std)).contiguous(memory_format=torch.channels_last)


class SceneBatches(Sequence[Batch]):
    """Batches made when asked for: ``make(rows)`` for each part of ``order``, int64 [N].

    In training (``drop_single``) a last batch of one image is left out: BatchNorm has no variance to speak of there.
    """

    in_workers = True

    def __init__(self, make: Callable[[Tensor], Batch], order: Tensor, batch_size: int, *, drop_single: bool) -> None:
        self.make = make
        self.rows = order.split(batch_size)
        if drop_single and len(self.rows) > 1 and len(self.rows[-1]) == 1:
            self.rows = self.rows[:-1]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        return self.make(self.rows[index])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """Evaluation mode without gradients inside, the modes that were afterwards; gives the model's device."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield next(model.parameters()).device
    finally:
        for part, training in modes:
            part.training = training
