"""Other ways to run a linear whose weight is sparse: torch's own, each as its users would."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from sparseticket.bench.gpu.arms import Arm
from sparseticket.kernels.semi_structured import SemiStructuredWeight, semi_structured_linear
from sparseticket.kernels.tune import Problem

TUNER_SECONDS = 45.0
_tuned: dict[tuple, tuple[dict[str, Any], dict[str, Any]]] = {}  # by shape: what core's tuner found, and how


def pruned_linear(problem: Problem) -> nn.Linear:
    """``torch.nn.utils.prune``: weight = original × mask in every forward."""
    n, k = problem.weight.shape
    linear = nn.Linear(k, n, device=problem.weight.device, dtype=problem.dtype)
    with torch.no_grad():
        linear.weight.copy_(problem.weight)
        linear.bias.copy_(problem.bias)
    return prune.custom_from_mask(linear, "weight", problem.mask.to(problem.dtype))


def prune_arm(problem: Problem) -> Arm:
    """Forward only; it holds weight and mask."""
    linear = pruned_linear(problem)
    return Arm(lambda: linear(problem.x), 2 * problem.weight.nbytes)


def core_bsr_arm(problem: Problem, block: tuple[int, int]) -> Arm:
    """``torch.sparse``'s BSR kernel with the parameters that its own tuner finds for this shape, once."""
    from torch.sparse._triton_ops import bsr_dense_addmm

    if not problem.x.is_cuda:
        raise RuntimeError("PyTorch's BSR kernel needs a GPU")
    weight = problem.weight.to_sparse_bsr(block)
    n, m = problem.weight.shape[0], problem.x.shape[0]
    bias, x = problem.bias.unsqueeze(1).expand(n, m), problem.x.T
    key = (n, m, problem.weight.shape[1], block, problem.dtype)
    if key not in _tuned:
        _tuned[key] = _tune(bias, weight, x)
    call = partial(bsr_dense_addmm, bias, weight, x, meta=_tuned[key][0])
    return Arm(lambda: call().T, sum(t.nbytes for t in (weight.values(), weight.crow_indices(), weight.col_indices())))


def tuned_core() -> list[dict[str, Any]]:
    """How core's tuner fared, for each shape: its choice, how much it tried, and whether its time ran out."""
    return [{"shape": list(key[:3]), "chosen": meta} | how for key, (meta, how) in _tuned.items()]


def _tune(bias: Tensor, weight: Tensor, x: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
    """Core's tuner, which times each try for 0.6 s; here for 0.06 s. When its time is up, further tries fail."""
    import triton.testing
    from torch.sparse._triton_ops_meta import tune_bsr_dense_addmm

    slow, until, tries = triton.testing.do_bench, time.monotonic() + TUNER_SECONDS, [0, 0]

    def quick(call: Any, **_: Any) -> float:
        late = time.monotonic() > until
        tries[late] += 1
        if late:
            raise RuntimeError("the tuner's time is up")
        return slow(call, warmup=20, rep=40)

    triton.testing.do_bench = quick
    try:
        meta = tune_bsr_dense_addmm(bias, weight, x, force=True)
    finally:
        triton.testing.do_bench = slow
    return meta, {"tries": tries[0], "cut short": tries[1] > 0}


def two_of_four_arm(problem: Problem) -> Arm:
    """2:4 of cuSPARSELt: half of the weight, whatever the others' density is."""
    order = torch.rand(*problem.weight.shape[:1], problem.weight.shape[1] // 4, 4, device=problem.x.device).argsort(-1)
    mask = (order < 2).reshape(problem.weight.shape)
    packed = SemiStructuredWeight.from_dense(torch.randn_like(problem.weight), mask)
    call = torch.no_grad()(partial(semi_structured_linear, problem.x, packed, problem.bias))
    return Arm(call, problem.weight.nbytes * 9 // 16)


def linear_arm(x: Tensor, weight: Tensor, bias: Tensor | None) -> Arm:
    """A dense product, by cuBLAS on a GPU."""
    return Arm(partial(F.linear, x, weight, bias), weight.nbytes)
