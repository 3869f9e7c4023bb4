"""A stand-in for a GPU, on which nothing is compiled or runs; what a CPU does for a launch happens as ever."""

from __future__ import annotations

import importlib
import pkgutil
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

import sparseticket.kernels
from sparseticket.kernels import bsr_resident

MULTIPROCESSORS = 132


class Driver:
    """What Triton asks of a driver, on compute capability 9.0."""

    def __init__(self) -> None:
        self.launched: list[str] = []  # names of kernels

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


class Uncompiled:
    """What Triton keeps in the place of a compiled kernel, and runs."""

    function = packed_metadata = None

    def __init__(self, source: Any, **_: object) -> None:
        self._name = source.fn.__name__

    def launch_metadata(self, *_: object) -> None:
        """None, as without hooks."""

    def run(self, *_: object) -> None:
        """Say so to the driver."""
        triton.runtime.driver.active.launched.append(self._name)


@contextmanager
def stand_in_gpu() -> Iterator[Driver]:
    """Inside, kernels are launched on it: for fake tensors on ``cuda``, and for tensors on the CPU, whose results
    are never written.

    Raises:
        RuntimeError: there is a GPU, or the process runs Triton's interpreter.
    """
    if torch.cuda.is_available() or not hasattr(bsr_resident.bsr_resident_kernel, "device_caches"):
        raise RuntimeError("a stand-in is for machines without a GPU, and processes without TRITON_INTERPRET=1")
    for module in pkgutil.iter_modules(sparseticket.kernels.__path__, "sparseticket.kernels."):
        importlib.import_module(module.name)  # or one that is imported inside would keep what is patched
    properties = SimpleNamespace(multi_processor_count=MULTIPROCESSORS)
    driver = Driver()
    with ExitStack() as undo:
        for name, module in list(sys.modules.items()):
            if name.startswith("sparseticket.kernels") and hasattr(module, "runs_kernel"):
                undo.enter_context(patch.object(module, "runs_kernel", _everywhere))
        undo.enter_context(patch.object(bsr_resident, "has_tma", lambda _: True))
        undo.enter_context(patch.object(bsr_resident, "multiprocessors", lambda _: MULTIPROCESSORS))
        for name, value in {
            "get_device_capability": (9, 0),
            "get_device_properties": properties,
            "current_device": 0,
        }.items():
            undo.enter_context(patch.object(torch.cuda, name, lambda *_, value=value: value))
        undo.enter_context(patch.object(triton.runtime.driver, "_active", driver))
        undo.enter_context(patch.object(triton.compiler, "compile", Uncompiled))
        yield driver


def _everywhere(_: Tensor) -> bool:
    return True
