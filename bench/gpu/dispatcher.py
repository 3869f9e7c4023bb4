"""Is what the table picks never slower than dense? Asked in another process, at rows that were not measured."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from statistics import NormalDist
from typing import Any

from sparseticket.bench.gpu.lab import Lab
from sparseticket.kernels.clock import Z95, LaunchClock, Speedup
from sparseticket.kernels.dispatch import DENSE, Case, Choice, Table
from sparseticket.kernels.tune import Problem

MOST_CELLS = 60
SEED = 1000  # other masks and values than those that were tuned on
ROUNDS = 30
SECONDS = 120  # after which the second process is given up


def check(lab: Lab) -> dict[str, Any]:
    """Run :func:`measure` in a second process.

    Raises:
        RuntimeError: there is no table, it picks no kernel anywhere, or the process failed.
    """
    if not lab.table_file.exists() or not picks(lab.table):
        raise RuntimeError("the table picks no kernel anywhere yet: nothing can be slower than dense")
    command = [sys.executable, "-m", "sparseticket.bench.gpu", "--out", str(lab.out), "--check-dispatcher"]
    done = subprocess.run(
        command + ["--rehearse"] * lab.rehearse, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the second process failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(lab: Lab) -> dict[str, Any]:
    """Every pick of the table against dense in interleaved rounds, with the bound corrected for their number."""
    chosen = picks(lab.table)[:MOST_CELLS]
    in_graph, called, cells = lab.clock("cold graph"), LaunchClock(lab.device), []
    for case, m, density, choice in chosen:
        problem = Problem.draw(case, m, density, lab.device, SEED)
        call = problem.call(choice)
        call()
        clock = called if case.launched == "eager" else in_graph
        found = clock.compare(problem.dense, call, rounds=lab.rounds if lab.rehearse else ROUNDS)
        bound = upper_bound(found, len(chosen))
        cells.append({"case": vars(case), "m": m, "density": density, "ratio": found.ratio, "upper": bound})
    return {"cells": cells, "ratios": {"worst upper bound": min(cell["upper"] for cell in cells)}}


def picks(table: Table) -> list[tuple[Case, int, float, Choice]]:
    """Linears for which the table picks a kernel at rows between (or beside) those that were measured."""
    found = []
    for case, density in dict.fromkeys((cell.case, cell.density) for cell in table.cells):
        if case.which in ("optimizer", "convolution"):
            continue
        measured = [cell.m for cell in table.rows(case, density)]
        between = [round(math.sqrt(a * b)) for a, b in itertools.pairwise(measured)]
        beside = [m // 8 * 8 if m >= 16 else m for m in between]
        for m in beside or [measured[0] * 5 // 4]:
            choice = table.choose(case, m, density)
            if choice.kernel != DENSE:
                found.append((case, m, density, choice))
    return found


def upper_bound(found: Speedup, cells: int) -> float:
    """The one-sided 95 % upper bound of a speed-up, corrected for so many of them (Bonferroni)."""
    error = math.log(found.high / found.ratio) / Z95
    return found.ratio * math.exp(NormalDist().inv_cdf(1 - 0.05 / cells) * error)
