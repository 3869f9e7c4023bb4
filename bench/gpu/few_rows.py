"""``bitmap_linear``: few rows, where the weight is the traffic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparseticket.bench.gpu.arms import AGAIN, DENSE, Arm, median_of, ratio_or_reason, time_arms
from sparseticket.bench.gpu.lab import Lab
from sparseticket.bench.gpu.peers import linear_arm
from sparseticket.bench.gpu.roofline import linear_ms
from sparseticket.kernels.bitmap import BitmapLaunch, BitmapWeight, bitmap_linear, candidate_launches
from sparseticket.kernels.dispatch import Case
from sparseticket.kernels.launch import is_hopper_or_later
from sparseticket.kernels.tune import AGREEMENT, Problem

M = 16
OURS = "bitmap_linear"


@torch.no_grad()
def forward(lab: Lab, device: dict[str, Any], n: int, k: int, density: float) -> dict[str, Any]:
    """Unstructured masks; which launch is best is found under the first of them."""
    case = _case(lab, n, k)
    runs, realised, launch = [], [], None
    for seed in range(lab.masks):
        problem = Problem.draw(case, M, density, lab.device, seed)
        whole = torch.randn_like(problem.weight)
        packed = BitmapWeight.from_dense(problem.weight, problem.mask)
        launch = launch or _best(lab, problem, packed)
        call = partial(bitmap_linear, problem.x, packed, problem.bias, launch=launch)
        arms = {
            DENSE: partial(linear_arm, problem.x, whole, problem.bias),
            AGAIN: partial(linear_arm, problem.x, whole, problem.bias),
            "zeros in place": partial(linear_arm, problem.x, problem.weight, problem.bias),
            OURS: partial(Arm, call, packed.nbytes),
        }
        runs.append(time_arms(lab, arms))
        realised.append(problem.mask.float().mean().item())
    times = median_of(runs)
    figure = {
        "m": M, "n": case.n, "k": case.k, "density": density, "realised": {"uniform": realised}, "uniform": times,
        "launch": list(launch), "ratios": {"forward": ratio_or_reason(times, OURS)},
    }  # fmt: skip
    if "error" not in device:
        roofs = [linear_ms(device, M, case.n, case.k, of) for of in (1.0, packed.nbytes / whole.nbytes)]
        figure["roofline"] = {"dense_ms": roofs[0], "sparse_ms": roofs[1], "ceiling": roofs[0] / roofs[1]}
    return figure


@torch.no_grad()
def warm_up(lab: Lab, n: int, k: int, density: float) -> None:
    """Compile what :func:`forward` will try."""
    problem = Problem.draw(_case(lab, n, k), M, density, lab.device, 0)
    for _ in _agreeing(problem, BitmapWeight.from_dense(problem.weight, problem.mask)):
        pass


def _case(lab: Lab, n: int, k: int) -> Case:
    return Case("infer", lab.side(n), lab.side(k), "unstructured", "bfloat16", "bias")


def _best(lab: Lab, problem: Problem, packed: BitmapWeight) -> BitmapLaunch:
    clock = lab.clock("cold graph")
    times = {launch: clock.median(call) for launch, call in _agreeing(problem, packed)}
    if not times:
        raise RuntimeError("no launch of bitmap_linear runs here and agrees with dense")
    return min(times, key=times.get)


def _agreeing(problem: Problem, packed: BitmapWeight) -> Iterator[tuple[BitmapLaunch, Callable[[], Tensor]]]:
    exact = problem.dense().float()
    apart = candidate_launches(problem.case.n, problem.case.k, problem.dtype)
    overlapping = [each._replace(overlap=1) for each in apart] if is_hopper_or_later(problem.x.device) else []
    for launch in (*apart, *overlapping):
        call = partial(bitmap_linear, problem.x, packed, problem.bias, launch=launch)
        try:
            error = float((call().float() - exact).abs().max() / exact.abs().max())
        except Exception:
            continue  # does not fit this GPU
        if error < AGREEMENT[problem.dtype]:
            yield launch, call
