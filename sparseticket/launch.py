"""The processes of one ``torchrun`` or ``accelerate launch`` that share batches: how they meet."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from sparseticket.errors import UserError

if TYPE_CHECKING:
    from accelerate import PartialState


def meet() -> PartialState:
    """Who this process is among those of its launch; the first call waits for them.

    On a machine without a GPU, Accelerate has to be told that there are several, or each takes itself for the only one.

    Raises:
        UserError: the processes do not find each other.
    """
    from accelerate import PartialState

    launched = os.environ.get("WORLD_SIZE") or "1"
    several = launched != "1" and "LOCAL_RANK" in os.environ
    try:
        state = PartialState(cpu=several and not torch.accelerator.is_available())
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the processes of this launch do not find each other ({error}): start them by torchrun or accelerate "
            "launch, or unset LOCAL_RANK, RANK and WORLD_SIZE."
        ) from error
    if launched != str(state.num_processes):
        raise UserError(
            f"WORLD_SIZE says {launched} processes, and {state.num_processes} have met: each would train by itself in "
            "the same folder. Start them by torchrun or accelerate launch, or unset WORLD_SIZE."
        )
    return state
