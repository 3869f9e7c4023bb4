"""Everything that one network is trained with: built from names once, then used for every training of a command."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sparseticket.data_places import is_there
from sparseticket.errors import RunFailure, UserError
from sparseticket.finite import finite_answers
from sparseticket.masks import Masks
from sparseticket.models import ModelSpec, Network, resolve
from sparseticket.models.base import POOLER
from sparseticket.permute import permute
from sparseticket.rewind import Origin, head_state
from sparseticket.settings import RANDOM, Protocol
from sparseticket.tasks import Task, TaskOptions, make_task

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from sparseticket.progress import Screen


@dataclass
class Workbench:
    """A model with a task's head, the task, and the copy of where both began."""

    spec: ModelSpec
    task: Task
    network: Network
    origin: Origin
    accelerator: Accelerator
    screen: Screen
    unpermuted: dict[str, str] | None = None

    @classmethod
    def build(
        cls,
        model: str,
        task: str,
        options: TaskOptions,
        *,
        seed: int,
        weights: Path | None,
        accelerator: Accelerator,
        screen: Screen,
    ) -> Workbench:
        """Read the data, build the network with its head drawn from ``seed``, and copy its state."""
        if options.data is not None and not is_there(options.data):
            raise UserError(f"there is no file or folder {options.data}: give the data's place with --data.")
        spec = resolve(model)
        if weights is not None and str(weights) == RANDOM:
            spec, weights = spec.from_scratch(), None
        if weights is not None and not weights.is_file():
            raise UserError(f"there is no file {weights}: give the weights' file with --weights.")
        made = make_task(task, spec, options)
        if adapt := getattr(made, "adapt", None):  # images of 32 × 32 give a torchvision ResNet a smaller stem
            spec = adapt(spec)
        network = spec.build(made.head, seed=seed, weights=weights)
        for note in (*made.notes, *network.notes):
            screen.note(note)
        return cls(spec, made, network, Origin.of(network), accelerator, screen)

    @property
    def random_backbone(self) -> bool:
        """True when nothing was pre-trained: θ is a state drawn from the seed and has to be kept in a file."""
        return not self.network.pretrained

    def theta(self) -> dict[str, str]:
        """θ's identity: hashes of what came from the pre-trained file, or of all where nothing did; unpermuted."""
        return self.unpermuted or self.origin.theta(self.network.pretrained or frozenset(self.origin.backbone))

    def copy(self) -> Workbench:
        """Another network at the same θ and γ, for the same task."""
        module = copy.deepcopy(self.network.module)
        return replace(self, network=replace(self.network, module=module))

    @torch.no_grad()
    def begin_at(self, tensors: Mapping[str, Tensor]) -> None:
        """Let these tensors of the backbone, by name inside it, be what trainings begin with."""
        backbone = self.network.backbone()
        for name, tensor in tensors.items():
            backbone[name].copy_(tensor)
        self.origin = Origin.of(self.network)

    @torch.no_grad()
    def take_head(self, other: Workbench) -> None:
        """Let the other's head be what trainings begin with."""
        mine, theirs = head_state(self.network), head_state(other.network)
        for name, tensor in theirs.items():
            mine[name].copy_(tensor)
        self.origin = Origin.of(self.network)

    def permute(self, permutations: dict[str, Tensor]) -> None:
        """Permute the network, head included, as a ticket says; trainings begin there, and θ's identity stays."""
        if permutations:
            self.unpermuted = self.theta()
            permute(self.network, permutations)
            self.origin = Origin.of(self.network)

    def prunable(self, protocol: Protocol) -> dict[str, torch.nn.Parameter]:
        """The weights that this protocol prunes, by name inside the backbone: those that belong to θ."""
        backbone, theta = self.network.backbone(), self.theta()
        chosen = [
            name
            for name in self.network.prunable
            if name in theta and (protocol.prune_pooler or not name.startswith(POOLER))
        ]
        if not chosen:
            raise UserError(f"{self.spec.name!r} has no weights to prune: none of its matrices came with its weights.")
        return {name: backbone[name] for name in chosen}

    def evaluate(self) -> dict[str, float]:
        """The task's metrics of the network as it is; :class:`RunFailure` where its answers are not finite."""
        module = self.network.module.to(self.accelerator.device)
        with finite_answers(module):
            metrics = self.task.evaluate(module)
        return {name: float(value) for name, value in metrics.items()}

    def same_on_every_process(self, masks: Masks) -> None:
        """Raise :class:`RunFailure` unless all processes hold the same masks."""
        if self.accelerator.num_processes == 1:
            return
        from accelerate.utils import gather_object

        from sparseticket.theta import tensor_hashes

        mine = sorted(tensor_hashes(masks).items())
        if any(other != mine for other in gather_object([mine])):
            raise RunFailure("the processes pruned to different masks: their weights have drifted apart.")
