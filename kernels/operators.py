"""Operators of ``torch.library`` that run without the library where nothing needs it.

Tracing, dispatch modes, transforms and subclasses of Tensor need an operator; what is called from Python on plain
tensors does not, and it costs as much as several launches: ``python -m sparseticket.bench.launch_cost``. (A
TorchFunctionMode does not see such a call.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch._ops import _len_torch_dispatch_stack_pre_dispatch
from torch.autograd.function import FunctionCtx
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
        tensors = [each for each in inputs if isinstance(each, Tensor)]
        if not called_plainly(tensors):
            return self._overload(*inputs)
        if not torch.is_grad_enabled() or not any(each.requires_grad for each in tensors):
            return self._body(*inputs)
        if self._function is None:
            return self._overload(*inputs)  # which says that it has no gradient
        return self._function.apply(*inputs)

    def register_autograd(
        self, backward: Callable[..., Any], *, setup_context: Callable[[FunctionCtx, tuple, Any], None]
    ) -> None:
        """As :func:`torch.library.register_autograd`, for both ways of calling it.

        ``backward`` runs in grad mode where gradients are differentiated again (``create_graph``). What it calls then
        goes through the library, whose operators without a gradient raise when they are asked for one.
        """
        torch.library.register_autograd(self._name, backward, setup_context=setup_context)
        name = self._name.replace("::", "_")
        body = self._body

        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx: FunctionCtx, *inputs: Any) -> Any:
                output = body(*inputs)
                setup_context(ctx, inputs, output)
                return output

            @staticmethod
            def backward(ctx: FunctionCtx, *gradients: Tensor | None) -> tuple:
                return backward(ctx, *gradients)

        Function.__name__ = Function.__qualname__ = name  # of the node in graphs, profiles and anomalies
        self._function = Function


def operator(name: str) -> Callable[[Body], Operator]:
    """Make the decorated function an :class:`Operator`."""
    return lambda body: Operator(name, body)


class OpaqueOperator:
    """The same of lists of tensors, some of which it writes in place; no tracer looks into it, and it has no gradient.

    It looks at addresses of tensors, which cannot be traced. Its first two lists (weights and gradients, all that users
    make) say whether it is called plainly.
    """

    def __init__(self, name: str, body: Body, mutates: Sequence[str]) -> None:
        self._body = body
        self._library = torch.library.custom_op(f"sparseticket::{name}", body, mutates_args=mutates)
        self._written = [place for place, given in enumerate(signature(body).parameters) if given in mutates]
        self.register_fake = self._library.register_fake

    def __call__(self, *inputs: Any) -> Any:
        """Its result, through the library only where that is needed."""
        if torch.is_grad_enabled() or not called_plainly([*inputs[0], *inputs[1]]):
            return self._library(*inputs)
        result = self._body(*inputs)
        torch.autograd.graph.increment_version([tensor for place in self._written for tensor in inputs[place]])
        return result


def opaque_operator(name: str, *, mutates: Sequence[str] = ()) -> Callable[[Body], OpaqueOperator]:
    """Make the decorated function an :class:`OpaqueOperator`, which writes the lists of these names."""
    return lambda body: OpaqueOperator(name, body, mutates)


def called_plainly(tensors: Sequence[Tensor]) -> bool:
    """True where a call with these needs nothing of the library: the first one says where it runs."""
    return (
        not torch.compiler.is_compiling()
        and runs_kernel(tensors[0])
        and _get_current_dispatch_mode() is None
        and _len_torch_dispatch_stack_pre_dispatch() == 0
        and not torch._C._are_functorch_transforms_active()
        and not torch.jit.is_tracing()
        and all(map(is_plain, tensors))
    )
