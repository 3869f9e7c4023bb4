"""The tables at the end, short enough to be read whole where output is cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparseticket.kernels.dispatch import LEAST_GAIN, Table

LONGEST = 12_000  # characters
WIDTH = 118


def tables(
    about: Mapping[str, Any], marks: Sequence[Mapping[str, Any]], figures: Mapping[str, dict[str, Any]], table: Table
) -> str:
    """Every arm's times, the table's gist, and the marks last."""
    lines = [f"{about['gpu']}, {about['date']}, torch {about['versions'].get('torch')}, "
             f"triton {about['versions'].get('triton')}"]  # fmt: skip
    if about["rehearsal"]:
        lines.append("A REHEARSAL ON THE CPU WITH TINY SHAPES: no time below means anything.")
    for name, figure in figures.items():
        lines += _figure(name, figure)
    picked = sum(cell.low >= LEAST_GAIN for cell in table.cells)
    lines.append(f"table: {len(table.cells)} cells, a kernel is picked in {picked}")
    tail = ["", "marks (measured, at least)"] + [_mark(mark) for mark in marks]
    room = LONGEST - sum(len(line) + 1 for line in tail) - 40
    text = "\n".join(lines)
    if len(text) > room:
        text = text[:room].rsplit("\n", 1)[0] + "\n… more in the file"
    return "\n".join([text, *tail])


def _mark(mark: Mapping[str, Any]) -> str:
    if mark["measured"] is None:
        return f"  {mark['result']:13} {mark['mark']}: {mark['reason']}"[:WIDTH]
    return f"  {mark['result']:13} {mark['mark']}: {mark['measured']:.3f} ({mark['at_least']})"[:WIDTH]


def _figure(name: str, figure: dict[str, Any]) -> list[str]:
    """A line an arm: microseconds, how many times as fast as dense (under ranked masks too), peak MB."""
    if "error" in figure:
        return [f"{name}: {figure['error']}"[:WIDTH]]
    ceiling = f" (ceiling {figure['roofline']['ceiling']:.2f})" if "roofline" in figure else ""
    lines = [name + ceiling + (f", compiled with mode {figure['mode']}" if "mode" in figure else "")]
    if "checks" in figure:
        wrong = [check for check, one in figure["checks"].items() if one["agrees"] is False]
        lacking = "".join(
            f" ({check}: does not run)" for check, one in figure["checks"].items() if one["agrees"] is None
        )
        return [f"{name}: " + (f"WRONG: {'; '.join(wrong)}" if wrong else "agrees") + lacking]
    for arm, times in (figure.get("arms") or figure.get("uniform") or {}).items():
        lines.append(f"  {arm:22} {_times(times, figure.get('ranked', {}).get(arm))}"[:WIDTH])
    return lines


def _times(times: Mapping[str, Any], ranked: Mapping[str, Any] | None) -> str:
    mode = next((mode for mode in ("queued", "cold graph") if mode in times), None)
    if mode is None:
        return str(times.get("error") or times["failed"])
    beside = f" {ranked[mode]['ratio']:6.2f}×" if ranked and mode in ranked else " " * 8
    return f"{times[mode]['ms'] * 1e3:8.1f} µs {times[mode]['ratio']:6.2f}×{beside} {times['peak_mb']:7.1f} MB"
