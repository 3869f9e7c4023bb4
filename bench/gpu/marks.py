"""The marks: what has to be reached, from which figures, and whether it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparseticket.bench.gpu.parity import CHECKS

PASS, FAIL, NOT_RUN, REHEARSED = "pass", "fail", "could not run", "rehearsed"


@dataclass(frozen=True)
class Mark:
    """``sources`` are (figure, key of its ratios); the least of them has to be at least ``at_least``."""

    name: str
    at_least: float
    sources: tuple[tuple[str, str], ...]


MARKS = (
    Mark("every operator agrees with float64", 1.0, tuple((f"parity of {name}", "agree") for name in CHECKS)),
    Mark("bsr_linear forward 768→768, 75 %: dense", 1.1, (("768-768-75", "forward"),)),
    Mark("bsr_linear forward fused QKV, 75 %: dense", 1.4, (("qkv-75", "forward"),)),
    Mark("bsr_linear forward FFN, 75 %: dense", 1.5, (("ffn-in-75", "forward"), ("ffn-out-75", "forward"))),
    Mark("bsr_linear forward fused QKV, 90 %: dense", 1.5, (("qkv-90", "forward"),)),
    Mark("bsr_linear forward FFN, 90 %: dense", 1.6, (("ffn-in-90", "forward"), ("ffn-out-90", "forward"))),
    Mark("bsr_linear forward FFN, 75 %: core BSR, tuned", 1.2, (("ffn-in-core", "forward against core"),)),
    Mark("forward + both gradients FFN, 75 %: dense", 1.4, (("ffn-in-train", "step"), ("ffn-out-train", "step"))),
    Mark(
        "BERT-large FFN and 4096² layers, 75 %: dense", 1.8,
        (("large-ffn-in-75", "forward"), ("large-ffn-out-75", "forward"), ("4096-4096-75", "forward")),
    ),
    Mark(
        "BERT-large FFN and 4096² layers, 90 %: dense", 2.5,
        (("large-ffn-in-90", "forward"), ("large-ffn-out-90", "forward"), ("4096-4096-90", "forward")),
    ),
    Mark("clip + step, 70 %, fp32: fused AdamW", 1.6, (("optimizer-70", "masked"),)),
    Mark("clip + step, 70 %, live-only, bf16 weights: fused AdamW", 1.8, (("optimizer-70", "live"),)),
    Mark("fine-tuning step, 70 % unstructured: nn.utils.prune", 1.05, (("finetune-70", "against prune"),)),
    Mark("the same, peak memory of nn.utils.prune over ours", 1.25, (("finetune-70", "memory against prune"),)),
    Mark("the same: dense", 0.99, (("finetune-70", "against dense"),)),
    Mark("fine-tuning step, 75 % blocks: dense", 1.15, (("finetune-blocks-75", "against dense"),)),
    Mark("fine-tuning on SST-2 lengths, no recompilation: dense", 0.99, (("finetune-lengths", "against dense"),)),
    Mark("bitmap_linear 90 %, M = 16, 1024→4096: dense", 1.2, (("bitmap-1024-4096", "forward"),)),
    Mark("bitmap_linear 90 %, M = 16, 4096²: dense", 2.0, (("bitmap-4096-4096", "forward"),)),
    Mark("BERT-base inference, CUDA graph, 75 % blocks: dense, compiled", 1.4, (("inference", "against dense"),)),
    Mark("dispatcher at rows not measured: worst upper bound", 0.98, (("dispatcher", "worst upper bound"),)),
)  # fmt: skip


def judge(mark: Mark, figures: Mapping[str, dict[str, Any]], *, rehearsal: bool = False) -> dict[str, Any]:
    """Whether the mark was reached, and by what; or why that cannot be said. A rehearsal reaches none."""
    head = {"mark": mark.name, "at_least": mark.at_least}
    found = []
    for name, key in mark.sources:
        figure = figures.get(name, {"error": "not measured yet"})
        if "error" in figure:
            return head | {"measured": None, "result": NOT_RUN, "reason": f"{name}: {figure['error']}"}
        value = figure["ratios"].get(key)
        if not isinstance(value, int | float):
            return head | {"measured": None, "result": NOT_RUN, "reason": f"{name}, {key}: {value or 'not there'}"}
        found.append(float(value))
    if rehearsal:
        return head | {"measured": None, "result": REHEARSED, "reason": "on the CPU, with tiny shapes"}
    least = min(found)
    return head | {"measured": least, "result": PASS if least >= mark.at_least else FAIL, "reason": None}
