"""``--layout auto``: which of dense, shrunk, sparse-op and INT8 runs a model fastest, by measuring or by the table.

A candidate is tried in the order of its speed, and written once it answers like PyTorch; dense is always among them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparseticket.errors import RunFailure, UserError
from sparseticket.export import break_even, native
from sparseticket.export.loaded_model import LoadedModel
from sparseticket.export.options import Options
from sparseticket.export.prepare import prepare

LINEAR_SHARE = 0.83  # of the time of a dense BERT-base with 128 tokens is in its linear layers
TOKENS, SECONDS = 128, 3.0  # what candidates are timed on, and how long each
NO_INT8 = "INT8 was not considered: it needs both --data and --metric-drop, what the task's metric may lose."


@dataclass(frozen=True)
class Candidate:
    """A way to write the file."""

    options: Options

    @property
    def name(self) -> str:
        return self.options.layout + (", INT8" if self.options.quantize != "none" else "")


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
    found = list(_candidates(options, whole.kind))
    measured = options.target == "this"
    if not measured and whole.kind == "vision":
        raise UserError(
            "what share of a ResNet's time its convolutions take is not known: measure here, without --target."
        )
    speeds = _measure(found, whole, export, folder.parent) if measured else _predict(found, whole)
    tried = [{"candidate": one.name, **vars(speeds[one.name])} for one in found]
    by_speed = sorted(found, key=lambda one: -(speeds[one.name].speedup or 0))
    for candidate, line in ((one, tried[found.index(one)]) for one in by_speed if speeds[one.name].speedup):
        try:
            report = export(candidate.options, folder)
        except RunFailure as error:
            if candidate is found[0]:
                raise
            line["refused"] = str(error)
            shutil.rmtree(folder, ignore_errors=True)
            continue
        about = _about_machine() if measured else {"target": options.target, "figures": break_even.table()["measured"]}
        notes = [] if any(one.options.quantize != "none" for one in found) else [NO_INT8]
        return {**report, "auto": {"chosen": candidate.name, **about, "candidates": tried, "notes": notes}}
    raise RunFailure("no candidate could be written.")


def _candidates(options: Options, kind: str) -> Iterator[Candidate]:
    """Dense first; INT8 only where a loss of the task's metric is measured and bounded."""
    layouts = ("dense", "shrunk", "sparse-op")
    for layout in layouts:
        yield Candidate(replace(options, layout=layout, target=_target(options, layout), agreement=None))
    if options.measures and options.metric_drop is not None:
        quantize = "dynamic" if kind == "text" else "static"
        for layout in layouts if kind == "text" else layouts[:2]:  # sparse convolutions have no INT8
            target = _target(options, layout)
            yield Candidate(replace(options, layout=layout, target=target, quantize=quantize, atol=None, rtol=None))


def _target(options: Options, layout: str) -> str:
    return options.target if layout == "sparse-op" else "this"


def _predict(found: list[Candidate], whole: LoadedModel) -> dict[str, Speed]:
    """From the committed table and the zeros of the weights; the rest of the network takes its time as before."""
    target = next(one.options.target for one in found if one.options.layout == "sparse-op")
    weights = [weight.numel() for weight in _linears(whole)]
    speeds = {}
    for one in found:
        try:
            module = prepare(whole, None, one.options.layout, "fp32").model
        except UserError as error:
            speeds[one.name] = Speed(None, str(error))
            continue
        times = [weight.numel() * _time(weight, one.options, target) for weight in _linears(module)]
        if one.options.quantize != "none" and break_even.dense_int8(target) is None:
            speeds[one.name] = Speed(None, f"INT8 was not measured on {target}")
        elif one.options.layout == "sparse-op" and not any(_choice(w, one.options, target) for w in _linears(module)):
            speeds[one.name] = Speed(None, f"no linear layer is sparse enough for it on {target}")
        else:
            speedup = 1 / (1 - LINEAR_SHARE + LINEAR_SHARE * sum(times) / sum(weights))
            speeds[one.name] = Speed(round(speedup, 2), "predicted from the table")
    return speeds


def _linears(model: LoadedModel) -> list[Any]:
    from torch import nn

    return [layer.weight.detach() for layer in model.module.modules() if isinstance(layer, nn.Linear)]


def _choice(weight: Any, options: Options, target: str) -> break_even.Choice | None:
    """The pattern in which a layer runs sparse; None where it runs dense."""
    if options.layout != "sparse-op":
        return None
    found = break_even.choose(weight.cpu().numpy().T, break_even.figures(target, int8=options.quantize != "none"))
    return found if found is not None and found.wins else None


def _time(weight: Any, options: Options, target: str) -> float:
    """Of a layer, where it takes 1 dense in fp32."""
    choice = _choice(weight, options, target)
    dense = 1 / (break_even.dense_int8(target) or 1) if options.quantize != "none" else 1.0
    return dense / choice.speedup if choice else dense


def _measure(
    found: list[Candidate], whole: LoadedModel, export: Callable[[Options, Path], dict[str, Any]], beside: Path
) -> dict[str, Speed]:
    """Drafts that take turns on this machine, batch 1. A draft's task is not measured: that takes minutes."""
    from sparseticket.bench import timing
    from sparseticket.bench.sessions import open_session
    from sparseticket.export.to_onnx import FILE

    speeds, timed = {}, []
    feeds = {name: one.numpy() for name, one in whole.example(1, min(TOKENS, whole.max_length)).items()}
    with tempfile.TemporaryDirectory(dir=beside) as scratch:
        for index, one in enumerate(found):
            draft = Path(scratch) / str(index)
            try:
                export(_draft(one.options), draft)
            except (UserError, RunFailure) as error:
                if index == 0:
                    raise
                speeds[one.name] = Speed(None, str(error))
                continue
            session = open_session("onnxruntime", draft / FILE, "cpu", feeds, _threads())
            timed.append(timing.Timed(one.name, session.call, session.synchronize))
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
    agreement = 0.0 if options.quantize != "none" else None
    return replace(options, data=None, task=None, metric_drop=None, agreement=agreement)


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _about_machine() -> dict[str, Any]:
    from sparseticket.bench.machine import describe

    machine = describe(_threads())
    return {"target": native.target("this"), "machine": machine, "inputs": f"batch 1, at most {TOKENS} tokens"}
