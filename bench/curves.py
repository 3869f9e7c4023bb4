"""Draw accuracy over sparsity of runs, with what their tickets gave over seeds: the picture in the README.

python -m sparseticket.bench.curves docs/curves.png RUN …

A RUN is a run folder with the transfers inside it, or the folder of a study (``study.json``), whose transfers are
joined to one line for each way of finding; of a study the figures are printed too, as a table.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from sparseticket.bench.messages import errors_as_messages
from sparseticket.errors import UserError
from sparseticket.files import read_json, write_whole
from sparseticket.markdown import table
from sparseticket.runs import SETTINGS, SUMMARY, read_settings
from sparseticket.schedule import SNAP
from sparseticket.show import mean_and_spread

STUDY = "study.json"
COLOURS = {
    "dense": "#666666",
    "ticket": "#d62728",
    "IMP": "#d62728",
    "one-round": "#ff7f0e",
    "one-shot": "#2ca02c",
    "random-mask": "#1f77b4",
}
Lines = dict[str, dict[float, dict[str, Any]]]  # by way of finding and sparsity: mean, std, n


def draw(runs: list[Path], out: Path) -> None:
    """One panel a run or study: values as a line, the arms of transfers as means with one deviation."""
    figure, panels = plt.subplots(1, len(runs), figsize=(5.2 * len(runs), 3.8), squeeze=False)
    for panel, run in zip(panels[0], runs, strict=True):
        if (run / STUDY).is_file():
            _study_panel(panel, *study_lines(run))
        else:
            _run_panel(
                panel, read_json(run / SUMMARY), [read_json(path) for path in sorted(run.glob("*/transfer.json"))]
            )
    figure.tight_layout()
    write_whole(out, lambda path: figure.savefig(path, format="png", dpi=130))


def study_lines(folder: Path) -> tuple[str, str, Lines]:
    """What a study's transfers gave: a title, the metric, and the arms by name and sparsity.

    A ticket's line is named after its schedule; what was pruned step by step is IMP. Sparsities within ``SNAP`` are
    one: a search for 67.23 % by geometric steps ends at 67.232 %, and one round at 67.230 %.
    """
    lines: Lines = {}
    sparsities: list[float] = []
    title = metric = ""
    for step in read_json(folder / STUDY)["steps"].values():
        if step["verb"] != "transfer":
            continue
        done, schedule = step["result"], read_settings(folder / step["of"][0] / SETTINGS).protocol.schedule
        title, metric = f"{done['model']} on {done['task']}", done["metric"]
        at = next((known for known in sparsities if abs(known - done["sparsity"]) <= SNAP), done["sparsity"])
        sparsities.append(at)
        for name, arm in done["arms"].items():
            line = ("IMP" if ":" in schedule else schedule) if name == "ticket" else name
            lines.setdefault(line, {})[0.0 if name == "dense" else at] = arm
    if not lines:
        raise UserError(f"{folder / STUDY}: no transfer of it is finished, so there is no curve yet.")
    return title, metric, lines


def study_table(lines: Lines) -> str:
    """The figures of :func:`study_lines` as Markdown: percent, mean ± standard deviation."""
    sparsities = sorted({at for line in lines.values() for at in line} - {0.0})
    rows = [
        [name, *(mean_and_spread(line.get(0.0 if name == "dense" else at)) for at in sparsities)]
        for name, line in lines.items()
    ]
    return "\n".join(table(["arm", *(f"{at:.2%}" for at in sparsities)], rows))


def _study_panel(panel: plt.Axes, title: str, metric: str, lines: Lines) -> None:
    for name, line in lines.items():
        points = sorted(line.items())
        runs = sorted({arm["n"] for _, arm in points})
        label = f"{name}, {'–'.join(map(str, runs))} seeds"
        panel.errorbar(
            [100 * at for at, _ in points],
            [100 * arm["mean"] for _, arm in points],
            yerr=[100 * (arm["std"] or 0.0) for _, arm in points],
            fmt="s" if name == "dense" else "o-",
            ms=4,
            lw=1,
            capsize=3,
            color=COLOURS.get(name),
            label=label,
        )
        if name == "dense":
            panel.axhline(100 * points[0][1]["mean"], color=COLOURS["dense"], lw=0.8, ls=":")
    _finish(panel, metric, title)


def _run_panel(panel: plt.Axes, found: dict[str, Any], transfers: list[dict[str, Any]]) -> None:
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
                at, 100 * arm["mean"], yerr=spread, fmt="s", ms=5, capsize=4, color=COLOURS.get(name), label=label
            )
    _finish(panel, found["metric"], f"{found['model']} on {found['task']}")


def _finish(panel: plt.Axes, metric: str, title: str) -> None:
    panel.set_xlabel("sparsity (%)")
    panel.set_ylabel(f"{metric} (%)")
    panel.set_title(title, fontsize=10)
    panel.legend(fontsize=8)
    panel.grid(alpha=0.3)


@errors_as_messages()
def main() -> None:
    """Draw what the arguments name."""
    if len(sys.argv) < 3:
        raise UserError("name the picture to write, and the runs: python -m sparseticket.bench.curves OUT.png RUN …")
    runs = [Path(argument) for argument in sys.argv[2:]]
    draw(runs, Path(sys.argv[1]))
    for run in runs:
        if (run / STUDY).is_file():
            title, metric, lines = study_lines(run)
            print(f"{title}, {metric} in percent\n\n{study_table(lines)}")


if __name__ == "__main__":
    main()
