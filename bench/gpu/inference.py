"""Inference of a whole encoder with 75 % of its weights' blocks zero, as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparseticket.bench.gpu import bert
from sparseticket.bench.gpu.arms import AGAIN, DENSE, Arm, ratio_or_reason, time_arms, why
from sparseticket.bench.gpu.lab import Lab
from sparseticket.kernels.apply import use_kernels

EAGER, OURS, OURS_COMPILED = "dense, not compiled", "sparseticket", "sparseticket, compiled"
LAUNCHED = {OURS: "graph", OURS_COMPILED: "compiled"}
DENSITY = 0.25
Build = Callable[[], nn.Module]


def bert_base(lab: Lab, device: dict[str, Any]) -> dict[str, Any]:
    """BERT-base in bf16, 32 × 128, random weights."""
    return _compare(lab, partial(bert.build, lab), lab.block(128))


def minilm(lab: Lab, device: dict[str, Any]) -> dict[str, Any]:
    """A MiniLM from a folder; its weights are cast to bf16 from fp32, whatever they were stored in.

    Raises:
        RuntimeError: no folder was given.
    """
    if lab.minilm is None:
        raise RuntimeError("give --minilm, the folder of a MiniLM")
    stored: list[str] = []
    figure = _compare(lab, lambda: _load(lab, lab.minilm, stored), (32, 32))
    return figure | {"stored_as": stored[0]}


def warm_up(lab: Lab, arm: str) -> None:
    """One call of an arm, so that what it compiles is in the cache on disk."""
    _arm(lab, partial(bert.build, lab), arm, lab.block(128)).call()


def _load(lab: Lab, folder: Path, stored: list[str]) -> nn.Module:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder)
    stored.append(str(next(model.parameters()).dtype).removeprefix("torch."))
    return model.float().to(lab.device)


def _compare(lab: Lab, build: Build, block: tuple[int, int]) -> dict[str, Any]:
    torch._dynamo.reset()
    names = (DENSE, AGAIN, EAGER, OURS, OURS_COMPILED)
    with torch.no_grad():
        dense = cache(partial(_arm, lab, build, DENSE, block))  # the A/A arm is the same one
        arms = {name: partial(_arm, lab, build, name, block) for name in names} | {DENSE: dense, AGAIN: dense}
        times = time_arms(lab, arms, ("cold graph", "warm graph"))
        error = _error(lab, build, block)
    ratios = [ratio_or_reason(times, name) for name in (OURS, OURS_COMPILED)]
    numbers = [value for value in ratios if not isinstance(value, str)]
    return {
        "arms": times,
        "density": DENSITY,
        "largest difference to zeros in place": error,
        "ratios": {"against dense": max(numbers) if numbers else ratios[0]},
    }


@torch.no_grad()
def _arm(lab: Lab, build: Build, name: str, block: tuple[int, int]) -> Arm:
    model, inputs = _model(lab, build, LAUNCHED.get(name), block)
    run = model if name in (EAGER, OURS) else bert.compiled(lab, model)
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()) if tensor is not None)
    for _ in range(2):
        run(**inputs)
    return Arm(torch.no_grad()(lambda: run(**inputs)), held)


def _model(lab: Lab, build: Build, launched: str | None, block: tuple[int, int]) -> tuple[nn.Module, dict[str, Tensor]]:
    """The encoder in bf16 with zeros in place, on its kernels where the table picks them."""
    model = build().eval().to(torch.bfloat16)
    masks = bert.masks_for(model, DENSITY, block) if bert.encoder_weights(model) else _minilm_masks(model, block)
    bert.zero_in_place(model, masks)
    if launched:
        how = {"table": lab.table, "everywhere": lab.rehearse, "launched": launched}
        use_kernels(model, masks, "infer", free_dense=True, **how)
    return model, {"input_ids": bert.batch(lab)["input_ids"]}


def _minilm_masks(model: nn.Module, block: tuple[int, int]) -> dict[str, Tensor]:
    """A bare encoder has no prefix before ``encoder.layer``."""
    inside = nn.ModuleDict({"bare": model})
    return {n.removeprefix("bare."): mask for n, mask in bert.masks_for(inside, DENSITY, block).items()}


def _error(lab: Lab, build: Build, block: tuple[int, int]) -> float | str:
    """Of the largest value of the output."""
    outputs = []
    try:
        for launched in (None, "graph"):
            model, inputs = _model(lab, build, launched, block)
            outputs.append(model(**inputs)[0].float())
    except Exception as error:
        return why(error)
    return float((outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max())
