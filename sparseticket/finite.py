"""A network whose answers are infinite or NaN has no score: an argmax over NaN names a class like any other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from sparseticket.errors import RunFailure


@contextmanager
def finite_answers(network: nn.Module) -> Iterator[None]:
    """Watch every answer that ``network`` gives inside the block.

    Raises:
        RunFailure: one of them was not finite. Said at the end of the block, instead of what broke over it there.
    """
    fine: list[Tensor] = []  # read once at the end: no step waits for the device

    def look(module: nn.Module, inputs: object, answer: object) -> None:
        fine.extend(tensor.isfinite().all() for tensor in _tensors(answer) if tensor.is_floating_point())

    hook = network.register_forward_hook(look)
    try:
        yield
    finally:
        hook.remove()
        if not all(fine):
            raise RunFailure(
                "the network answers the evaluation with infinite or NaN values, which have no score: its weights, or "
                "its BatchNorm's statistics, are damaged or have grown too large. What is finished is kept; a lower "
                "--lr in a new folder may help."
            )


def _tensors(answer: object) -> Iterator[Tensor]:
    if isinstance(answer, Tensor):
        yield answer
    elif isinstance(answer, Mapping):  # transformers' outputs are
        answer = tuple(answer.values())
    if isinstance(answer, Sequence) and not isinstance(answer, str):
        for part in answer:
            yield from _tensors(part)
