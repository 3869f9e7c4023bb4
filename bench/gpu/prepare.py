"""Compile in parallel, in processes that then wait: Triton's kernels and whole networks, into the caches on disk."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import torch
import triton

from sparseticket.bench.gpu.lab import Lab
from sparseticket.kernels.dispatch import Case
from sparseticket.kernels.pattern import UNSTRUCTURED

MOST_PROCESSES = 14  # each holds half a GB of the GPU
THREADS = 3  # of each, in which Inductor compiles; it would take one a core
STALLED = 100.0  # seconds in which no task ends: a kernel may hang, and slows down what is measured
PARTS = 4  # of a case's candidates
log = logging.getLogger(__name__)
Task = Callable[[Lab], object]


class Pool:
    """Runs tasks that leave something in the caches. In a rehearsal it runs the first of them, here."""

    def __init__(self, lab: Lab) -> None:
        self._lab, self._executor = lab, None
        self._done: set[str] = set()

    def run(self, tasks: dict[str, Task]) -> None:
        """Run what was not run before; a task that fails is only logged, for what needs it will say it again.

        When this returns no worker is at work, for it would disturb what is measured next.
        """
        todo = {name: task for name, task in tasks.items() if name not in self._done}
        self._done |= set(todo)
        if self._lab.rehearse:
            for task in list(todo.values())[:1]:
                task(self._lab)
            return
        until = time.monotonic() + max(60.0, self._lab.seconds_left / 2)
        try:
            while todo:
                left = self._run(todo, until)
                if left:
                    self.stop()
                if len(left) == len(todo):
                    raise BrokenExecutor("no process has a context on the GPU")
                todo = left
        except (TimeoutError, BrokenExecutor) as error:  # what is not compiled yet will be where it is needed
            log.warning("compiling ahead ended early: %s", error)
            self.stop()

    def _run(self, todo: dict[str, Task], until: float) -> dict[str, Task]:
        """Run these; returns those that a worker did not begin because its context on the GPU was broken."""
        self._executor = self._executor or _workers()
        waiting = {self._executor.submit(_begin, task, _settings(self._lab)): name for name, task in todo.items()}
        not_begun = {}
        while waiting:
            finished, _ = wait(waiting, min(STALLED, until - time.monotonic()), FIRST_COMPLETED)
            if not finished:
                raise TimeoutError(f"{len(waiting)} of {len(todo)} tasks took too long")
            for one in finished:
                name, error = waiting.pop(one), one.exception()
                if isinstance(error, BrokenExecutor):
                    raise error
                if error:
                    log.warning("%s could not be prepared: %s", name, error)
                elif not one.result():
                    not_begun[name] = todo[name]
        return not_begun

    def stop(self) -> None:
        """End the workers, whatever they are at."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            end_children()
            self._executor = None


@contextmanager
def pool(lab: Lab) -> Iterator[Pool]:
    """A pool of processes, which begin when they are needed."""
    # Inductor sets this variable to a folder of its own when it first compiles, and Triton then looks nowhere else
    os.environ.setdefault("TRITON_CACHE_DIR", triton.knobs.cache.dir)
    processes = Pool(lab)
    try:
        yield processes
    finally:
        processes.stop()


def end_children() -> None:
    """End the processes that this one began through ``multiprocessing``, and wait until they are gone."""
    children = multiprocessing.active_children()
    for child in children:
        child.kill()
    for child in children:
        child.join()


def _workers() -> ProcessPoolExecutor:
    number = min(MOST_PROCESSES, max(1, (os.cpu_count() or 2) - 1))
    return ProcessPoolExecutor(number, multiprocessing.get_context("spawn"), initializer=_set_up_worker)


def _set_up_worker() -> None:
    import torch._inductor.config

    torch._inductor.config.compile_threads = THREADS


def kernels_of(cases: list[tuple[Case, int, float]]) -> dict[str, Task]:
    """Tasks that launch every candidate of these cells: each kind once, as compiled code hardly depends on sizes.

    The exception is a split K, which is for few rows: the code that adds the splits is compiled for their number.
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


def _begin(task: Task, settings: dict[str, Path]) -> bool:
    """Run a task; False where an earlier one broke this process's context, in which nothing runs any more."""
    lab = Lab(**settings)
    if lab.is_lost():
        return False
    try:
        task(lab)
    finally:
        gc.collect()  # compiled networks lie in cycles
        if torch.cuda.is_available() and not lab.is_lost():
            torch.cuda.empty_cache()
    return True
