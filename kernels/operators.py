"""Operators of ``torch.library`` that run without the library where nothing needs it.

Tracing, dispatch modes, transforms and subclasses of Tensor need an operator; what is called from Python on plain
tensors does not, and it costs as much as several launches: ``python -m sparseticket.bench.launch_cost``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.utils._python_dispatch import _get_current_dispatch_mode

from sparseticket.kernels.launch import is_plain, runs_kernel

Body = Callable[..., Any]


class Operator:
    """A function ``sparseticket::name`` of tensors (the first one says where it runs), numbers, lists and None."""

    def __init__(self, name: str, body: Body) -> None:
        self._body = body
        self._name = f"sparseticket::{name}"
        torch.library.triton_op(self._name, body, mutates_args=())
        self._overload = getattr(torch.ops.sparseticket, name).default
        self._function: type[torch.autograd.Function] | None = None

    def __call__(self, *inputs: Any) -> Any:
        """Its result, through the library only where that is needed."""
        if not _called_plainly(inputs):
            return self._overload(*inputs)
        if not torch.is_grad_enabled() or not any(isinstance(each, Tensor) and each.requires_grad for each in inputs):
            return self._body(*inputs)
        if self._function is None:
            return self._overload(*inputs)  # which says that it has no gradient
        return self._function.apply(*inputs)

    def register_autograd(
        self, backward: Callable[..., Any], *, setup_context: Callable[[FunctionCtx, tuple, Any], None]
    ) -> None:
        """As :func:`torch.library.register_autograd`, for both ways of calling it."""
        torch.library.register_autograd(self._name, backward, setup_context=setup_context)
        body, backward_once = self._body, once_differentiable(backward)

        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx: FunctionCtx, *inputs: Any) -> Any:
                output = body(*inputs)
                setup_context(ctx, inputs, output)
                return output

            @staticmethod
            def backward(ctx: FunctionCtx, *gradients: Tensor | None) -> tuple:
                return backward_once(ctx, *gradients)

        self._function = Function


def operator(name: str) -> Callable[[Body], Operator]:
    """Make the decorated function an :class:`Operator`."""
    return lambda body: Operator(name, body)


def _called_plainly(inputs: tuple[Any, ...]) -> bool:
    return (
        not torch.compiler.is_compiling()
        and runs_kernel(inputs[0])
        and _get_current_dispatch_mode() is None
        and not torch._C._are_functorch_transforms_active()
        and not torch.jit.is_tracing()
        and all(is_plain(each) for each in inputs if isinstance(each, Tensor))
    )
