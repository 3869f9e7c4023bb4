"""SimCLR (Chen et al. 2020, arXiv 2002.05709) as a task: two views of an image are to be alike, all others not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparseticket.errors import UserError
from sparseticket.models.vision import VisionModel
from sparseticket.tasks import register
from sparseticket.tasks.base import Batch, TaskOptions
from sparseticket.tasks.contrast import gathered, nt_xent
from sparseticket.tasks.pretraining import PreTraining
from sparseticket.tasks.two_views import simclr_view


@register("simclr", kind="vision", recipe="cvpr21/simclr", options=("temperature", "nt_xent", "order", "blur"))
class SimCLR(PreTraining):
    """Settings of its own: ``temperature``, ``nt_xent``, ``order``, ``blur``.

    Over several processes the loss is that of the whole batch; BatchNorm's statistics are each process's own.
    """

    name = "simclr"

    def __init__(self, spec: VisionModel, options: TaskOptions) -> None:
        if options.batch_size < 2:
            raise UserError("simclr tells an image from the others of its batch: give a --batch-size of 2 or more.")
        super().__init__(spec, options)
        self.view = simclr_view(self.format.size, blur=options.blur)

    def loss(self, model: nn.Module, batch: Batch, *, step: int) -> Tensor:
        """NT-Xent of the projections of both views, which go through the network as one batch."""
        pixels = torch.cat([batch["pixels"], batch["other"]])
        first, second = model(pixels).chunk(2)
        return nt_xent(gathered(first), gathered(second), self.options.temperature, self.options.nt_xent)
