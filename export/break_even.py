"""Up to which density a linear layer runs faster on the sparse operator than dense: a table of measured figures.

``break_even.json`` holds for each instruction set and pattern the largest density (share of live blocks) at which the
operator wins and its speed-up at some densities. If that needs a least number of rows of x, it holds that number, too.
INT8 figures are against dense INT8, ``dense_int8`` against dense fp32, all in ONNX Runtime on the same CPU.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sparseticket.export.sparse_op import LARGEST

TABLE = Path(__file__).with_name("break_even.json")
FP32_OF = {"vnni": "avx512"}  # whose figures hold there too; portable code was not measured
BLOCKS = {"1x1": (1, 1), "2x1": (2, 1), "4x1": (4, 1), "8x1": (8, 1), "4x4": (4, 4)}  # outputs x inputs


@dataclass(frozen=True)
class Figures:
    """Of one pattern: wins up to the density ``break_even``, from ``rows`` rows on (None: any number)."""

    break_even: float
    speedup: Mapping[float, float]
    rows: int | None = None

    def speedup_at(self, density: float) -> float:
        """Against dense, between measured densities on straight lines of the logarithms."""
        known = sorted(self.speedup)
        logs = np.interp(np.log(max(density, 1e-6)), np.log(known), np.log([self.speedup[one] for one in known]))
        return float(np.exp(logs))


@dataclass(frozen=True)
class Choice:
    """The pattern that suits a layer's zeros best, whether it wins, and its figures.

    ``speedup`` is against the dense layer; 1 where dense wins. ``block`` is how many outputs an encoded block has.
    """

    pattern: str
    density: float
    break_even: float
    wins: bool
    speedup: float = 1.0
    rows: int | None = None

    @property
    def block(self) -> int:
        return BLOCKS[self.pattern][0]

    @property
    def why(self) -> str:
        found = f"{self.density:.1%} of its {self.pattern} blocks live, break-even {self.break_even:.0%}"
        if self.wins and self.rows:
            return f"{found}, from {self.rows} rows on"
        return found


@cache
def table() -> dict[str, Any]:
    """The whole table."""
    return json.loads(TABLE.read_text(encoding="utf-8"))


def figures(target: str, *, int8: bool, convolutions: bool = False) -> dict[str, Figures]:
    """By pattern, for ``target`` ("avx2", "avx512", "vnni", "portable"); empty where nothing was measured.

    Of linear layers, or of ``convolutions``, which have no INT8 operator.
    """
    if int8 and convolutions:
        return {}
    kind = "convolution" if convolutions else "int8" if int8 else "fp32"
    found = table()[kind].get(target if int8 else FP32_OF.get(target, target), {})
    return {
        pattern: Figures(one["break_even"], {float(at): x for at, x in one["speedup"].items()}, one.get("rows"))
        for pattern, one in found.items()
    }


def dense_int8(target: str) -> float | None:
    """How many times as fast as fp32 a dense layer is in INT8; None where that was not measured."""
    return table()["dense_int8"].get(target)


def choose(weight: np.ndarray, known: Mapping[str, Figures]) -> Choice | None:
    """The fastest pattern for ``weight`` [K, N]; None where nothing is known, or it is too large for the operator.

    A pattern that the zeros do not have costs density (its blocks are then live for one weight), so that the right one
    is found from the zeros themselves.
    """
    if not known or max(weight.shape) > LARGEST:
        return None
    live = weight != 0
    choices = []
    for pattern, one in known.items():
        density = block_density(live, *BLOCKS[pattern])
        wins = density <= one.break_even
        speedup = one.speedup_at(density) if wins else 1.0
        choices.append(Choice(pattern, density, one.break_even, wins, speedup, one.rows))
    return max(choices, key=lambda one: (one.wins, one.speedup, one.break_even / max(one.density, 1e-6)))


def block_density(live: np.ndarray, outputs: int, inputs: int) -> float:
    """Share of blocks of ``outputs`` x ``inputs`` with a living weight; ``live`` is bool [K, N]."""
    padded = np.pad(live, [(0, -live.shape[0] % inputs), (0, -live.shape[1] % outputs)])
    blocks = padded.reshape(padded.shape[0] // inputs, inputs, padded.shape[1] // outputs, outputs)
    return float(blocks.any((1, 3)).mean())
