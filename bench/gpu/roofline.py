"""What the device can do at best, measured: bytes a second, and products of bf16 a second."""

from __future__ import annotations

from typing import Any

import torch

from sparseticket.bench.gpu.lab import Lab

FLOOR_MS = 0.003  # of a kernel that does nothing, between two others
COPY_BYTES, SIDE = 2**30, 8192


def measure_device(lab: Lab) -> dict[str, Any]:
    """Bytes a second, read and written, and operations a second of a large product, each the best of ten.

    Bytes are those of an addition: a copy in a CUDA graph is a node of its own kind, and reached 2.7 TB/s on an H200
    where this reached 4.2.
    """
    device, small = lab.device, lab.rehearse
    source = torch.randn((2**16 if small else COPY_BYTES) // 4, device=device)
    target = torch.empty_like(source)
    side = 64 if small else SIDE
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    clock = lab.clock("warm graph")
    copy, product = clock.prepared(lambda: torch.add(source, 1, out=target)), clock.prepared(lambda: a @ b)
    copy_ms = min(clock.time(copy) for _ in range(10))
    product_ms = min(clock.time(product) for _ in range(10))
    return {
        "bytes_per_s": 2 * source.nbytes / copy_ms * 1e3,
        "operations_per_s": 2 * side**3 / product_ms * 1e3,
        "ratios": {},
    }


def linear_ms(device: dict[str, Any], m: int, n: int, k: int, density: float, size: int = 2) -> float:
    """The least milliseconds of a product of ``[M, K]`` and a weight of this density, everything from memory once."""
    moved = size * (m * k + m * n + density * n * k)
    return max(moved / device["bytes_per_s"], 2 * m * n * k * density / device["operations_per_s"]) * 1e3 + FLOOR_MS
