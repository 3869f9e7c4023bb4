"""How a call is timed: with a cold or warm L2 cache, from Python or as a CUDA graph; or behind a queue of work."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch

from sparseticket.kernels.clock import Clock, GraphClock

Mode = Literal["cold graph", "warm graph", "cold eager", "warm eager", "queued"]
FOUR: tuple[Mode, ...] = ("cold graph", "warm graph", "cold eager", "warm eager")
GRAPH_CYCLES = 200_000  # about 0.1 ms of an H100, in which the CPU can queue a graph
CALL_CYCLES = 6_000_000  # about 3 ms, for what takes the CPU longer


class QueuedClock(Clock):
    """The device is kept busy while the CPU queues the call, as the layers before it do in a training step."""

    def time(self, call: Callable[[], object]) -> float:
        """Milliseconds of one call."""
        _keep_busy(CALL_CYCLES)
        return super().time(call)


class QueuedGraphClock(GraphClock):
    """Warm L2; the device is kept busy while the CPU queues the call, so that its latency is not part of the time."""

    def time(self, call: Callable[[], object]) -> float:
        """Milliseconds of one call."""
        _keep_busy(GRAPH_CYCLES)
        return super().time(call)


def _keep_busy(cycles: int) -> None:
    if torch.cuda.is_available():
        torch.cuda._sleep(cycles)


CLOCKS: dict[Mode, Callable[[str], Clock]] = {
    "cold graph": GraphClock,
    "warm graph": partial(QueuedGraphClock, cold=False),
    "cold eager": Clock,
    "warm eager": partial(Clock, cold=False),
    "queued": partial(QueuedClock, cold=False),
}
