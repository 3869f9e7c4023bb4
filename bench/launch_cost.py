"""What the CPU does for one call of a kernel before a GPU has it: from Python, and through ``torch.library``.

Run as ``python -m sparseticket.bench.launch_cost``, without a GPU: Triton launches on a stand-in, so that its launcher
is missing (the driver's call, and encoding what TMA reads) and everything before it is there. Below 4096² a kernel
takes less time than this, so that from Python it decides whether sparse pays.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sparseticket.bench.machine import describe
from sparseticket.bench.messages import errors_as_messages
from sparseticket.bench.stand_in_gpu import stand_in_gpu
from sparseticket.bench.timing import Timed, interleave
from sparseticket.files import write_json
from sparseticket.kernels import operators
from sparseticket.kernels.adamw import MaskedAdamW
from sparseticket.kernels.blocks import BlockLayout
from sparseticket.kernels.bsr import Tiles, bsr_linear
from sparseticket.kernels.bsr_packed import PackedBlocks, bsr_linear_packed

RESULT = Path("bench/results/launch_cost_cpu.json")
ROWS, SIDE, BLOCK = 16, 768, (128, 128)  # few rows: what tensors of results cost is not the question
POINTERS = ([], [], [])
TMA = tuple(
    Tiles(*tiles).as_ints() for tiles in ((64, 128, 64, 4, 3, 2), (64, 128, 64, 4, 3, 2), (64, 128, 64, 4, 3, 1))
)
MASKED_WEIGHTS, OTHERS = 72, 125  # of BERT-base
DIRECT, LIBRARY = "from Python", "through torch.library"
Call = Callable[[], object]


def calls() -> dict[str, Call]:
    """What is timed, by name."""
    draw = torch.Generator().manual_seed(0)
    x, weight, bias, dy = (
        torch.randn(shape, generator=draw).bfloat16() for shape in ((ROWS, SIDE), (SIDE, SIDE), (SIDE,), (ROWS, SIDE))
    )
    alive = torch.rand(SIDE // BLOCK[0], SIDE // BLOCK[1], generator=draw) < 0.25
    layout = BlockLayout.from_mask(alive.repeat_interleave(BLOCK[0], 0).repeat_interleave(BLOCK[1], 1), BLOCK)
    packed = PackedBlocks.from_dense(weight, layout)
    trained = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]

    def infer(tiles: tuple[list[int], ...]) -> Tensor:
        return bsr_linear_packed(x, packed, bias, tiles=tiles[0])

    def train(tiles: tuple[list[int], ...]) -> tuple[Tensor, ...]:
        y = bsr_linear(trained[0], trained[1], layout, trained[2], tiles=tiles)
        return torch.autograd.grad(y, trained, dy)

    return {
        "forward, packed": partial(infer, POINTERS),
        "forward, packed, TMA": partial(infer, TMA),
        "forward and all gradients": partial(train, POINTERS),
        "forward and all gradients, TMA": partial(train, TMA),
        "clip and AdamW step, 197 parameters": _optimizer(draw),
    }


def yardsticks() -> dict[str, Call]:
    """PyTorch's own of tiny tensors, which on a CPU takes about as long as to launch it."""
    tiny = [torch.ones(shape, requires_grad=True) for shape in ((2, 8), (8, 8), (8,))]

    def train() -> tuple[Tensor, ...]:
        y = F.linear(*tiny)
        return torch.autograd.grad(y, tiny, torch.ones_like(y))

    return {"F.linear": lambda: F.linear(tiny[0].detach(), *tiny[1:]), "F.linear and all gradients": train}


def _optimizer(draw: torch.Generator) -> Call:
    masks = [torch.rand(64, 64, generator=draw) < 0.3 for _ in range(MASKED_WEIGHTS)]
    parameters = [torch.nn.Parameter(mask.float()) for mask in masks]
    parameters += [torch.nn.Parameter(torch.ones(64)) for _ in range(OTHERS)]
    optimizer = MaskedAdamW(parameters, dict(zip(parameters, masks, strict=False)))
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)

    def step() -> None:
        optimizer.clip_grad_norm(1.0)
        optimizer.step()

    return step


def measure(seconds: float) -> dict[str, Any]:
    """Median microseconds of each call, all in turns.

    Raises:
        RuntimeError: this machine has a GPU: measure there with ``python -m sparseticket.bench.gpu``.
    """
    torch.set_num_threads(1)
    with stand_in_gpu():
        named = calls()
        timed = [Timed(f"{name}, {way}", _by(way, call)) for name, call in named.items() for way in (DIRECT, LIBRARY)]
        timed += [Timed(name, call) for name, call in yardsticks().items()]
        times = interleave(timed, seconds=seconds)
    medians = {one.name: round(float(np.median(of)) * 1e3, 1) for one, of in zip(timed, times, strict=True)}
    return {
        "machine": describe(threads=1),
        "rounds": len(times[0]),
        "microseconds": {
            name: {way: medians[f"{name}, {way}"] for way in (DIRECT, LIBRARY)} for name in named
        },
        "yardsticks": {name: medians[name] for name in yardsticks()},
    }  # fmt: skip


def _by(way: str, call: Call) -> Call:
    plainly, never = operators.called_plainly, lambda _: False

    def through_library() -> None:
        operators.called_plainly = never
        try:
            call()
        finally:
            operators.called_plainly = plainly

    return through_library if way == LIBRARY else call


@errors_as_messages()
def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="for all calls together")
    parser.add_argument("--out", type=Path, default=RESULT, help="the JSON file")
    options = parser.parse_args()
    found = measure(options.seconds)
    table = Table("what the CPU does before a GPU has it, µs", DIRECT, LIBRARY)
    for name, of in found["microseconds"].items():
        table.add_row(name, f"{of[DIRECT]:.0f}", f"{of[LIBRARY]:.0f}")
    for name, of in found["yardsticks"].items():
        table.add_row(f"PyTorch's {name}", f"{of:.0f}", "")
    Console().print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, found)


if __name__ == "__main__":
    main()
