"""The whole way, on what comes with packages: find a ticket, transfer it, export it, measure it. Nothing is downloaded.

Run by ``make demo`` as ``python -m sparseticket.demo``, and an example of the Python API. It writes into ``demo/`` in
the working directory; what is finished there is not done again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from sparseticket import recipes
from sparseticket.bench.runner import bench
from sparseticket.errors import SparseticketError, UserError
from sparseticket.export.exporter import REPORT, ZEROS_NOTE, export_model
from sparseticket.files import read_json, write_json
from sparseticket.imp import find
from sparseticket.progress import Screen, clock
from sparseticket.show import mean_and_spread, percent, show_find, show_transfer
from sparseticket.transfer import transfer
from sparseticket.transfer_plan import plan
from sparseticket.verdict import Verdict

FOLDER = Path("demo")
RECIPES = ("demo/docstring-topic", "demo/digits")  # MiniLM, and a ResNet-20 from random weights
HEADINGS = (
    "task",
    "sparsity",
    "dense",
    "ticket",
    "random mask",
    "verdict",
    "ONNX file",
    "latency of dense",
    "latency of ticket",
    "speed-up",
)


@dataclass(frozen=True)
class Made:
    """What the demo leaves of one task: every path lies in its folder."""

    folder: Path
    ticket: Path
    transfer: Path

    @property
    def dense_onnx(self) -> Path:
        """The export of round 0's network."""
        return self.folder / "onnx-dense"

    @property
    def ticket_onnx(self) -> Path:
        """The export of the last round's network."""
        return self.folder / "onnx-ticket"

    @property
    def bench(self) -> Path:
        """The folder of the measurement."""
        return self.folder / "bench"


def run_demo(names: Sequence[str] = RECIPES, *, screen: Screen, seconds: float = 3.0) -> dict[str, Any]:
    """Run each recipe into its own folder in :data:`FOLDER`; returns (and leaves) ``demo.json``.

    ``seconds`` is how long each model is measured.
    """
    begun = time.monotonic()
    result = {
        "tasks": [run_task(recipes.load(name), screen=screen, seconds=seconds) for name in names],
        "note": ZEROS_NOTE,
        "seconds": time.monotonic() - begun,
    }
    write_json(FOLDER / "demo.json", result)
    return result


def run_task(recipe: recipes.Recipe, *, screen: Screen, seconds: float) -> dict[str, Any]:
    """Find, transfer, export and measure what one recipe says."""
    screen.say(f"\n{recipe.title} ({recipe.name})")
    run = FOLDER / recipe.settings.task
    found = find(recipe.settings, run, screen=screen)
    show_find(screen, found, run)

    ticket = run / found["ticket"]
    part = recipe.transfer or recipes.TransferPart()
    loaded, settings, beside = plan(ticket, seeds=part.seeds, controls=tuple(part.controls))
    made = Made(run, ticket, transfer=run / beside.name)
    transferred = transfer(loaded, settings, made.transfer, screen=screen)
    show_transfer(screen, transferred, made.transfer)

    screen.say("Exporting the dense network and the ticket's to ONNX, and measuring both; leave the machine alone.")
    exports = {
        "dense": _once(made.dense_onnx / REPORT, lambda: export_model(run / "round-00", made.dense_onnx)),
        "ticket": _once(made.ticket_onnx / REPORT, lambda: export_model(ticket, made.ticket_onnx)),
    }
    candidates = [str(made.dense_onnx), str(made.ticket_onnx), str(ticket.parent)]  # the last one in PyTorch
    measured = _once(made.bench / "bench.json", lambda: bench(candidates, made.bench, seconds=seconds))
    return summarise(transferred, exports, measured, made)


def summarise(
    transferred: dict[str, Any], exports: dict[str, dict[str, Any]], measured: dict[str, Any], made: Made
) -> dict[str, Any]:
    """One task's entry of ``demo.json``; latencies are medians on the CPU in milliseconds."""
    by_name = {(record["name"], record["provider"]): record for record in measured["records"]}
    dense, ticket = (by_name[path.name, "onnxruntime-cpu"] for path in (made.dense_onnx, made.ticket_onnx))
    pytorch = by_name[made.ticket.parent.name, "pytorch-cpu"]
    kept = ("model", "task", "metric", "sparsity", "arms", "matching", "strict", "reason", "winning")
    return {
        **{key: transferred[key] for key in kept},
        "onnx": {
            arm: {"bytes": record["bytes"], "p50_ms": record["p50_ms"], "max_abs_error": exports[arm]["max_abs_error"]}
            for arm, record in (("dense", dense), ("ticket", ticket))
        },
        "speedup": {"median": ticket["speedup"], "low": ticket["speedup_low"], "high": ticket["speedup_high"]},
        "pytorch": {"ticket": {"p50_ms": pytorch["p50_ms"]}},
        "inputs": measured["inputs"],
        "files": {
            "ticket": str(made.ticket),
            "transfer": str(made.transfer / "transfer.json"),
            "onnx dense": str(made.dense_onnx / "model.onnx"),
            "onnx ticket": str(made.ticket_onnx / "model.onnx"),
            "bench": str(made.bench / "bench.json"),
        },
    }


def column(task: dict[str, Any]) -> tuple[str, ...]:
    """A task's column of the table, in the order of ``HEADINGS``."""
    arms, onnx = task["arms"], task["onnx"]
    return (
        f"{task['model']} on {task['task']}",
        percent(task["sparsity"]),
        *(mean_and_spread(arms.get(name), "%", digits=2) for name in ("dense", "ticket", "random-mask")),
        str(Verdict(task["matching"], task["strict"], task["reason"], task["winning"])),
        f"{onnx['ticket']['bytes'] / 1e6:.1f} MB",
        *(f"{onnx[arm]['p50_ms']:.2f} ms" for arm in ("dense", "ticket")),
        "{median:.2f}x ({low:.2f}-{high:.2f})".format(**task["speedup"]),
    )


def show_demo(screen: Screen, result: dict[str, Any]) -> None:
    """The table, an honest word on its last line, and where everything is."""
    (_, *tasks), *lines = zip(HEADINGS, *map(column, result["tasks"]), strict=True)
    table = Table(HEADINGS[0], *tasks, title="What was found")
    for line in lines:
        table.add_row(*line)
    screen.console.print(table)
    screen.say(f"Latency: ONNX Runtime on the CPU, {'; '.join(task['inputs'] for task in result['tasks'])}.")
    screen.say(result["note"])
    for task in result["tasks"]:
        for what, path in task["files"].items():
            screen.say(f"{task['task']}, {what}: {path}")
    screen.say(f"All of it: {FOLDER / 'demo.json'}, after {clock(result['seconds'])}")


def _once(result: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``make`` returns and writes last to ``result``, or what it wrote there before."""
    return read_json(result) if result.is_file() else make()


def main() -> None:
    """Run the demo, and end as the command line does."""
    screen = Screen()
    try:
        show_demo(screen, run_demo(screen=screen))
    except UserError as error:
        sys.exit(f"error: {error}\nTo start the demo over, remove the folder {FOLDER}.")
    except SparseticketError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped. Run the same command again to continue.")


if __name__ == "__main__":
    main()
