"""The one place where training reaches for the kernels: layers and optimizer, where they were measured to be faster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from sparseticket.masks import Masks
from sparseticket.models import Network
from sparseticket.settings import Training

if TYPE_CHECKING:
    from sparseticket.kernels.dispatch import Table
    from sparseticket.progress import Screen

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def can_use_kernels(device: torch.device) -> bool:
    """True where there is something to choose between: on a GPU."""
    return device.type == "cuda"


def say_where_not(screen: Screen, settings: Training, device: torch.device) -> None:
    """Say once that there is nothing to choose between, where kernels were not turned off."""
    if settings.kernels == "auto" and not can_use_kernels(device):
        screen.note("no GPU, so --kernels auto changes nothing: every layer trains dense, with zeros in place.")


@contextmanager
def layers_on_kernels(
    network: Network, masks: Masks, settings: Training, *, processes: int, use: bool
) -> Iterator[list[str]]:
    """Let the network's layers train on kernels inside, after measuring those of which this GPU's table says nothing.

    Gives the buffers that hold where live blocks are: the same in every process, and not for DDP to broadcast. Without
    ``use`` nothing changes.
    """
    if not use:
        yield []
        return
    from sparseticket.kernels import restore, use_kernels

    rows = max(1, settings.batch_size // processes) * settings.max_length
    named = {network.prefix + name: mask for name, mask in masks.items()}
    before = {name for name, _ in network.module.named_buffers()}
    use_kernels(network.module, named, dtype=DTYPES[settings.precision], measure_rows=(max(1, rows // 4), rows))
    try:
        yield [name for name, _ in network.module.named_buffers() if name not in before]
    finally:
        restore(network.module)


def masked_optimizer(
    network: Network, masks: Masks, settings: Training, table: Table | None = None
) -> torch.optim.Optimizer | None:
    """The optimizer that masks and clips as it steps; None where it was not measured to be faster.

    Args:
        network: on its device.
        masks: by name inside the backbone.
        settings: of which the optimizer's are taken.
        table: what was measured; by default that of this GPU.
    """
    from sparseticket.kernels import MaskedAdamW
    from sparseticket.kernels.dispatch import OPTIMIZER, Choice, decided_by_one, table_for

    backbone = network.backbone()
    parameters = [parameter for parameter in network.module.parameters() if parameter.requires_grad]
    device = parameters[0].device
    weights = sum(parameter.numel() for parameter in parameters)
    dead = sum(int((~mask).sum()) for mask in masks.values())

    def decide() -> Choice:
        known = table or table_for(device)
        return known.choose(OPTIMIZER, weights, 1 - dead / weights) if known else Choice()

    if settings.optimizer != "adamw" or decided_by_one(decide) == Choice():
        return None
    by_parameter: dict[nn.Parameter, torch.Tensor] = {backbone[name]: mask for name, mask in masks.items()}
    return MaskedAdamW(parameters, by_parameter, lr=settings.lr, eps=settings.eps, weight_decay=settings.weight_decay)
