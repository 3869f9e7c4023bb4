"""What tasks on whole scenes share: the model at their size, and batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from sparseticket.models.vision import VisionModel
from sparseticket.tasks.base import Batch

EVAL_BATCH = 8


def for_scenes(spec: VisionModel) -> VisionModel:
    """The model for scenes: at the size that its family sees them in (``models/stages.py``)."""
    return spec.for_images(spec.scene.size)


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
