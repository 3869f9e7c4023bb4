"""Time two ways to compute the same thing, taking turns, so that whatever slows the device down slows both down."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Z95 = 1.96
CALLS = 10  # of which a median is taken
FLUSH_BYTES = 256 * 2**20  # more than any GPU's L2 (50 MB on an H100)


@dataclass(frozen=True)
class Speedup:
    """How many times as fast as the baseline: geometric mean over rounds, with its 95 % interval."""

    ratio: float
    low: float
    high: float


class Clock:
    """Times calls on a device in milliseconds: CUDA events on a GPU, the wall clock elsewhere.

    Args:
        device: where the calls run.
        cold: write through the L2 cache before each call, as the other layers of a network do.
    """

    def __init__(self, device: torch.device | str, *, cold: bool = True) -> None:
        self._device = torch.device(device)
        on_gpu = self._device.type == "cuda"
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=self._device) if cold and on_gpu else None

    def time(self, call: Callable[[], object]) -> float:
        """Milliseconds of one call."""
        if self._device.type != "cuda":
            begun = time.perf_counter()
            call()
            return (time.perf_counter() - begun) * 1e3
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if self._flush is not None:
            self._flush.zero_()
        begun.record()
        call()
        ended.record()
        ended.synchronize()
        return begun.elapsed_time(ended)

    def prepared(self, call: Callable[[], object]) -> Callable[[], object]:
        """What is timed in the place of ``call``."""
        return call

    def median(self, call: Callable[[], object]) -> float:
        """Milliseconds of a call, the median of :data:`CALLS`."""
        call = self.prepared(call)
        return statistics.median(self.time(call) for _ in range(CALLS))

    def compare(self, baseline: Callable[[], object], other: Callable[[], object], *, rounds: int = 30) -> Speedup:
        """How many times as fast ``other`` is, from ``rounds`` in which both have a turn, in alternating order."""
        logs = []
        baseline, other = self.prepared(baseline), self.prepared(other)
        for number in range(rounds):
            first, second = (baseline, other) if number % 2 else (other, baseline)
            times = self.time(first), self.time(second)
            theirs, ours = times if number % 2 else times[::-1]
            logs.append(math.log(theirs / ours))
        return _interval(logs)


class LaunchClock(Clock):
    """Times calls by the wall clock on an idle device, launch included: what a model called from Python waits for."""

    def time(self, call: Callable[[], object]) -> float:
        """Milliseconds of one call, from Python to its end."""
        on_gpu = self._device.type == "cuda"
        if self._flush is not None:
            self._flush.zero_()
        if on_gpu:
            torch.cuda.synchronize(self._device)
        begun = time.perf_counter()
        call()
        if on_gpu:
            torch.cuda.synchronize(self._device)
        return (time.perf_counter() - begun) * 1e3


class GraphClock(Clock):
    """Times calls as CUDA graphs: what the GPU takes for them, without the CPU that launches them.

    Triton's launch takes the CPU longer than cuBLAS's, and longer than many a small product takes the GPU.
    """

    def prepared(self, call: Callable[[], object]) -> Callable[[], object]:
        """The graph of ``call``."""
        return graphed(call, self._device)


def graphed(call: Callable[[], object], device: torch.device | str) -> Callable[[], object]:
    """``call`` as a CUDA graph, so that a small product is not timed by its launch; itself where there is no GPU."""
    if torch.device(device).type != "cuda":
        return call
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def _interval(logs: Sequence[float]) -> Speedup:
    mean = statistics.fmean(logs)
    half = Z95 * statistics.stdev(logs) / math.sqrt(len(logs))
    return Speedup(*(math.exp(value) for value in (mean, mean - half, mean + half)))
