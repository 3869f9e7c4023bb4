"""A stand-in for a GPU: Triton compiles for it, and launches nothing. What a CPU does for a launch happens as ever."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from sparseticket.kernels import bsr_resident

MULTIPROCESSORS = 132
SHARED = 227 * 1024  # bytes a program


class Driver:
    """What Triton asks of a driver, on compute capability 9.0."""

    def __init__(self) -> None:
        self.launched: list[str] = []  # names of kernels
        self.utils = SimpleNamespace(
            load_binary=lambda *_: (1, 1, 32, 0, 1024),  # module, function, registers, spills, threads
            get_device_properties=lambda _: {"max_shared_mem": SHARED, "multiprocessor_count": MULTIPROCESSORS},
        )

    def launcher_cls(self, source: Any, _: object) -> Any:
        """Makes a launcher, once a compiled kernel."""
        name = source.fn.__name__
        return lambda *_: self.launched.append(name)

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def get_current_stream(self, _: int) -> int:
        """The default one."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """Hopper."""
        return GPUTarget("cuda", 90, 32)

    def map_python_to_cpp_type(self, name: str) -> str:
        """Nothing is made of it."""
        return name


@contextmanager
def stand_in_gpu() -> Iterator[Driver]:
    """Inside, kernels are launched on it: for fake tensors on ``cuda``, and for tensors on the CPU, whose results
    are never written.

    Raises:
        RuntimeError: there is a GPU, or the process runs Triton's interpreter.
    """
    if torch.cuda.is_available() or not hasattr(bsr_resident.bsr_resident_kernel, "device_caches"):
        raise RuntimeError("a stand-in is for machines without a GPU, and processes without TRITON_INTERPRET=1")
    properties = SimpleNamespace(multi_processor_count=MULTIPROCESSORS)
    driver = Driver()
    with ExitStack() as undo:
        for name, module in list(sys.modules.items()):
            if name.startswith("sparseticket.kernels") and hasattr(module, "runs_kernel"):
                undo.enter_context(patch.object(module, "runs_kernel", _everywhere))
        undo.enter_context(patch.object(bsr_resident, "has_tma", lambda _: True))
        undo.enter_context(patch.object(bsr_resident, "_multiprocessors", lambda _: MULTIPROCESSORS))
        for name, value in {
            "get_device_capability": (9, 0),
            "get_device_properties": properties,
            "current_device": 0,
        }.items():
            undo.enter_context(patch.object(torch.cuda, name, lambda *_, value=value: value))
        undo.enter_context(patch.object(triton.runtime.driver, "_active", driver))
        yield driver


def _everywhere(_: Tensor) -> bool:
    return True
