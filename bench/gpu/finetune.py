"""Fine-tuning steps of BERT-base, four a call: bf16 autocast, fused AdamW, clipping, all compiled by torch.

Compiled networks launch kernel by kernel, or in CUDA graphs (``mode="reduce-overhead"``). Both are measured, and
the one in which dense is faster counts: where a step waits for the CPU, no arm shows how long the GPU takes.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator
from itertools import chain, cycle
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from sparseticket.bench.gpu import bert
from sparseticket.bench.gpu.arms import AGAIN, DENSE, Arm, Times, ratio_or_reason, time_arms, why
from sparseticket.bench.gpu.lab import Lab
from sparseticket.bench.gpu.lengths import sst2_lengths
from sparseticket.bench.gpu.optimizers import CLIP
from sparseticket.kernels.adamw import MaskedAdamW
from sparseticket.kernels.apply import use_kernels

PRUNE, MULTIPLIED, OURS = "nn.utils.prune", "zeros in place, masks multiplied", "sparseticket"
STEP = "queued"
LAUNCHES = ("default", "reduce-overhead")  # modes of torch.compile
WARM_UP = 3  # steps: compile, record graphs, replay them
STEPS = 4  # a call: the CPU runs ahead of the device from one to the next, or does not, and both count


def unstructured(lab: Lab, device: dict[str, Any]) -> dict[str, Any]:
    """70 % zeros, 32 × 128."""
    figure = _both_launches(lab, 0.3, (1, 1), (DENSE, AGAIN, PRUNE, MULTIPLIED, OURS))
    alone = figure["by mode"].get(LAUNCHES[0], {})  # graphs keep all that a step needs for ever
    memory: float | str = "one of them did not run"
    if all("peak_mb" in alone.get(arm, {}) for arm in (PRUNE, OURS)):
        memory = alone[PRUNE]["peak_mb"] / alone[OURS]["peak_mb"] if alone[OURS]["peak_mb"] else "not measured here"
    ratios = {
        "against prune": _against(figure, PRUNE),
        "memory against prune": memory,
        "against dense": _against(figure, DENSE),
    }
    return figure | {"ratios": ratios}


def blocks(lab: Lab, device: dict[str, Any]) -> dict[str, Any]:
    """75 % zeros in blocks of 128², each layer's passes as the table says."""
    figure = _both_launches(lab, 0.25, lab.block(128), (DENSE, AGAIN, MULTIPLIED, OURS))
    return figure | {"ratios": {"against dense": _against(figure, DENSE)}}


def real_lengths(lab: Lab, device: dict[str, Any]) -> dict[str, Any]:
    """70 % zeros, SST-2's lengths, padded by batch; a recompilation after warm-up is a failure of its arm.

    Raises:
        RuntimeError: no SST-2 was given.
    """
    lengths, counted = sst2_lengths(lab)
    rows = 2 if lab.rehearse else bert.ROWS
    batches = [lengths[at : at + rows] for at in range(0, len(lengths) - rows + 1, rows)][: 2 + 2 * lab.rounds]
    prepared = [bert.batch(lab, batch, seed) for seed, batch in enumerate(batches)]
    times = _time(lab, 0.3, (1, 1), (DENSE, AGAIN, OURS), prepared, dynamic=True)
    return {
        "arms": times,
        "density": 0.3,
        "lengths": {"counted": counted, "median": statistics.median(lengths), "longest": max(lengths)},
        "ratios": {"against dense": ratio_or_reason(times, OURS, DENSE, STEP)},
    }


def warm_up(lab: Lab, arm: str, density: float, block: tuple[int, int], mode: str) -> None:
    """One step of an arm, so that what it compiles is in the cache on disk."""
    _step(lab, arm, density, block, cycle([bert.batch(lab)]), mode=mode).call()


def warm_up_lengths(lab: Lab) -> None:
    """The same of a dense network for batches of any length."""
    padded = [bert.batch(lab, lengths) for lengths in ([12, 7], [9, 5])]
    _step(lab, DENSE, 0.3, (1, 1), cycle(padded), dynamic=True).call()


def _both_launches(lab: Lab, density: float, block: tuple[int, int], arms: tuple[str, ...]) -> dict[str, Any]:
    """``arms`` in both modes, and beside them that in which ours is held against dense.

    Raises:
        RuntimeError: dense runs in neither mode.
    """
    found: dict[str, Times] = {}
    failed = {}
    for mode in LAUNCHES:
        try:
            times = _time(lab, density, block, arms, cycle([bert.batch(lab)]), mode=mode)
        except RuntimeError as error:
            failed[mode] = why(error)
            continue
        if STEP in times[DENSE]:
            found[mode] = times
        else:
            failed[mode] = times[DENSE]["failed"][STEP]
    if not found:
        raise RuntimeError(f"dense does not run: {failed}")
    mode = _compared(found, DENSE)
    return {"arms": found[mode], "density": density, "mode": mode, "by mode": found, "failed": failed}


def _compared(found: dict[str, Times], other: str) -> str:
    """The mode in which dense takes less time, of those in which both ours and the other run, where there are any."""
    both = [mode for mode, times in found.items() if STEP in times[OURS] and STEP in times[other]]
    return min(both or list(found), key=lambda mode: found[mode][DENSE][STEP]["ms"])


def _against(figure: dict[str, Any], other: str) -> float | str:
    return ratio_or_reason(figure["by mode"][_compared(figure["by mode"], other)], OURS, other, STEP)


def _time(
    lab: Lab, density: float, block: tuple[int, int], arms: tuple[str, ...], batches: Any, **options: Any
) -> Times:
    torch._dynamo.reset()
    gc.collect()  # networks of the mode before
    dynamic = options.get("dynamic", False)

    each_length = list({batch["input_ids"].shape[1]: batch for batch in batches}.values()) if dynamic else []
    warm_up = max(WARM_UP, len(each_length))  # what is compiled for a length is compiled by then
    made: dict[str, Arm] = {}

    def make(name: str) -> Callable[[], Arm]:
        def build() -> Arm:
            if name == AGAIN and not dynamic:  # to compile it once more takes long; but each has to meet every batch
                return made[DENSE]
            source = chain(each_length, cycle(batches)) if dynamic else batches
            made[name] = _step(lab, name, density, block, source, warm_up, **options)
            return made[name]

        return build

    return time_arms(lab, {name: make(name) for name in arms}, (STEP,))


def _step(
    lab: Lab,
    arm: str,
    density: float,
    block: tuple[int, int],
    batches: Iterator[dict[str, Tensor]],
    warm_up: int = WARM_UP,
    **options: Any,
) -> Arm:
    """One training step, with a network, an optimizer and masks of its own, after some to warm up."""
    before = torch.cuda.memory_allocated() if lab.device == "cuda" else 0
    model = bert.build(lab)
    model.train()
    masks = bert.masks_for(model, density, block)
    names, parameters = list(masks), dict(model.named_parameters())
    mask_gradients = clip = lambda: None
    if arm in (DENSE, AGAIN):
        masks = {}
    elif arm == PRUNE:
        _prune(model, masks)
    else:
        bert.zero_in_place(model, masks)
    if arm == OURS:
        if block != (1, 1):
            use_kernels(
                model, masks, "train", dtype=torch.bfloat16, table=lab.table, everywhere=lab.rehearse,
                launched="compiled",
            )  # fmt: skip
        optimizer = MaskedAdamW(parameters.values(), {parameters[name]: mask for name, mask in masks.items()}, lr=1e-5)
        clip = lambda: optimizer.clip_grad_norm(CLIP)  # noqa: E731
    else:
        trained = list(model.parameters())
        optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
        clip = lambda: torch.nn.utils.clip_grad_norm_(trained, CLIP)  # noqa: E731
    if arm == MULTIPLIED:
        floats = [mask.float() for mask in masks.values()]
        mask_gradients = lambda: torch._foreach_mul_([parameters[name].grad for name in names], floats)  # noqa: E731
    del masks  # what an arm needs of them it holds in its own form, and only that counts as its memory
    run = bert.compiled(lab, model, **options)

    def step() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(lab.device, torch.bfloat16):
            loss = run(**next(batches)).loss
        loss.backward()
        mask_gradients()
        clip()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def steps() -> None:
        for _ in range(1 if lab.rehearse else STEPS):
            step()

    for _ in range(warm_up):
        step()
    held = torch.cuda.memory_allocated() - before if lab.device == "cuda" else 0
    return Arm(_without_recompiling(steps) if options.get("dynamic") else steps, held)


def _without_recompiling(step: Callable[[], None]) -> Callable[[], None]:
    def call() -> None:
        with torch.compiler.set_stance("fail_on_recompile"):
            step()

    return call


def _prune(model: nn.Module, masks: dict[str, Tensor]) -> None:
    for name, mask in masks.items():
        module = model.get_submodule(name.removesuffix(".weight"))
        prune.custom_from_mask(module, "weight", mask)
