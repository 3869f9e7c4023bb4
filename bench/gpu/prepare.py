"""Compile in parallel, in processes that then wait: Triton's kernels and whole networks, into the caches on disk."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import torch

from sparseticket.bench.gpu.lab import Lab
from sparseticket.kernels.dispatch import Case
from sparseticket.kernels.pattern import UNSTRUCTURED

MOST_PROCESSES = 14  # each holds half a GB of the GPU
PARTS = 4  # of a case's candidates
log = logging.getLogger(__name__)
Task = Callable[[Lab], object]


class Pool:
    """Runs tasks that leave something in the caches. In a rehearsal it runs the first of them, here."""

    def __init__(self, lab: Lab, executor: ProcessPoolExecutor | None) -> None:
        self._lab, self._executor = lab, executor
        self._done: set[str] = set()

    def run(self, tasks: dict[str, Task]) -> None:
        """Run what was not run before; a task that fails is only logged, for what needs it will say it again."""
        todo = {name: task for name, task in tasks.items() if name not in self._done}
        self._done |= set(todo)
        if self._executor is None:
            for task in list(todo.values())[:1]:
                task(self._lab)
            return
        try:
            waiting = {self._executor.submit(_run, task, _settings(self._lab)): name for name, task in todo.items()}
            for finished in as_completed(waiting, timeout=max(60.0, self._lab.seconds_left / 2)):
                if error := finished.exception():
                    log.warning("%s could not be prepared: %s", waiting[finished], error)
        except (TimeoutError, BrokenExecutor) as error:  # what is not compiled yet will be where it is needed
            log.warning("compiling ahead ended early: %s", error or "it took too long")


@contextmanager
def pool(lab: Lab) -> Iterator[Pool]:
    """A pool of processes, which begin when they are needed."""
    if lab.rehearse:
        yield Pool(lab, None)
        return
    executor = ProcessPoolExecutor(
        min(MOST_PROCESSES, max(1, (os.cpu_count() or 2) - 1)), multiprocessing.get_context("spawn")
    )
    try:
        yield Pool(lab, executor)
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def kernels_of(cases: list[tuple[Case, int, float]]) -> dict[str, Task]:
    """Tasks that launch every candidate of these cells; sizes hardly matter to what is compiled, so each kind once.

    They do where K is split, for few rows: what adds the splits is compiled for their number.
    """
    tasks: dict[str, Task] = {}
    for case, m, density in cases:
        kind = f"{case.which} {case.pattern} {case.dtype} {case.epilogue} {case.launched == 'compiled'}"
        if case.pattern == UNSTRUCTURED:
            kind += f" {m}x{case.n}x{case.k}"
        for part in range(PARTS):
            name = f"{kind} {part}"
            tasks.setdefault(name, Candidates(case, m, density, part))
    return tasks


class Candidates:
    """Every fourth candidate of a cell, launched once."""

    def __init__(self, case: Case, m: int, density: float, part: int) -> None:
        self._cell, self._part = (case, m, density), part

    def __call__(self, lab: Lab) -> None:
        """Launch them; one that does not run on this GPU is passed over."""
        from sparseticket.kernels.bsr import Tiles
        from sparseticket.kernels.tune import Problem

        problem = Problem.draw(*self._cell, lab.device, 0)
        compiled = self._cell[0].launched == "compiled"
        for place, (choice, call) in enumerate(problem.candidates(thorough=not lab.rehearse)):
            if compiled and not Tiles.are_resident(choice.tiles):
                continue  # the same kernel as from Python
            if place % PARTS == self._part:
                try:
                    call()
                except Exception as error:
                    log.info("%s does not run: %s", self._cell, error)


def _settings(lab: Lab) -> dict[str, object]:
    return {"out": lab.out, "rehearse": lab.rehearse, "data": lab.data, "minilm": lab.minilm}


def _run(task: Task, settings: dict[str, Path]) -> None:
    try:
        task(Lab(**settings))
    finally:
        gc.collect()  # compiled networks lie in cycles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
