"""Train what is not trained yet: one run a shape, as many at once as there are jobs, the dense round once.

Two trainings with one thread each give, bit for bit, what they give one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from sparseticket.bench.shapes.process import last_words, start
from sparseticket.bench.shapes.study import Shape, Study
from sparseticket.files import read_json
from sparseticket.progress import clock
from sparseticket.runs import SUMMARY, RunFolder
from sparseticket.settings import RunSettings

EVERY = 1.0  # seconds between two looks at the processes
Said = Callable[[str], object]


def left(study: Study, shapes: Iterable[Shape]) -> int:
    """How many trainings of ``shapes`` are not finished; the dense one counts once."""
    return sum(
        not RunFolder(study.run(shape)).finished(f"round-{k:02d}")
        for shape in shapes
        for k in range(len(study.settings(shape).protocol.sparsities()))
        if k or shape is study.shapes[0]
    )


def train_all(study: Study, shapes: Sequence[Shape], say: Said) -> list[str]:
    """Train ``shapes``, the study's first among them; returns a line for each run that failed.

    What is finished is skipped.
    """
    waiting = [shape for shape in shapes if not (study.run(shape) / SUMMARY).is_file()]
    running: dict[Shape, BaseProcess] = {}
    failed: list[str] = []
    told = {path for shape in shapes for path in _done(study, shape)}
    first = study.shapes[0]
    try:
        while waiting or running:
            has_dense = RunFolder(study.run(first)).finished("round-00")
            for shape in [one for one in waiting if one is first or has_dense][: study.jobs - len(running)]:
                waiting.remove(shape)
                running[shape] = _begin(study, shape, first)
            if not running:
                failed += [f"{shape.pattern}: there is no dense round to take" for shape in waiting]
                break
            time.sleep(EVERY)
            for shape in shapes:
                for metrics in sorted(_done(study, shape) - told):
                    told.add(metrics)
                    found = read_json(metrics)
                    to_go = clock(left(study, shapes) / study.jobs * found["seconds"])
                    say(f"{shape.pattern}: {_words(found)}; about {to_go} of training left")
            for shape in [one for one, process in running.items() if not process.is_alive()]:
                process = running.pop(shape)
                process.join()
                if process.exitcode:
                    failed.append(f"{shape.pattern}: {last_words(study.log(shape.slug))} ({study.log(shape.slug)})")
                    say(f"failed: {failed[-1]}")
    finally:
        for process in running.values():
            process.terminate()
    return failed


def _begin(study: Study, shape: Shape, first: Shape) -> BaseProcess:
    dense = None if shape is first else study.run(first)
    arguments = study.settings(shape), study.run(shape), dense
    return start(_train, *arguments, threads=1, log=study.log(shape.slug))


def _train(settings: RunSettings, folder: Path, dense: Path | None) -> None:
    from sparseticket.imp import find
    from sparseticket.progress import Screen

    find(settings, folder, screen=Screen(), dense_from=dense)


def _done(study: Study, shape: Shape) -> set[Path]:
    return {done.with_name("metrics.json") for done in study.run(shape).glob("round-*/done")}


def _words(metrics: dict[str, Any]) -> str:
    taken = " (taken from the first run)" if "taken_from" in metrics else ""
    return f"round {metrics['round']}, {metrics['sparsity']:.1%} sparse, {metrics['value']:.2%}{taken}"
