"""The four ways in which a call is timed: with a cold or warm L2 cache, from Python or as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch

from sparseticket.kernels.clock import Clock, GraphClock

Mode = Literal["cold graph", "warm graph", "cold eager", "warm eager"]
QUEUE_CYCLES = 200_000  # about 0.1 ms of an H100, in which the CPU can queue what is timed


class QueuedGraphClock(GraphClock):
    """Warm L2; the device is kept busy while the CPU queues the call, so that its latency is not part of the time."""

    def time(self, call: Callable[[], object]) -> float:
        """Milliseconds of one call."""
        if torch.cuda.is_available():
            torch.cuda._sleep(QUEUE_CYCLES)
        return super().time(call)


CLOCKS: dict[Mode, Callable[[str], Clock]] = {
    "cold graph": GraphClock,
    "warm graph": partial(QueuedGraphClock, cold=False),
    "cold eager": Clock,
    "warm eager": partial(Clock, cold=False),
}
