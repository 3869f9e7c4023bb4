"""The transfer matrix as a picture, in both readings: blue is better, red worse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from sparseticket.files import write_whole

WITHIN = 1.0  # points: no narrower scale of colours, or noise would look like a result


def draw(result: dict[str, Any], out: Path) -> None:
    """Write a PNG of a ``matrix.json``: differences in points to the ticket of the same task, and to dense."""
    sources, tasks = list(result["sources"]), result["tasks"]
    width = max(4.2, 2.6 + 1.1 * len(tasks))  # as wide as the title
    figure, panels = plt.subplots(1, 2, figsize=(2 * width, 1.9 + 0.5 * len(sources)), squeeze=False)
    _panel(
        panels[0, 0], result, sources, "to_same_task", "against the ticket of the same task\n(bold: at least as good)"
    )
    _panel(panels[0, 1], result, sources, "to_dense", "against dense\n(bold: matching, within one deviation)")
    figure.suptitle(f"{result['model']}: tickets (rows) on tasks (columns), mean difference in points")
    figure.tight_layout()
    write_whole(out, lambda path: figure.savefig(path, format="png", dpi=110))
    plt.close(figure)


def _panel(panel: plt.Axes, result: dict[str, Any], sources: list[str], key: str, title: str) -> None:
    cells = [[result["cells"][source][task] for task in result["tasks"]] for source in sources]
    points = np.array([[np.nan if cell[key] is None else 100 * cell[key] for cell in row] for row in cells])
    limit = max(WITHIN, np.abs(np.nan_to_num(points)).max())
    colours = plt.get_cmap("RdBu").with_extremes(bad="#dddddd")
    panel.imshow(points, cmap=colours, vmin=-limit, vmax=limit, aspect="auto")
    panel.set_xticks(range(len(result["tasks"])), result["tasks"], rotation=45, ha="right")
    panel.set_yticks(range(len(sources)), [f"{s} ({result['sources'][s]['sparsity']:.0%})" for s in sources])
    panel.set_title(title, fontsize=9)
    for i, row in enumerate(cells):
        for j, cell in enumerate(row):
            good = cell["at_least_same_task"] if key == "to_same_task" else cell["verdict"]["matching"]
            text = "–" if np.isnan(points[i, j]) else f"{points[i, j]:+.2f}"
            colour = "white" if abs(points[i, j]) > 0.6 * limit else "black"
            panel.text(j, i, text, ha="center", va="center", color=colour, weight="bold" if good else "normal")
