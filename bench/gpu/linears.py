"""Block-sparse and masked linears against dense and against every peer, at the shapes of BERT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparseticket.bench.gpu.arms import AGAIN, DENSE, Arm, Times, least, median_of, ratio_or_reason, time_arms
from sparseticket.bench.gpu.lab import Lab
from sparseticket.bench.gpu.masks import bert_shapes, ranked_masks, uniform_mask
from sparseticket.bench.gpu.peers import core_bsr_arm, linear_arm, prune_arm, pruned_linear, tuned_core, two_of_four_arm
from sparseticket.bench.gpu.roofline import linear_ms
from sparseticket.kernels.blocks import BlockLayout
from sparseticket.kernels.bsr import bsr_linear
from sparseticket.kernels.bsr_packed import PackedBlocks, bsr_linear_packed
from sparseticket.kernels.dispatch import PASSES, Case
from sparseticket.kernels.masked import masked_linear
from sparseticket.kernels.tune import Problem
from sparseticket.kernels.words import pack_words

ZEROS, PRUNE, CORE, PAIRS = "zeros in place", "nn.utils.prune", "core BSR, tuned", "2:4 of cuSPARSELt"
OURS, PACKED, MASKED = "bsr_linear", "bsr_linear_packed", "masked_linear"
M = 4096


@dataclass(frozen=True)
class Linear:
    """A weight of a network, and which of the network's matrices it is made of, one below the other.

    ``keep`` are places in ``shapes``, the network's matrices, over all of which a ranked mask is drawn.
    """

    n: int
    k: int
    keep: tuple[int, ...]
    shapes: Callable[[Lab], list[tuple[int, int]]]

    def size(self, lab: Lab) -> tuple[int, int]:
        """``(N, K)``."""
        return lab.side(self.n), lab.side(self.k)

    def case(self, lab: Lab, which: str) -> Case:
        """The dispatcher's name for it."""
        rows, columns = lab.block(128)
        epilogue = "none" if which in ("dgrad", "wgrad") else "bias"
        return Case(which, *self.size(lab), f"block:{rows}x{columns}", "bfloat16", epilogue, "graph")


def bert(n: int, k: int, hidden: int, *keep: int) -> Linear:
    """One of a BERT's; ``keep`` inside its layer: 0 to 2 are query, key and value, 4 and 5 the feed-forward."""
    layer = 6  # of the second layer
    return Linear(n, k, tuple(layer + at for at in keep), lambda lab: _bert_of(lab, n, k, hidden, keep))


def _bert_of(lab: Lab, n: int, k: int, hidden: int, keep: tuple[int, ...]) -> list[tuple[int, int]]:
    shapes = bert_shapes(hidden, lab.layers)
    if lab.rehearse:  # whatever the small sides are, the kept matrices make up the small weight
        shapes = [(lab.side(n) // len(keep), lab.side(k))] * len(shapes)
    return shapes


LINEARS = {
    "768-768": bert(768, 768, 768, 3),
    "qkv": bert(2304, 768, 768, 0, 1, 2),
    "ffn-in": bert(3072, 768, 768, 4),
    "ffn-out": bert(768, 3072, 768, 5),
    "large-ffn-in": bert(4096, 1024, 1024, 4),
    "large-ffn-out": bert(1024, 4096, 1024, 5),
    "4096-4096": Linear(4096, 4096, (1,), lambda lab: [(lab.side(4096),) * 2] * 4),
}


def draw(lab: Lab, linear: Linear, case: Case, kind: str, density: float, seed: int) -> Problem:
    """Random values under a mask of this kind: ``uniform`` or ``ranked``."""
    block = lab.block(128) if case.pattern.startswith("block") else (1, 1)
    problem = Problem.draw(case, lab.rows(M), density, lab.device, seed)
    if kind == "uniform":
        mask = uniform_mask(linear.size(lab), block, density, seed).to(lab.device)
    else:
        mask = torch.cat(ranked_masks(linear.shapes(lab), block, density, seed, lab.device, linear.keep))
    weight = torch.randn(mask.shape, device=lab.device).to(problem.dtype).masked_fill(~mask, 0)
    return replace(problem, weight=weight, mask=mask)


@torch.no_grad()
def forward(
    lab: Lab, device: dict[str, Any], linear: Linear, density: float, *, against_core: bool = False
) -> dict[str, Any]:
    """The forward product with bias, M = 4096, blocks of 128²; core's tuner takes long, so not everywhere."""
    case, m = linear.case(lab, "forward"), lab.rows(M)
    tiles = lab.tiles(case, m, density)
    packed_tiles = lab.tiles(linear.case(lab, "infer"), m, density)
    figure = _both_kinds(lab, linear, case, density, partial(_forward_arms, lab, tiles, packed_tiles, against_core))
    kinds = [figure["uniform"], figure["ranked"]]
    figure["ratios"] = {
        "forward": least([ratio_or_reason(times, OURS) for times in kinds]),
        "packed": least([ratio_or_reason(times, PACKED) for times in kinds]),
    }
    if against_core:
        figure["core"] = tuned_core()
        figure["ratios"]["forward against core"] = least([ratio_or_reason(times, OURS, CORE) for times in kinds])
    figure["tiles"] = {OURS: tiles, PACKED: packed_tiles}
    if "error" not in device:
        roofs = [linear_ms(device, m, *linear.size(lab), of) for of in (1.0, density)]
        figure["roofline"] = {"dense_ms": roofs[0], "sparse_ms": roofs[1], "ceiling": roofs[0] / roofs[1]}
    return figure


def _forward_arms(
    lab: Lab, tiles: list[int], packed_tiles: list[int], against_core: bool, problem: Problem, seed: int
) -> dict[str, Callable[[], Arm]]:
    x, weight, bias, mask = problem.x, problem.weight, problem.bias, problem.mask
    block = lab.block(128)
    whole = torch.randn_like(weight)

    def ours() -> Arm:
        layout = BlockLayout.from_mask(mask, block)
        return Arm(partial(bsr_linear, x, weight, layout, bias, tiles=(tiles, tiles, tiles)), weight.nbytes)

    def packed() -> Arm:
        blocks = PackedBlocks.from_dense(weight, BlockLayout.from_mask(mask, block))
        return Arm(partial(bsr_linear_packed, x, blocks, bias, tiles=packed_tiles), blocks.values.nbytes)

    arms = {
        DENSE: lambda: linear_arm(x, whole, bias),
        AGAIN: lambda: linear_arm(x, whole, bias),
        ZEROS: lambda: linear_arm(x, weight, bias),
        OURS: ours,
        PACKED: packed,
    }
    if against_core:
        arms[CORE] = lambda: core_bsr_arm(problem, block)
    # what does not depend on the mask, or only by its size, is measured under the first
    return arms | ({PRUNE: lambda: prune_arm(problem), PAIRS: lambda: two_of_four_arm(problem)} if seed == 0 else {})


def train_step(lab: Lab, device: dict[str, Any], linear: Linear, density: float) -> dict[str, Any]:
    """Forward and both gradients, in one call."""
    cases, m = [linear.case(lab, which) for which in PASSES], lab.rows(M)
    tiles = tuple(lab.tiles(case, m, density) for case in cases)
    figure = _both_kinds(lab, linear, cases[0], density, partial(_step_arms, lab, tiles))
    kinds = [figure["uniform"], figure["ranked"]]
    figure["ratios"] = {"step": least([ratio_or_reason(times, OURS) for times in kinds])}
    figure["tiles"] = dict(zip(PASSES, tiles, strict=True))
    return figure


def _step_arms(lab: Lab, tiles: tuple[list[int], ...], problem: Problem, seed: int) -> dict[str, Callable[[], Arm]]:
    mask = problem.mask
    x = problem.x.requires_grad_()
    bias = problem.bias.requires_grad_()
    weight = problem.weight.requires_grad_()
    whole = torch.randn_like(weight).requires_grad_()
    layout = BlockLayout.from_mask(mask, lab.block(128))

    def step(of: Tensor, forward: Callable[[], Tensor]) -> Arm:
        return Arm(lambda: torch.autograd.grad(forward(), (x, of, bias), problem.dy), of.nbytes)

    def dense(of: Tensor) -> Arm:
        return step(of, lambda: torch.nn.functional.linear(x, of, bias))

    def zeros() -> Arm:
        plain = dense(weight).call

        def masked() -> Tensor:
            return plain()[1].mul_(mask)

        return Arm(masked, weight.nbytes + mask.nbytes)

    def pruned() -> Arm:
        layer = pruned_linear(problem)
        inputs = (x, layer.weight_orig, layer.bias)
        return Arm(lambda: torch.autograd.grad(layer(x), inputs, problem.dy), 2 * weight.nbytes)

    return {
        DENSE: lambda: dense(whole),
        AGAIN: lambda: dense(whole),
        ZEROS: zeros,
        PRUNE: pruned,
        OURS: lambda: step(weight, lambda: bsr_linear(x, weight, layout, bias, tiles=tiles)),
    }


@torch.no_grad()
def masked_forward(lab: Lab, device: dict[str, Any], linear: Linear, density: float) -> dict[str, Any]:
    """``masked_linear``: where dead values have to survive. It is not expected to beat dense; beside ``prune`` only."""
    case = replace(linear.case(lab, "infer"), pattern="unstructured")

    def arms(problem: Problem, seed: int) -> dict[str, Callable[[], Arm]]:
        x, bias, whole = problem.x, problem.bias, torch.randn_like(problem.weight)
        words = pack_words(problem.mask)
        ours = Arm(partial(masked_linear, x, whole, words, bias), whole.nbytes + words.nbytes)
        return {
            DENSE: lambda: linear_arm(x, whole, bias),
            AGAIN: lambda: linear_arm(x, whole, bias),
            PRUNE: lambda: prune_arm(problem),
            MASKED: lambda: ours,
        }

    figure = _both_kinds(lab, linear, case, density, arms)
    kinds = [figure["uniform"], figure["ranked"]]
    figure["ratios"] = {
        "forward": least([ratio_or_reason(times, MASKED) for times in kinds]),
        "against prune": least([ratio_or_reason(times, MASKED, PRUNE) for times in kinds]),
    }
    return figure


def _both_kinds(
    lab: Lab,
    linear: Linear,
    case: Case,
    density: float,
    arms: Callable[[Problem, int], dict[str, Callable[[], Arm]]],
) -> dict[str, Any]:
    figure: dict[str, Any] = {
        "m": lab.rows(M), "n": case.n, "k": case.k, "pattern": case.pattern, "density": density, "realised": {},
    }  # fmt: skip
    for kind in ("uniform", "ranked"):
        runs: list[Times] = []
        realised = []
        for seed in range(lab.masks):
            problem = draw(lab, linear, case, kind, density, seed)
            realised.append(problem.mask.float().mean().item())
            runs.append(time_arms(lab, arms(problem, seed)))
        figure[kind], figure["realised"][kind] = median_of(runs), realised
    return figure
