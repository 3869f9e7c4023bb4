"""Measure candidates against the first named, and write what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparseticket.bench import timing
from sparseticket.bench.candidates import Candidate, Ready, find, prepare
from sparseticket.bench.chart import draw
from sparseticket.bench.grid import ALL, Cell, make_cells
from sparseticket.bench.limits import Limit
from sparseticket.bench.machine import describe
from sparseticket.bench.report import csv_text, markdown
from sparseticket.bench.sessions import PLAINLY, TorchCall, compiling_anew
from sparseticket.errors import UserError
from sparseticket.export import native
from sparseticket.export.loaded_model import DTYPES
from sparseticket.files import write_json, write_whole

DEFAULT_OUT = Path("runs/bench")
SPARSE_FROM = 0.1  # below this share of zeros nobody expects a speed-up from them
ENOUGH_FOR_P99 = 100
RUNTIMES = {"pytorch": "PyTorch", "onnxruntime": "ONNX Runtime", "pt2": "PyTorch"}
LAUNCHED = {"eager": "from Python", "compiled": "by torch.compile", "graph": "as CUDA graphs"}


def bench(
    candidates: Sequence[str],
    out: Path | None = None,
    *,
    batch: Sequence[int] = (1,),
    seq_length: Sequence[int] | None = None,
    threads: Sequence[int | str] = (ALL,),
    seconds: float = 10.0,
    min_rounds: int = 5,
    kernels: str = "auto",
    dtype: str = "fp32",
    launched: str = "eager",
    fail_if: Sequence[str] = (),
    say: Callable[[str], object] = lambda _: None,
) -> dict[str, Any]:
    """Time every candidate on every device it can run on, taking turns, and compare with the first.

    Args:
        candidates: paths of ONNX files, export folders, runs, rounds or model folders; the first is the baseline.
        out: folder for ``bench.json``, ``bench.csv``, ``bench.md`` and ``bench.png`` (replaced where they are there);
            ``runs/bench`` by default.
        batch: rows per call; each is measured.
        seq_length: tokens per row; each is measured; by default 128, or fewer where a model takes no more.
        threads: threads of each call; each is measured; "all" is as many as PyTorch takes (the physical cores).
        seconds: how long to measure each record.
        min_rounds: measure at least so many rounds of ``timing.CALLS_PER_TURN`` calls, however long that takes.
        kernels: "auto" lets PyTorch's layers under a ticket run on sparse kernels on a GPU, where they were measured to
            be faster; "off" does not.
        dtype: "fp32", "fp16" or "bf16", to which model folders are cast for PyTorch.
        launched: how PyTorch calls them: "eager", from Python; "compiled", by ``torch.compile``; or "graph", as CUDA
            graphs, on a GPU only. If dtype or launched differs from its default, model folders run only on the GPU
            where there is one.
        fail_if: rules of :mod:`sparseticket.bench.limits`; what they are true for is listed under ``failures``.
        say: told which cell is measured.

    Returns:
        What is written as ``bench.json``. Times are in milliseconds, throughput in rows per second. A record's cell is
        its batch, length and threads.

    Raises:
        UserError: a rule that is none, or a candidate that is not there, cannot be read, or takes other inputs than
            the rest; CUDA graphs without a GPU.
    """
    limits = [Limit.parse(rule) for rule in fail_if]
    how = TorchCall(dtype, launched)
    _check(candidates, seconds, kernels, how)
    before = torch.get_num_threads()
    found = [find(name, path) for name, path in zip(short_names(candidates), candidates, strict=True)]
    if how != PLAINLY and all(one.runtime != "pytorch" for one in found):
        raise UserError("--dtype and --launched are for model folders, which PyTorch runs, and none was named.")
    cells = make_cells(found, batch=batch, seq_length=seq_length, threads=threads, all_threads=before)
    if len(found) == 1 and any(limit.unit == "x" for limit in limits):
        raise UserError("--fail-if with x compares with the baseline, and only one model was named: name another.")
    out = out or DEFAULT_OUT
    _check_out(out)
    records: list[dict[str, Any]] = []
    try:
        for number, cell in enumerate(cells, 1):
            say(f"{cell.words} ({number} of {len(cells)})")
            torch.set_num_threads(cell.threads)
            records += _measure(cell, found, seconds, min_rounds, how, kernels == "auto")
    finally:
        torch.set_num_threads(before)
    result = {
        "machine": describe(max(cell.threads for cell in cells)),
        "inputs": "; ".join(dict.fromkeys(cell.feeds.words for cell in cells)),
        "pytorch": f"{dtype}, called {LAUNCHED[launched]}" if any(one.runtime == "pytorch" for one in found) else None,
        "records": records,
        "notes": _kernel_notes(found, records, kernels, how) + _notes(found, records, how),
        "failures": [line for limit in limits for line in limit.failures(records)],
    }
    write_json(out / "bench.json", result)
    write_whole(out / "bench.csv", csv_text(result))
    write_whole(out / "bench.md", markdown(result))
    draw(result, out / "bench.png")
    return result


def _measure(
    cell: Cell, found: list[Candidate], seconds: float, min_rounds: int, how: TorchCall, kernels: bool
) -> list[dict[str, Any]]:
    with compiling_anew() if how.launched == "compiled" else nullcontext():
        ready = [
            prepare(one, device, cell.feeds, cell.threads, how, kernels=kernels)
            for one in found
            for device in _devices(one, found[0], how)
        ]
        timed = [one.timed for one in ready]
        samples = timing.interleave(timed, seconds=seconds * len(ready), min_rounds=min_rounds)
    return [_record(index, ready, samples, cell) for index in range(len(ready))]


def _devices(one: Candidate, baseline: Candidate, how: TorchCall) -> tuple[str, ...]:
    """Where a candidate is measured: on the CPU only where the baseline is, if it can run elsewhere."""

    def can(candidate: Candidate) -> tuple[str, ...]:
        return candidate.devices[-1:] if candidate.runtime == "pytorch" and how != PLAINLY else candidate.devices

    if "cpu" in can(baseline) or can(one) == ("cpu",):
        return can(one)
    return tuple(device for device in can(one) if device != "cpu")


def short_names(paths: Sequence[str]) -> list[str]:
    """A name for each path: as few of its last parts as tell it from the others."""
    parts = [Path(path).absolute().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-count:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError("the same model was named twice: name each once.")


def _record(index: int, ready: list[Ready], samples: list[np.ndarray], cell: Cell) -> dict[str, Any]:
    one, times = ready[index], samples[index]
    against = _baseline(one, ready)
    record = {
        "name": one.candidate.name,
        "provider": one.provider,
        "cell": cell.words,
        "batch": cell.batch,
        "tokens": cell.tokens,
        "threads": cell.threads,
        **timing.percentiles(times),
        "n": int(times.size),
        "throughput": 1000 * cell.batch / float(np.mean(times)),
        "bytes": one.candidate.bytes,
        "load_ms": one.alone.load_ms,
        "memory_bytes": one.alone.memory_bytes,
        "sparsity": one.candidate.sparsity,
        "on_kernels": len(one.on_kernels),
    }
    if against == index:
        return {**record, "speedup": 1.0, "speedup_low": 1.0, "speedup_high": 1.0, "against": None}
    ratio = timing.speedup(samples[against], times)
    named = f"{ready[against].candidate.name} ({ready[against].provider})"
    return {
        **record,
        "speedup": ratio.median,
        "speedup_low": ratio.low,
        "speedup_high": ratio.high,
        "against": named,
    }


def _baseline(one: Ready, ready: list[Ready]) -> int:
    """The first named candidate on the same device; on its first device where it does not run on this one."""
    first = ready[0].candidate
    same = (index for index, other in enumerate(ready) if other.candidate is first and other.device == one.device)
    return next(same, 0)


def _notes(found: list[Candidate], records: list[dict[str, Any]], how: TorchCall = PLAINLY) -> list[str]:
    on_kernels = {record["name"] for record in records if record["on_kernels"]}
    notes = [
        f"{one.name} is {100 * one.sparsity:.0f} % zeros; {RUNTIMES[one.runtime]} multiplies by zeros as by any other "
        "number: from its zeros alone expect 1.0x."
        for one in found
        if one.sparsity >= SPARSE_FROM and one.name not in on_kernels and not one.sparse_operators
    ]
    notes += [_operator_note(one) for one in found if one.sparse_operators]
    notes += [note for one in found if one.runtime == "pt2" for note in _unlike_folders(one, found, how)]
    notes += [
        f"{record['name']} ({record['provider']}) is not faster than {record['against']} at {record['cell']}: "
        f"{record['speedup']:.2f}x, 95 % interval {record['speedup_low']:.2f} to {record['speedup_high']:.2f}."
        for record in records
        if record["against"] is not None and record["speedup_low"] <= 1
    ]
    fewest = min(record["n"] for record in records)
    if fewest < ENOUGH_FOR_P99:
        notes.append(f"only {fewest} calls were measured, so p99 is hardly more than the slowest: raise --seconds.")
    return notes


def _operator_note(one: Candidate) -> str:
    if one.runtime == "onnxruntime":
        return f"{one.name} has {one.sparse_operators} sparse operators; their library: {native.report()}."
    if one.devices == ("cuda",):
        return f"{one.name} has {one.sparse_operators} block-sparse layers, on Triton kernels."
    return (
        f"{one.name} has {one.sparse_operators} block-sparse layers, which a CPU computes as dense ones: a program is "
        "for GPUs, measure it where there is one (and export it there)."
    )


def _unlike_folders(one: Candidate, found: list[Candidate], how: TorchCall) -> Iterator[str]:
    """What else than its zeros tells a program from the model folders that it is measured beside."""
    if all(other.runtime != "pytorch" for other in found):
        return
    if one.dtype != how.dtype:
        yield (f"{one.name} computes in {one.dtype}, model folders in {how.dtype}: compare with --dtype {one.dtype}.")
    if one.devices == ("cuda",) and how.launched == "eager":
        yield f"{one.name} is compiled, model folders are called from Python: compare with --launched compiled."


def _kernel_notes(found: list[Candidate], records: list[dict[str, Any]], kernels: str, how: TorchCall) -> list[str]:
    """What sparse kernels did, or why they did nothing."""
    under_ticket = [one.name for one in found if one.ticket is not None]
    if kernels == "off" or not under_ticket:
        return []
    if not torch.cuda.is_available():
        return ["no GPU: --kernels auto changes nothing here, PyTorch's layers run dense."]
    on_gpu = [one for one in records if one["name"] in under_ticket and one["provider"] == "pytorch-cuda"]
    notes = [
        f"{one['name']} at {one['cell']}: {one['on_kernels']} groups of layers run on sparse kernels." for one in on_gpu
    ]
    if how == PLAINLY and any(one["on_kernels"] == 0 for one in on_gpu):
        notes.append("from Python a launch takes longer than most products: try --launched graph --dtype bf16.")
    return notes


def _check(candidates: Sequence[str], seconds: float, kernels: str, how: TorchCall) -> None:
    for name, given, known in (
        ("kernels", kernels, ("auto", "off")),
        ("dtype", how.dtype, DTYPES),
        ("launched", how.launched, LAUNCHED),
    ):
        if given not in known:
            raise UserError(f"--{name} is {' or '.join(known)}, not {given!r}.")
    if how.launched == "graph" and not torch.cuda.is_available():
        raise UserError("--launched graph is for a GPU, and there is none that torch can use: leave it out.")
    if not candidates:
        raise UserError("name a baseline first, and then what to compare with it.")
    if not (math.isfinite(seconds) and seconds > 0):
        raise UserError(f"--seconds {seconds} makes no sense: give a number above 0.")


def _check_out(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be made ({error.strerror or error}): choose another --out.") from error
