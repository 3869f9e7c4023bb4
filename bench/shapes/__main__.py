"""Train, export and measure every shape for one seed. Run the same command again to continue."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sparseticket.bench.messages import errors_as_messages
from sparseticket.bench.shapes import table
from sparseticket.bench.shapes.measure import measure
from sparseticket.bench.shapes.process import last_words, start
from sparseticket.bench.shapes.study import Cell, Study
from sparseticket.bench.shapes.trainings import left, train_all
from sparseticket.errors import RunFailure, UserError
from sparseticket.progress import Screen, clock

OUT, WORK = Path("bench/results/shapes"), Path("runs/shapes")
# on two cores: one training of 217 steps with another beside it, and one cell
SECONDS_A_TRAINING, SECONDS_A_CELL = 150.0, 80.0
MOST_MINUTES = 75


def run(study: Study, screen: Screen) -> None:
    """Do what is not done yet; what fails is said at the end, and keeps nothing else from being done.

    Raises:
        UserError: there are runs or results of other settings in its folders.
        RunFailure: lists what failed.
    """
    begun = time.monotonic()
    study.check_alike()
    missing = [cell for cell in study.cells() if not study.result(cell).is_file()]
    if not missing:
        screen.say(f"seed {study.seed} is complete: {study.out}")
        return
    wanted = {cell.shape for cell in missing} | {study.shapes[0]}
    shapes = [shape for shape in study.shapes if shape in wanted]
    trainings = left(study, shapes)
    estimate = trainings / study.jobs * SECONDS_A_TRAINING + len(missing) * SECONDS_A_CELL
    screen.say(
        f"seed {study.seed}: {trainings} trainings and {len(missing)} cells to go, about {clock(estimate)} on two "
        f"cores with AVX-512 (at most {MOST_MINUTES} min). Stop it with Ctrl-C at any time; the same command goes on."
    )
    failed = train_all(study, shapes, screen.say)
    screen.say(f"trained after {clock(time.monotonic() - begun)}. Leave the machine alone while latency is measured.")
    trained = [cell for cell in missing if (study.round(cell) / "done").is_file()]
    if len(trained) < len(missing):
        failed.append(f"{len(missing) - len(trained)} cells were not measured: their networks are not trained")
    for cell in trained:
        failure = measure_alone(study, cell)
        failed += [failure] if failure else []
        screen.say(failure or f"{cell.name}: {table.words(table.read_cell(study.result(cell)))}")
    screen.say(f"seed {study.seed} took {clock(time.monotonic() - begun)}")
    if failed:
        raise RunFailure("these failed; the same command tries them again:\n" + "\n".join(failed))


def measure_alone(study: Study, cell: Cell) -> str | None:
    """Measure a cell in a process of its own; a line where that failed."""
    process = start(measure, study, cell, log=study.log(cell.name))
    try:
        process.join()
    finally:
        process.terminate()
    if process.exitcode:
        return f"{cell.name}: {last_words(study.log(cell.name))} ({study.log(cell.name)})"
    return None


@errors_as_messages()
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m sparseticket.bench.shapes", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder glue/SST-2 with train.tsv and dev.tsv")
    parser.add_argument("--seed", type=int, default=0, help="of every random draw; run it for several")
    parser.add_argument("--out", type=Path, default=OUT, help=f"gets a JSON a cell; default {OUT}")
    parser.add_argument("--work", type=Path, default=WORK, help=f"runs, exports and logs; default {WORK}")
    parser.add_argument("--model", default="minilm", help="a BERT-like encoder: alias, hub name or folder")
    parser.add_argument("--round-length", default="1ep", help="of each training")
    parser.add_argument("--seconds", type=float, default=6.0, help="how long each file is timed, for each thread count")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once, one thread each; default 2")
    given = parser.parse_args(arguments)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    screen = Screen()
    try:
        if given.jobs < 1:
            raise UserError(f"--jobs {given.jobs} makes no sense: give 1 or more.")
        if not given.data.exists():
            raise UserError(f"there is no {given.data}: give the folder of SST-2 (train.tsv, dev.tsv) with --data.")
        study = Study(
            data=given.data.resolve(),
            seed=given.seed,
            out=given.out,
            work=given.work.resolve(),
            model=given.model,
            round_length=given.round_length,
            seconds=given.seconds,
            jobs=given.jobs,
        )
        try:
            run(study, screen)
        finally:
            if any(study.out.glob("seed-*/*.json")):
                screen.say(table.markdown(table.read(study.out)))
    except KeyboardInterrupt:
        sys.exit("stopped. Run the same command again to continue.")


if __name__ == "__main__":
    main()
