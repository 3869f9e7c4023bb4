"""A measurement as a picture: one panel a cell, one bar a model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from sparseticket.bench.report import by_cell, gain, milliseconds
from sparseticket.files import write_whole

BASELINE, OTHER = "#888888", "#1f77b4"


def draw(result: dict[str, Any], out: Path) -> None:
    """Write a PNG: bars are medians in milliseconds, their lines reach from there to p99."""
    cells = by_cell(result)
    columns = math.ceil(math.sqrt(len(cells)))
    rows = math.ceil(len(cells) / columns)
    height = 1.1 + 0.42 * max(map(len, cells.values()))
    figure, panels = plt.subplots(rows, columns, figsize=(8 * columns, height * rows), squeeze=False)
    for panel in panels.flat[len(cells) :]:
        panel.axis("off")
    for panel, (words, records) in zip(panels.flat, cells.items(), strict=False):
        _panel(panel, words, records)
    figure.tight_layout()
    write_whole(out, lambda path: figure.savefig(path, format="png", dpi=110))
    plt.close(figure)


def _panel(panel: plt.Axes, words: str, records: list[dict[str, Any]]) -> None:
    medians = [record["p50_ms"] for record in records]
    panel.barh(
        range(len(records)),
        medians,
        xerr=[[0.0] * len(records), [record["p99_ms"] - record["p50_ms"] for record in records]],
        color=[BASELINE if record["against"] is None else OTHER for record in records],
        error_kw={"lw": 0.8, "capsize": 3},
    )
    labels = [f"{one['name']}\n{one['provider']}: {milliseconds(one['p50_ms'])} ms, {gain(one)}" for one in records]
    panel.set_yticks(range(len(records)), labels, fontsize=8)
    panel.invert_yaxis()
    panel.set_xlabel("ms a call: bar p50, line to p99", fontsize=8)
    panel.set_title(words, fontsize=9)
