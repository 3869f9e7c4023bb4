"""Every entry in the order in which it runs: cheap and telling ones first, whole networks after the cells they need."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch

from sparseticket.bench.gpu import dispatcher, few_rows, finetune, inference, linears, optimizers, parity, tuning
from sparseticket.bench.gpu.figures import Figures
from sparseticket.bench.gpu.lab import Lab
from sparseticket.bench.gpu.linears import LINEARS
from sparseticket.bench.gpu.prepare import Task, kernels_of
from sparseticket.bench.gpu.roofline import measure_device

SIDES_OF_FEW_ROWS = (1024, 4096)  # K, of weights with 4096 rows
SECONDS = {  # of entries that take long; core's tuner took 180 for one shape
    "inference": 60.0,
    "finetune-blocks-75": 120.0,
    "finetune-70": 120.0,
    "finetune-lengths": 90.0,
    "ffn-in-core": 200.0,
    "minilm": 60.0,
}
Entry = Callable[[Lab, dict[str, Any]], dict[str, Any]]  # given the device's measured ceilings


def first(lab: Lab) -> dict[str, Entry]:
    """Entries that need nothing but kernels."""
    entries: dict[str, Entry] = {
        "device": lambda lab, _: measure_device(lab),
        **{f"parity of {name}": partial(_parity, name) for name in parity.CHECKS},
    }
    for name in ("ffn-in", "ffn-out", "qkv", "768-768"):
        entries[f"{name}-75"] = partial(_forward, name, 0.25, False)
    entries["optimizer-70"] = lambda lab, _: optimizers.clip_and_step(lab, 0.3)
    for name in ("ffn-in", "ffn-out"):
        entries[f"{name}-train"] = lambda lab, device, of=name: linears.train_step(lab, device, LINEARS[of], 0.25)
    for side in SIDES_OF_FEW_ROWS:
        entries[f"bitmap-{side}-4096"] = lambda lab, device, k=side: few_rows.forward(lab, device, 4096, k, 0.1)
    for name in ("qkv", "ffn-in", "ffn-out"):
        entries[f"{name}-90"] = partial(_forward, name, 0.1, False)
    for name in ("large-ffn-in", "large-ffn-out", "4096-4096"):
        entries[f"{name}-75"] = partial(_forward, name, 0.25, False)
        entries[f"{name}-90"] = partial(_forward, name, 0.1, False)
    entries["masked-linear-70"] = lambda lab, device: linears.masked_forward(lab, device, LINEARS["ffn-in"], 0.3)
    return entries


def networks(lab: Lab) -> dict[str, Entry]:
    """Entries with a whole network, which run on what the table says by then."""
    return {
        "inference": inference.bert_base,
        "finetune-blocks-75": finetune.blocks,
        "finetune-70": finetune.unstructured,
        "finetune-lengths": finetune.real_lengths,
    }


def last(lab: Lab) -> dict[str, Entry]:
    """What is asked of the table when it was filled."""
    return {"dispatcher": lambda lab, _: dispatcher.check(lab)}


def rest(lab: Lab) -> dict[str, Entry]:
    """What takes long beside what it tells: core's kernel behind its tuner, and a network that has no mark."""
    return {"ffn-in-core": partial(_forward, "ffn-in", 0.25, True), "minilm": inference.minilm}


def everything(lab: Lab) -> list[str]:
    """The names of all entries."""
    return [name for part in (first, networks, last, rest) for name in part(lab)]


def seconds(name: str) -> float:
    """About how long an entry takes at most: it does not begin where less time is left."""
    return SECONDS.get(name, 10.0)


def to_compile_first(lab: Lab, figures: Figures) -> dict[str, Task]:
    """Everything that can be compiled before anything was measured, for entries and cells that are not there yet."""
    missing = [name for name in everything(lab) if not figures.has(name)]
    tasks: dict[str, Task] = {}
    if "inference" in missing:
        tasks["inference dense"] = partial(_warm_inference, inference.DENSE)
    for mode, arm in product(finetune.LAUNCHES, (finetune.DENSE, finetune.PRUNE)):
        if "finetune-70" in missing or (arm == finetune.DENSE and "finetune-blocks-75" in missing):
            tasks[f"train {arm}, {mode}"] = partial(_warm_train, arm, 0.3, (1, 1), mode)
    if "finetune-lengths" in missing and lab.data:
        tasks["train lengths"] = finetune.warm_up_lengths
    for side in SIDES_OF_FEW_ROWS:
        if f"bitmap-{side}-4096" in missing:
            tasks[f"few rows {side}"] = partial(_warm_few_rows, side)
    cells = set(tuning.cells(lab))
    tasks |= kernels_of([wanted for wanted in tuning.of_bert_base(lab) if wanted in cells])  # the longest first
    for name, dtype in product(parity.CHECKS, parity.TOLERANCE):
        if f"parity of {name}" in missing:
            tasks[f"parity of {name}, {dtype}"] = partial(_warm_parity, name, dtype)
    return tasks


def to_compile_then(lab: Lab, figures: Figures) -> dict[str, Task]:
    """Networks on kernels that the table has picked."""
    tasks: dict[str, Task] = {}
    if not figures.has("finetune-blocks-75"):
        ours = partial(_warm_train, finetune.OURS, 0.25, lab.block(128))
        tasks |= {f"train ours, {mode}": partial(ours, mode) for mode in finetune.LAUNCHES}
    if not figures.has("inference"):
        tasks["inference ours"] = partial(_warm_inference, inference.OURS_COMPILED)
    return tasks


def _parity(name: str, lab: Lab, device: dict[str, Any]) -> dict[str, Any]:
    return parity.check(lab, name)


def _forward(name: str, density: float, against_core: bool, lab: Lab, device: dict[str, Any]) -> dict[str, Any]:
    return linears.forward(lab, device, LINEARS[name], density, against_core=against_core)


def _warm_train(arm: str, density: float, block: tuple[int, int], mode: str, lab: Lab) -> None:
    finetune.warm_up(lab, arm, density, block, mode)


def _warm_few_rows(side: int, lab: Lab) -> None:
    few_rows.warm_up(lab, 4096, side, 0.1)


def _warm_parity(name: str, dtype: torch.dtype, lab: Lab) -> None:
    parity.warm_up(lab, name, dtype)


def _warm_inference(arm: str, lab: Lab) -> None:
    inference.warm_up(lab, arm)
