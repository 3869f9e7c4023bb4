"""Measure candidates against the first named, and write what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparseticket.bench import timing
from sparseticket.bench.candidates import Candidate, Ready, find, prepare
from sparseticket.bench.inputs import make_feeds
from sparseticket.bench.machine import describe
from sparseticket.bench.report import markdown
from sparseticket.errors import UserError
from sparseticket.files import write_json, write_whole

DEFAULT_OUT = Path("runs/bench")
SPARSE_FROM = 0.1  # below this share of zeros nobody expects a speed-up from them
ENOUGH_FOR_P99 = 100
RUNTIMES = {"pytorch": "PyTorch", "onnxruntime": "ONNX Runtime"}


def bench(
    candidates: Sequence[str],
    out: Path | None = None,
    *,
    batch: int = 1,
    seq_length: int | None = None,
    threads: int | None = None,
    seconds: float = 10.0,
    min_rounds: int = 5,
) -> dict[str, Any]:
    """Time every candidate on every device it can run on, taking turns, and compare with the first.

    Args:
        candidates: paths of ONNX files, export folders, runs, rounds or model folders; the first is the baseline.
        out: folder for ``bench.json`` and ``bench.md`` (replaced where they are there); ``runs/bench`` by default.
        batch: rows per call.
        seq_length: tokens per row; by default 128, or fewer where a model takes no more.
        threads: threads of each call; by default as many as PyTorch takes (the physical cores).
        seconds: how long to measure, for each record.
        min_rounds: measure at least so many rounds of ``timing.CALLS_PER_TURN`` calls, however long that takes.

    Returns:
        What is written as ``bench.json``. Times are in milliseconds, throughput in rows per second.

    Raises:
        UserError: a candidate is not there, cannot be read, or takes other inputs than the rest.
    """
    _check(candidates, batch, seq_length, threads, seconds)
    out = out or DEFAULT_OUT
    _check_out(out)
    before = torch.get_num_threads()
    threads = threads or before
    found = [find(name, path) for name, path in zip(short_names(candidates), candidates, strict=True)]
    feeds = make_feeds({one.name: one.needs for one in found}, batch=batch, length=seq_length)
    try:
        torch.set_num_threads(threads)
        ready = [prepare(one, device, feeds, threads) for one in found for device in one.devices]
        samples = timing.interleave([one.timed for one in ready], seconds=seconds * len(ready), min_rounds=min_rounds)
    finally:
        torch.set_num_threads(before)
    records = [_record(index, ready, samples, batch) for index in range(len(ready))]
    result = {
        "machine": describe(threads),
        "inputs": feeds.words,
        "records": records,
        "notes": _notes(found, records),
    }
    write_json(out / "bench.json", result)
    write_whole(out / "bench.md", markdown(result))
    return result


def short_names(paths: Sequence[str]) -> list[str]:
    """A name for each path: as few of its last parts as tell it from the others."""
    parts = [Path(path).absolute().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-count:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError("the same model was named twice: name each once.")


def _record(index: int, ready: list[Ready], samples: list[np.ndarray], batch: int) -> dict[str, Any]:
    one, times = ready[index], samples[index]
    against = _baseline(one, ready)
    record = {
        "name": one.candidate.name,
        "provider": one.provider,
        **timing.percentiles(times),
        "n": int(times.size),
        "throughput": 1000 * batch / float(np.mean(times)),
        "bytes": one.candidate.bytes,
        "load_ms": one.load_ms,
        "memory_bytes": one.memory_bytes,
        "sparsity": one.candidate.sparsity,
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


def _notes(found: list[Candidate], records: list[dict[str, Any]]) -> list[str]:
    notes = [
        f"{one.name} is {100 * one.sparsity:.0f} % zeros; {RUNTIMES[one.runtime]} multiplies by zeros as by any other "
        "number: from its zeros alone expect 1.0x."
        for one in found
        if one.sparsity >= SPARSE_FROM
    ]
    notes += [
        f"{record['name']} ({record['provider']}) is not faster than {record['against']}: {record['speedup']:.2f}x, "
        f"95 % interval {record['speedup_low']:.2f} to {record['speedup_high']:.2f}."
        for record in records
        if record["against"] is not None and record["speedup_low"] <= 1
    ]
    fewest = min(record["n"] for record in records)
    if fewest < ENOUGH_FOR_P99:
        notes.append(f"only {fewest} calls were measured, so p99 is hardly more than the slowest: raise --seconds.")
    return notes


def _check(candidates: Sequence[str], batch: int, seq_length: int | None, threads: int | None, seconds: float) -> None:
    if not candidates:
        raise UserError("name a baseline first, and then what to compare with it.")
    for name, value in (("--batch", batch), ("--seq-length", seq_length), ("--threads", threads)):
        if value is not None and value < 1:
            raise UserError(f"{name} {value} makes no sense: give 1 or more.")
    if not (math.isfinite(seconds) and seconds > 0):
        raise UserError(f"--seconds {seconds} makes no sense: give a number above 0.")


def _check_out(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be made ({error.strerror or error}): choose another --out.") from error
