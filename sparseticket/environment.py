"""What this machine offers: versions and processors."""

from __future__ import annotations

import os
import platform
from typing import Any

from sparseticket.provenance import LIBRARIES, versions


def describe() -> dict[str, Any]:
    """Versions, CPU threads, GPUs."""
    import torch

    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return {
        "versions": versions((*LIBRARIES, "triton", "onnx", "onnxscript", "onnxruntime", "datasets")),
        "platform": platform.platform(),
        "cpu": {
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "isa": torch.backends.cpu.get_cpu_capability(),
        },
        "gpus": [torch.cuda.get_device_name(i) for i in gpus],
    }
