"""The command: compile, check, measure the marks, fill the table, ask the table, print what was found."""

from __future__ import annotations

import argparse
import gc
import json
import logging
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from sparseticket.bench.gpu import dispatcher, entries, show, tuning
from sparseticket.bench.gpu.arms import why
from sparseticket.bench.gpu.elsewhere import elsewhere_when_lost, go_on_elsewhere
from sparseticket.bench.gpu.entries import Entry
from sparseticket.bench.gpu.figures import LOST, Figures, describe
from sparseticket.bench.gpu.lab import DeviceLost, Lab
from sparseticket.bench.gpu.marks import MARKS, judge
from sparseticket.bench.gpu.prepare import pool
from sparseticket.bench.messages import errors_as_messages
from sparseticket.errors import UserError
from sparseticket.files import write_json

FOR_THE_DISPATCHER = 75.0  # seconds, in which its cells are asked in a second process
HANGS = 150.0  # seconds, in which the shorter entries end even where nothing was compiled ahead


def run(lab: Lab) -> str:
    """Do what is missing in the folder, until the time is used; the text to print at the end."""
    figures = Figures(lab.out, describe(lab.gpu, rehearsal=lab.rehearse))
    try:
        with pool(lab) as processes:
            say(lab, "compiling")
            processes.run(entries.to_compile_first(lab, figures))
            measure(lab, figures, entries.first(lab))
            for wanted in tuning.of_bert_base(lab):
                if lab.seconds_left > 0:
                    lab.try_cell(*wanted)
            if lab.seconds_left > 0:
                say(lab, "compiling networks")
                processes.run(entries.to_compile_then(lab, figures))
            measure(lab, figures, entries.networks(lab))
            measure(lab, figures, entries.rest(lab))
            missing = tuning.tune(lab, processes, reserve=0 if lab.rehearse else FOR_THE_DISPATCHER)
            say(lab, f"{len(lab.table.cells)} cells in the table, {missing} still missing")
            measure(lab, figures, entries.last(lab), again=True)
    finally:
        text = summarize(lab, figures)
    return text


def measure(lab: Lab, figures: Figures, todo: dict[str, Entry], *, again: bool = False) -> None:
    """Each entry that has no figure yet leaves one; one that fails leaves why, and is tried again by the next run."""
    for name, entry in todo.items():
        takes = 0.0 if lab.rehearse else entries.seconds(name)
        if (figures.has(name) and not again) or lab.seconds_left <= takes:
            continue
        say(lab, name)
        begun = time.monotonic()
        hung = partial(figures.write, name, {"error": "it did not end", LOST: True})
        try:
            with lab.gives_up_after(max(HANGS, 3 * takes), hung):
                figure = entry(lab, figures.get("device"))
        except DeviceLost:
            raise  # it was a cell that the entry needed: in a new process the entry goes without
        except Exception as error:
            logging.getLogger(__name__).info("%s failed", name, exc_info=True)
            figure = {"error": why(error)}
        if lab.is_lost():  # also where the entry went on without the arm that did it
            figure[LOST] = True
        figures.write(name, figure | {"seconds": round(time.monotonic() - begun, 1)})
        summarize(lab, figures)
        if figure.get(LOST):
            raise DeviceLost(name)
        gc.collect()
        if lab.device == "cuda":
            torch.cuda.empty_cache()


def summarize(lab: Lab, figures: Figures) -> str:
    """Write all figures beside the marks into one file; return the tables."""
    found = {name: figures.get(name) for name in entries.everything(lab)}
    marks = [judge(mark, found, rehearsal=lab.rehearse) for mark in MARKS]
    write_json(lab.results_file, {"about": figures.about, "marks": marks, "figures": found})
    return show.tables(figures.about, marks, found, lab.table)


def say(lab: Lab, what: str) -> None:
    """One line of progress."""
    print(f"[{lab.seconds - lab.seconds_left:5.0f} s] {what}", file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m sparseticket.bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a folder; what is finished there is not done again")
    parser.add_argument("--minutes", type=float, default=8.0, help="how long the run may take (default: 8)")
    parser.add_argument("--data", type=Path, help="folder of SST-2 (train.tsv or dev.tsv), for its lengths")
    parser.add_argument("--minilm", type=Path, help="folder of a MiniLM with its tokenizer")
    parser.add_argument("--rehearse", action="store_true", help="run everything tiny on the CPU; times mean nothing")
    parser.add_argument("--check-dispatcher", action="store_true", help=argparse.SUPPRESS)  # the second process
    parser.add_argument("--verbose", action="store_true", help="say what does not run and why")
    return parser.parse_args(arguments)


def lab_of(given: argparse.Namespace) -> Lab:
    """What was asked for.

    Raises:
        UserError: it cannot be done here.
    """
    if not given.minutes > 0:
        raise UserError(f"--minutes {given.minutes} makes no sense: give more than 0.")
    if not given.rehearse and not torch.cuda.is_available():
        raise UserError("there is no GPU that torch can use. --rehearse runs everything on the CPU, with tiny shapes.")
    if given.rehearse and "results" in given.out.resolve().parts:
        raise UserError(f"a rehearsal measures nothing: {given.out} is for results. Give another --out.")
    for name in ("data", "minilm"):
        folder = getattr(given, name)
        if folder is not None and not folder.is_dir():
            raise UserError(f"--{name} {folder} is no folder.")
    return Lab(given.out, given.rehearse, given.minutes * 60, given.data, given.minilm)


@errors_as_messages()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    given = parse(arguments)
    logging.basicConfig(level=logging.INFO if given.verbose else logging.WARNING, format="%(message)s")
    lab = lab_of(given)
    if given.check_dispatcher:
        print(json.dumps(dispatcher.measure(lab)))
        return
    command = ["sparseticket.bench.gpu", *(sys.argv[1:] if arguments is None else arguments)]
    elsewhere = partial(go_on_elsewhere, command, lab)
    lab.restart = None if lab.rehearse else elsewhere
    with elsewhere_when_lost(elsewhere):
        print(run(lab))
    print(f"Written to {lab.results_file}")


if __name__ == "__main__":
    main()
