"""Draw accuracy over sparsity of runs, with what their tickets gave over seeds: the picture in the README.

python -m sparseticket.bench.curves docs/curves.png RUN …     (a run folder, with the transfers inside it)
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from sparseticket.errors import SparseticketError, UserError
from sparseticket.files import write_whole
from sparseticket.runs import SUMMARY, read_json

COLOURS = {"dense": "#666666", "ticket": "#d62728", "random-mask": "#1f77b4"}


def draw(runs: list[Path], out: Path) -> None:
    """One panel a run: the rounds' values as a line, the arms of its transfers as means with one deviation."""
    figure, panels = plt.subplots(1, len(runs), figsize=(5.2 * len(runs), 3.8), squeeze=False)
    for panel, run in zip(panels[0], runs, strict=True):
        _panel(panel, read_json(run / SUMMARY), [read_json(path) for path in sorted(run.glob("*/transfer.json"))])
    figure.tight_layout()
    write_whole(out, lambda path: figure.savefig(path, format="png", dpi=130))


def _panel(panel: plt.Axes, found: dict[str, Any], transfers: list[dict[str, Any]]) -> None:
    rounds = found["rounds"]
    points = [100 * entry["sparsity"] for entry in rounds], [100 * entry["value"] for entry in rounds]
    panel.plot(*points, "o-", color="black", ms=4, lw=1, label="rounds of the search, one seed")
    if found["dense"] is not None:
        panel.axhline(100 * found["dense"], color=COLOURS["dense"], lw=0.8, ls=":")
    for transfer in transfers:
        for name, arm in transfer["arms"].items():
            at = 0 if name == "dense" else 100 * transfer["sparsity"]
            spread = None if arm["std"] is None else 100 * arm["std"]
            label = f"{name}, {arm['n']} seeds"
            panel.errorbar(
                at, 100 * arm["mean"], yerr=spread, fmt="s", ms=5, capsize=4, color=COLOURS[name], label=label
            )
    panel.set_xlabel("sparsity (%)")
    panel.set_ylabel(f"{found['metric']} (%)")
    panel.set_title(f"{found['model']} on {found['task']}", fontsize=10)
    panel.legend(fontsize=8)
    panel.grid(alpha=0.3)


def main() -> None:
    """Draw what the arguments name."""
    try:
        if len(sys.argv) < 3:
            raise UserError(
                "name the picture to write, and the runs: python -m sparseticket.bench.curves OUT.png RUN …"
            )
        draw([Path(argument) for argument in sys.argv[2:]], Path(sys.argv[1]))
    except SparseticketError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
