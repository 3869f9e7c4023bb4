"""Where a kernel runs: on a GPU, or in Triton's interpreter; everywhere else an operator's body is its reference."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

FLOATS = (torch.float16, torch.bfloat16, torch.float32)  # what kernels read
OWN = (Tensor, torch.nn.Parameter)  # torch's own types of tensors with values
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HOPPER = 9  # compute capability
AUTOCASTS = ("cpu", "cuda")  # not asked of torch: torch.amp.is_autocast_available breaks a graph of torch 2.11's dynamo


def runs_kernel(tensor: Tensor) -> bool:
    """True where an operator given ``tensor`` launches its kernel; its body returns the reference where not.

    A CPU kernel registered beside a Triton operator would be cleaner, and breaks ``torch.compile`` and AOTInductor on
    the CPU ("0 active drivers"); this works in both.
    """
    return tensor.is_cuda or INTERPRETED


class _Launchable:
    """A kernel that is launched on the device of its first tensor: Triton's own choice is the current one."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def __getitem__(self, grid: tuple[Any, ...]) -> Callable[..., Any]:
        def launch(first: Tensor, *arguments: Any, **constants: Any) -> None:
            traceable = any(isinstance(each, Tensor) and type(each) not in OWN for each in (first, *arguments))
            kernel = torch.library.wrap_triton(self._kernel) if traceable and not INTERPRETED else self._kernel
            with on_device_of(first):
                kernel[grid](first, *arguments, **constants)

        return launch


def wrap_triton(kernel: Any) -> _Launchable:
    """``kernel`` as an operator launches it: traceable by Inductor, and as it is for plain tensors.

    So named because torch looks for ``wrap_triton(a_kernel)`` in an operator's source: kernels that it finds are
    part of the key under which compiled code is cached, so that code of an older version is not taken for ours.
    """
    return _Launchable(kernel)


def is_plain(tensor: Tensor) -> bool:
    """True for a tensor whose memory holds its values, and that is neither a tracer's nor of another subclass.

    Memory does not hold the values if they are negated on reading (the imaginary part of a conjugate), if they are
    known to be 0, or if they belong to several gradients at once (``is_grads_batched``).
    """
    return type(tensor) in OWN and not (
        tensor.is_neg() or tensor._is_zerotensor() or torch._C._functorch.is_legacy_batchedtensor(tensor)
    )


def is_traced(tensor: Tensor) -> bool:
    """True for what a tracer holds in the place of a tensor: it has no values, and no address."""
    return type(tensor) not in OWN and is_fake(tensor)


_compiled_form = False


@contextmanager
def as_compiled() -> Iterator[None]:
    """Inside, what is called from Python launches its kernels in the form that they have in compiled code."""
    global _compiled_form
    before, _compiled_form = _compiled_form, True
    try:
        yield
    finally:
        _compiled_form = before


def has_compiled_form(*tensors: Tensor) -> bool:
    """True where a launch with these has to be as in compiled code: without descriptors from the CPU, and overlap."""
    return _compiled_form or any(map(is_traced, tensors))


@cache
def is_hopper_or_later(device: torch.device) -> bool:
    """Of a GPU; False of any other device."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= HOPPER


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """That device as the current one, where there are several."""
    return torch.cuda.device_of(tensor) if _several_gpus() else nullcontext()


@cache
def _several_gpus() -> bool:
    return torch.cuda.device_count() > 1


def ceil_div(number: int, by: int) -> int:
    """As ``triton.cdiv``, which takes over a microsecond where Python calls it."""
    return -(-number // by)


def fp32_precision(*, convolution: bool = False) -> str:
    """How ``tl.dot`` multiplies fp32: with TF32's 10-bit mantissa where PyTorch is allowed to, else exactly."""
    backend = torch.backends.cudnn.conv if convolution else torch.backends.cuda.matmul
    return "tf32" if backend.fp32_precision == "tf32" else "ieee"  # it says what allow_tf32 was set to, too


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Autocast off, where it is on: a packed weight has the dtype that it was packed in."""
    kind = device.type
    on = kind in AUTOCASTS and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if on else nullcontext()


def as_autocast_would(x: Tensor, *others: Tensor | None, packed: Tensor | None = None) -> tuple[Tensor | None, ...]:
    """The tensors in autocast's dtype where it is on for x's device, as ``F.linear`` would get them.

    With ``packed`` values of a weight they get its dtype instead, in which it was packed. As autocast does, this leaves
    fp64 and what is no floating point as it is.
    """
    kind = x.device.type
    if kind not in AUTOCASTS or not torch.is_autocast_enabled(kind):
        return x, *others
    dtype = torch.get_autocast_dtype(kind) if packed is None else packed.dtype
    return tuple(t if t is None or t.dtype not in FLOATS else t.to(dtype) for t in (x, *others))
