"""A network whose answers are infinite or NaN has no score: an argmax over NaN names a class like any other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from sparseticket.errors import RunFailure


@contextmanager
def finite_answers(network: nn.Module) -> Iterator[None]:
    """Watch every answer that ``network`` gives inside the block: tensors, also inside dicts, lists and tuples.

    Raises:
        RunFailure: one of them was not finite. Said at the end of the block, instead of an error over it there.
    """
    fine: list[Tensor] = []  # read once at the end: no step waits for the device

    def look(module: nn.Module, inputs: object, answer: object) -> None:
        fine.extend(tensor.isfinite().all() for tensor in _tensors(answer) if tensor.is_floating_point())

    hook = network.register_forward_hook(look)
    try:
        yield
    except Exception as error:
        _refuse_unless(all(fine), error)
        raise
    else:
        _refuse_unless(all(fine))
    finally:
        hook.remove()


def _refuse_unless(finite: bool, error: Exception | None = None) -> None:
    if not finite:
        raise RunFailure(
            "the network answers the evaluation with infinite or NaN values, which have no score: its weights, or its "
            "BatchNorm's statistics, are damaged or have grown too large. What is finished is kept; a lower --lr in a "
            "new folder may help."
        ) from error


def _tensors(answer: object) -> Iterator[Tensor]:
    if isinstance(answer, Tensor):
        yield answer
    elif isinstance(answer, Mapping):  # transformers' outputs are
        answer = tuple(answer.values())
    if isinstance(answer, Sequence) and not isinstance(answer, str):
        for part in answer:
            yield from _tensors(part)
