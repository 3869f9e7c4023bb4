"""MoCo v2 (Chen et al. 2020, arXiv 2003.04297; He et al. 2020, arXiv 1911.05722) as a task.

A second encoder, which follows the trained one slowly, makes keys; a queue holds those of past batches.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseticket.errors import UserError
from sparseticket.models.vision import VisionModel
from sparseticket.seeds import derive, generator
from sparseticket.tasks import register
from sparseticket.tasks.base import Batch, TaskOptions
from sparseticket.tasks.contrast import gathered, info_nce, processes
from sparseticket.tasks.pretraining import DIMENSIONS, PreTraining
from sparseticket.tasks.two_views import moco_view

KEY_GROUPS = 8  # the paper's GPUs: so many shares of a batch of keys had BatchNorm statistics of their own


OPTIONS = ("temperature", "queue", "key_momentum", "order", "blur")


@register("moco", kind="vision", recipe="cvpr21/moco", options=OPTIONS)
class MoCo(PreTraining):
    """Settings of its own: ``temperature``, ``queue``, ``key_momentum``, ``order``, ``blur``.

    Every training begins with the momentum encoder at the rewound weights, as the code released with arXiv 2012.06908
    rewinds both, and with a queue of random keys. Keys are encoded in another order than queries and in 8 groups (over
    several processes, each has its share), so that BatchNorm's statistics do not give away which belong together.
    """

    name = "moco"

    def __init__(self, spec: VisionModel, options: TaskOptions) -> None:
        super().__init__(spec, options)
        if options.queue < options.batch_size:
            raise UserError(
                f"moco's queue holds {options.queue} keys, fewer than a batch of {options.batch_size}: give a larger "
                "--queue."
            )
        self.view = moco_view(self.format.size, blur=options.blur)

    def batches(self, split: str, *, seed: int, round: int, epoch: int) -> Sequence[Batch]:
        """See :meth:`PreTraining.batches`; in training, "other" is in another order, and "place" says where."""
        batches = super().batches(split, seed=seed, round=round, epoch=epoch)
        if split != "train":
            return batches
        return ShuffledKeys(batches, derive(seed, "keys", round, epoch), processes())

    def begin(self, model: nn.Module, *, seed: int, round: int) -> Sequence[nn.Module]:
        """See :meth:`sparseticket.tasks.base.Task.begin`: the momentum encoder is the network that is kept beside."""
        super().begin(model, seed=seed, round=round)
        self.encoder = copy.deepcopy(model).requires_grad_(False).train()
        draws = torch.randn(self.options.queue, DIMENSIONS, generator=generator(seed, "queue", round))
        self.queue = F.normalize(draws, dim=1).to(next(model.parameters()).device)
        self.oldest = 0
        return (self.encoder,)

    def loss(self, model: nn.Module, batch: Batch, *, step: int) -> Tensor:
        """InfoNCE of the queries against their keys and the queue."""
        queries = F.normalize(model(batch["pixels"]).float(), dim=1)
        with torch.no_grad():
            groups = max(1, KEY_GROUPS // processes())
            mine = torch.cat([self.encoder(part) for part in batch["other"].chunk(groups)])
            self.keys = gathered(F.normalize(mine.float(), dim=1))
        return info_nce(queries, self.keys[batch["place"]], self.queue, self.options.temperature)

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        """The momentum encoder follows, and the step's keys take the place of the oldest."""
        followed = dict(model.named_parameters())
        for name, parameter in self.encoder.named_parameters():
            parameter.lerp_(followed[name], 1 - self.options.key_momentum)
        place = (torch.arange(len(self.keys)) + self.oldest) % len(self.queue)
        self.queue[place.to(self.queue.device)] = self.keys
        self.oldest = (self.oldest + len(self.keys)) % len(self.queue)

    def state_dict(self) -> dict[str, Any]:
        """The momentum encoder, the queue, and where its oldest keys are."""
        encoder = {f"encoder.{name}": tensor for name, tensor in self.encoder.state_dict().items()}
        return {**encoder, "queue": self.queue, "oldest": torch.tensor(self.oldest)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` gave, after :meth:`begin`.

        Raises:
            UserError: it is of another network or another queue.
        """
        encoder = {name.removeprefix("encoder."): t for name, t in state.items() if name.startswith("encoder.")}
        shapes = {name: tensor.shape for name, tensor in encoder.items()}
        fits = shapes == {name: tensor.shape for name, tensor in self.encoder.state_dict().items()}
        if not fits or "oldest" not in state or getattr(state.get("queue"), "shape", None) != self.queue.shape:
            raise UserError("the checkpoint holds no state of this MoCo training: remove it, and run again.")
        self.encoder.load_state_dict(encoder)
        self.queue.copy_(state["queue"])
        self.oldest = int(state["oldest"])


class ShuffledKeys(Sequence[Batch]):
    """Batches whose "other" is shuffled; "place", int64 [B], is where each image's own one lies after gathering."""

    in_workers = True

    def __init__(self, batches: Sequence[Batch], seed: int, processes: int) -> None:
        self.batches, self.seed, self.processes = batches, seed, processes

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        batch = self.batches[index]
        order = torch.randperm(len(batch["other"]), generator=generator(self.seed, index))
        own = order.argsort()
        # process p of P gets rows p, p + P, … of a batch, and gathering puts the processes one after another
        place = own % self.processes * (len(own) // self.processes) + own // self.processes
        return {**batch, "other": batch["other"][order], "place": place}
