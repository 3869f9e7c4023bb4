"""``--layout auto``: which of dense, shrunk, sparse-op and INT8 runs a model fastest, by measuring or by the table.

A candidate is tried in the order of its speed, and written once it answers like PyTorch; dense is always among them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparseticket.errors import RunFailure, UserError
from sparseticket.export import break_even, native
from sparseticket.export.loaded_model import LoadedModel
from sparseticket.export.options import Options
from sparseticket.export.prepare import prepare

DENSE = "dense"  # the layout that others are compared with, and that must be written
LINEAR_SHARE = 0.83  # of the time of a dense BERT-base with 128 tokens is in its linear layers
TOKENS, SECONDS = 128, 3.0  # what candidates are timed on, and how long each
NO_INT8 = "INT8 was not considered: it needs both --data and --metric-drop, what the task's metric may lose."


@dataclass(frozen=True)
class Speed:
    """How many times as fast as dense fp32 (None: it cannot be), and from what that is known."""

    speedup: float | None
    why: str


def export_fastest(
    options: Options, whole: LoadedModel, export: Callable[[Options, Path], dict[str, Any]], folder: Path
) -> dict[str, Any]:
    """Write the fastest candidate that is verified into ``folder`` with ``export``, and return its report.

    Raises:
        UserError: a table is asked for figures that it does not have.
        RunFailure: not even the dense file answers like PyTorch.
    """
    found = {_name(one): one for one in _candidates(options, whole.kind)}
    measured = options.target == "this"
    if not measured and whole.kind == "vision":
        raise UserError(
            "what share of a ResNet's time its convolutions take is not known: measure here, without --target."
        )
    speeds = _measure(found, whole, export, folder.parent) if measured else _predict(found, whole, options.target)
    tried = {name: {"candidate": name, **vars(speeds[name])} for name in found}
    for name in sorted((name for name in found if speeds[name].speedup), key=lambda name: -speeds[name].speedup):
        try:
            report = export(found[name], folder)
        except RunFailure as error:
            if name == DENSE:
                raise
            tried[name]["refused"] = str(error)
            shutil.rmtree(folder, ignore_errors=True)
            continue
        about = _about_machine() if measured else {"target": options.target, "figures": break_even.table()["measured"]}
        notes = [] if any(one.int8 for one in found.values()) else [NO_INT8]
        return {**report, "auto": {"chosen": name, **about, "candidates": list(tried.values()), "notes": notes}}
    raise RunFailure("no candidate could be written.")


def _candidates(options: Options, kind: str) -> Iterator[Options]:
    """Dense first; INT8 only where a loss of the task's metric is measured and bounded."""
    layouts = (DENSE, "shrunk", "sparse-op")
    for layout in layouts:
        yield replace(options, layout=layout, target=_target(options, layout), agreement=None)
    if options.measures and options.metric_drop is not None:
        quantize = "dynamic" if kind == "text" else "static"
        for layout in layouts if kind == "text" else layouts[:2]:  # sparse convolutions have no INT8
            target = _target(options, layout)
            yield replace(options, layout=layout, target=target, quantize=quantize, atol=None, rtol=None)


def _target(options: Options, layout: str) -> str:
    return options.target if layout == "sparse-op" else "this"


def _name(candidate: Options) -> str:
    return candidate.layout + (", INT8" if candidate.int8 else "")


def _predict(found: Mapping[str, Options], whole: LoadedModel, target: str) -> dict[str, Speed]:
    """From the committed table and the zeros of the weights; the rest of the network takes its time as before."""
    weights = [weight.numel() for weight in _linears(whole)]
    speeds = {}
    for name, one in found.items():
        try:
            module = prepare(whole, None, one.layout, "fp32").model
        except UserError as error:
            speeds[name] = Speed(None, str(error))
            continue
        times = [weight.numel() * _time(weight, one, target) for weight in _linears(module)]
        if one.int8 and break_even.dense_int8(target) is None:
            speeds[name] = Speed(None, f"INT8 was not measured on {target}")
        elif one.layout == "sparse-op" and not any(_choice(weight, one, target) for weight in _linears(module)):
            speeds[name] = Speed(None, f"no linear layer is sparse enough for it on {target}")
        else:
            speedup = 1 / (1 - LINEAR_SHARE + LINEAR_SHARE * sum(times) / sum(weights))
            speeds[name] = Speed(round(speedup, 2), "predicted from the table")
    return speeds


def _linears(model: LoadedModel) -> list[Any]:
    from torch import nn

    return [layer.weight.detach() for layer in model.module.modules() if isinstance(layer, nn.Linear)]


def _choice(weight: Any, options: Options, target: str) -> break_even.Choice | None:
    """The pattern in which a layer runs sparse; None where it runs dense."""
    if options.layout != "sparse-op":
        return None
    found = break_even.choose(weight.cpu().numpy().T, break_even.figures(target, int8=options.int8))
    return found if found is not None and found.wins else None


def _time(weight: Any, options: Options, target: str) -> float:
    """Of a layer, where it takes 1 dense in fp32."""
    choice = _choice(weight, options, target)
    dense = 1 / (break_even.dense_int8(target) or 1) if options.int8 else 1.0
    return dense / choice.speedup if choice else dense


def _measure(
    found: Mapping[str, Options], whole: LoadedModel, export: Callable[[Options, Path], dict[str, Any]], beside: Path
) -> dict[str, Speed]:
    """Drafts that take turns on this machine, batch 1. A draft's task is not measured: that takes minutes."""
    from sparseticket.bench import timing
    from sparseticket.bench.sessions import open_session
    from sparseticket.export.to_onnx import FILE

    speeds, timed = {}, []
    feeds = {name: one.numpy() for name, one in whole.example(1, min(TOKENS, whole.max_length)).items()}
    with tempfile.TemporaryDirectory(dir=beside) as scratch:
        for name, one in found.items():
            draft = Path(scratch) / name
            try:
                export(_draft(one), draft)
            except (UserError, RunFailure) as error:
                if name == DENSE:
                    raise
                speeds[name] = Speed(None, str(error))
                continue
            session = open_session("onnxruntime", draft / FILE, "cpu", feeds, _threads())
            timed.append(timing.Timed(name, session.call, session.synchronize))
        samples = timing.interleave(timed, seconds=SECONDS * len(timed))
    for one, times in zip(timed, samples, strict=True):
        ratio = timing.speedup(samples[0], times)
        slower = ratio.low <= 1 and one is not timed[0]
        p50 = timing.percentiles(times)["p50_ms"]
        why = f"measured: {ratio.median:.2f}x ({ratio.low:.2f}-{ratio.high:.2f}), {p50:.2f} ms"
        speeds[one.name] = Speed(None if slower else ratio.median, f"{why}, not faster than dense" if slower else why)
    return speeds


def _draft(options: Options) -> Options:
    """Without the task, unless it calibrates; an INT8 draft may decide as it likes."""
    if options.quantize == "static":
        return replace(options, metric_drop=1.0, agreement=0.0)
    agreement = 0.0 if options.int8 else None
    return replace(options, data=None, task=None, metric_drop=None, agreement=agreement)


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _about_machine() -> dict[str, Any]:
    from sparseticket.bench.machine import describe

    machine = describe(_threads())
    return {"target": native.target("this"), "machine": machine, "inputs": f"batch 1, at most {TOKENS} tokens"}
