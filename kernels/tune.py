"""Measure a cell of the dispatcher's table on this device; a candidate is timed only when it agrees with dense."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseticket.kernels.activation import activate_reference
from sparseticket.kernels.blocks import ARRAYS, BlockLayout
from sparseticket.kernels.bsr import (
    Tiles,
    bsr_linear_dgrad,
    bsr_linear_forward,
    bsr_linear_wgrad,
    candidate_tiles,
    default_tiles,
)
from sparseticket.kernels.bsr_resident import has_tma
from sparseticket.kernels.clock import Clock, GraphClock, LaunchClock
from sparseticket.kernels.dispatch import PASSES, Case, Choice, Measured
from sparseticket.kernels.launch import as_compiled
from sparseticket.kernels.packing import Packing, packing_for
from sparseticket.kernels.pattern import SEMI_STRUCTURED, block_of
from sparseticket.kernels.tune_convolution import ConvolutionProblem

AGREEMENT = {torch.float16: 5e-3, torch.bfloat16: 3e-2, torch.float32: 5e-3}  # of the largest value; fp32 may be TF32
log = logging.getLogger(__name__)


def measure(
    case: Case,
    m: int,
    density: float,
    device: torch.device | str,
    *,
    thorough: bool = False,
    rounds: int = 30,
    clock: Clock | None = None,
    launched: Clock | None = None,
) -> Measured:
    """The best kernel for ``case`` with ``m`` rows at ``density``, and its speed-up over dense with a cold L2 cache.

    ``thorough`` tries every tiling that is worth it, otherwise the default one is all. The best candidate and dense
    take turns for ``rounds``, which give the interval: by ``clock``, graphs with a cold cache unless another is given;
    an ``eager`` case also by ``launched``, which counts the launch from Python too, and the lower speed-up is kept.
    """
    clock, launched = clock or GraphClock(device), launched or LaunchClock(device)
    kind = ConvolutionProblem if case.which == "convolution" else Problem
    problem = kind.draw(case, m, density, device, seed=0)
    dense, expected = problem.dense, problem.dense().float()
    times: list[tuple[float, Choice, Callable[[], Tensor]]] = []
    for choice, call in problem.candidates(thorough):
        try:
            result = call().float()
        except Exception as error:  # too much shared memory for this GPU, say: the candidate drops out
            log.info("%s with tiles %s does not run here: %s", choice.kernel, choice.tiles, error)
            continue
        if case.which == "wgrad":
            result = result.where(problem.mask, expected)
        error = float((result - expected).abs().max()) / max(float(expected.abs().max()), 1e-6)
        if not error <= AGREEMENT[problem.dtype]:
            log.warning("%s with tiles %s is WRONG here (off by %.1e) and is never used: please report it",
                        choice.kernel, choice.tiles, error)  # fmt: skip
            continue
        times.append((clock.median(call), choice, call))
    if not times:
        return Measured(case, m, density, Choice(), 1.0, 1.0, 1.0)
    _, choice, call = min(times, key=lambda entry: entry[0])
    clocks = (clock, launched) if case.launched == "eager" else (clock,)
    found = min((each.compare(dense, call, rounds=rounds) for each in clocks), key=lambda speedup: speedup.low)
    return Measured(case, m, density, choice, found.ratio, found.low, found.high)


@dataclass(frozen=True)
class Problem:
    """Random values and a random mask for one cell."""

    case: Case
    x: Tensor  # [M, K]
    weight: Tensor  # [N, K], 0 where dead
    bias: Tensor | None
    dy: Tensor  # [M, N]
    mask: Tensor

    @classmethod
    def draw(cls, case: Case, m: int, density: float, device: torch.device | str, seed: int) -> Problem:
        """Values are normal; of the mask's blocks (or entries) just ``density`` are alive, placed evenly."""
        draw = torch.Generator(device).manual_seed(seed)
        dtype = getattr(torch, case.dtype)
        x, weight, bias, dy = (
            torch.randn(size, generator=draw, device=device).to(dtype)
            for size in ((m, case.k), (case.n, case.k), (case.n,), (m, case.n))
        )
        mask = random_mask(case, density, torch.Generator().manual_seed(seed)).to(device)
        return cls(case, x, weight.masked_fill(~mask, 0), bias if "bias" in case.epilogue else None, dy, mask)

    @property
    def dtype(self) -> torch.dtype:
        """Of all values."""
        return self.x.dtype

    @property
    def activation(self) -> str:
        """In the epilogue."""
        return self.case.epilogue.partition("+")[2] or "none"

    def dense(self) -> Tensor:
        """What PyTorch does without kernels."""
        match self.case.which:
            case "dgrad":
                return self.dy @ self.weight
            case "wgrad":
                return self.dy.T @ self.x  # unmasked: what is dead is masked once a step, or by the optimizer
            case _:
                return activate_reference(F.linear(self.x, self.weight, self.bias), self.activation)

    def candidates(self, thorough: bool) -> Iterator[tuple[Choice, Callable[[], Tensor]]]:
        """What could run in its place."""
        which, block = self.case.which, block_of(self.case.pattern)
        if which == "infer":
            packing = self._packing()
            tilings = [(), *self._worth_trying(packing.tiles, thorough)]
            if self.x.shape[0] <= packing.most_rows:
                yield from self._calls([Choice(packing.kernel, tiles) for tiles in tilings])
        elif block:
            default = default_tiles(block, self.x.shape[0], self.dtype)[PASSES.index(which)]
            others = [tuple(tiles.as_ints()) for tiles in candidate_tiles(block, which, self.dtype)]
            tilings = [tuple(default.as_ints()), *self._worth_trying(others, thorough)]
            yield from self._calls([Choice("bsr_linear", tiles) for tiles in dict.fromkeys(tilings)])

    def _worth_trying(self, tilings: Sequence[tuple[int, ...]], thorough: bool) -> Sequence[tuple[int, ...]]:
        """All of them; in a hurry the first with TMA, which was the best, or next to it, of all on an H200."""
        resident = [tiles for tiles in tilings if Tiles.are_resident(tiles)] if has_tma(self.x.device) else []
        return [*(tiles for tiles in tilings if not Tiles.are_resident(tiles)), *resident] if thorough else resident[:1]

    def call(self, choice: Choice) -> Callable[[], Tensor]:
        """The kernel with its tiles, on this problem."""
        return next(call for _, call in self._calls([choice]))

    def _calls(self, choices: Sequence[Choice]) -> Iterator[tuple[Choice, Callable[[], Tensor]]]:
        if self.case.which == "infer":
            try:
                packed = self._packing().pack(self.weight, self.mask)
            except ValueError as error:  # a size or dtype that this kernel does not run
                log.info("%s: %s", self._packing().kernel, error)
                return
            for choice in choices:
                yield choice, self._launched(partial(packed.linear, self.x, self.bias, self.activation, choice.tiles))
        else:
            layout = BlockLayout.from_mask(self.mask, block_of(self.case.pattern))
            for choice in choices:
                yield choice, self._launched(partial(self._one_pass, self.case.which, layout, list(choice.tiles)))

    def _launched(self, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """The call with the kernels that the case will have."""
        return as_compiled()(call) if self.case.launched == "compiled" else call

    def _packing(self) -> Packing:
        shape = (self.case.n, self.case.k)
        return packing_for(self.case.pattern, shape, self.dtype, activation=self.activation)

    def _one_pass(self, which: str, layout: BlockLayout, tiles: list[int]) -> Tensor:
        block = list(layout.block)
        by_column = (layout.ccol, layout.row_t, layout.schedule_t)
        if which == "dgrad":
            return bsr_linear_dgrad(self.dy, self.weight, layout.row, layout.col, *by_column, block, tiles)
        if which == "wgrad":
            return bsr_linear_wgrad(
                self.dy, self.x, layout.crow, layout.col, layout.row, list(layout.shape), block, tiles
            )
        indices = (getattr(layout, name) for name in ARRAYS)
        return bsr_linear_forward(
            self.x, self.weight, self.bias, *indices, block, self.activation, False, tiles, tiles, tiles
        )[0]


def random_mask(case: Case, density: float, draw: torch.Generator) -> Tensor:
    """A bool mask ``[N, K]`` of the case's pattern; 2:4 has two alive of each four whatever the density."""
    if case.pattern == SEMI_STRUCTURED:
        order = torch.rand(case.n, case.k // 4, 4, generator=draw).argsort(-1)
        return (order < 2).reshape(case.n, case.k)
    block_n, block_k = block_of(case.pattern) or (1, 1)
    rows, columns = -(-case.n // block_n), -(-case.k // block_k)
    flat = torch.zeros(rows * columns, dtype=torch.bool)
    flat[torch.randperm(len(flat), generator=draw)[: round(density * len(flat))]] = True
    alive = flat.reshape(rows, columns)
    return alive.repeat_interleave(block_n, 0)[: case.n].repeat_interleave(block_k, 1)[:, : case.k]
