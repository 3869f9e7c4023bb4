"""What the numbers were measured on, and how much memory a step took."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")


def describe(threads: int) -> dict[str, Any]:
    """Processor, cores, threads used, GPU and versions; nothing that names the machine or its user."""
    import onnxruntime
    import torch
    import transformers

    return {
        "cpu": _cpu_name(),
        "cores": _cores(),
        "threads": threads,
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "system": platform.system(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "transformers": transformers.__version__,
        },
    }


class PeakMemory:
    """Filled when its ``with`` block ends: the most resident memory used in it beyond what was used before."""

    bytes: int | None = None


@contextlib.contextmanager
def peak_memory() -> Iterator[PeakMemory]:
    """Measure the block's peak of resident memory in bytes; stays None where the system cannot tell (not Linux)."""
    measured = PeakMemory()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # or freed memory would hide what the block takes
    try:
        Path("/proc/self/clear_refs").write_text("5")  # starts VmHWM anew
        before = _status("VmRSS")
    except OSError:
        before = None
    yield measured
    if before is not None:
        measured.bytes = max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {key} in {STATUS}")


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
