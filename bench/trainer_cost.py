"""One IMP round beside the same training written by hand with transformers' ``Trainer``: which is faster.

Run as ``python -m sparseticket.bench.trainer_cost --data glue/SST-2``. A turn of ours is a whole round as ``find`` runs
it, but for the evaluation: rewind, training under masks, pruning, ticket and trained network written. A turn of
``Trainer`` is ``train()`` of the dense network, and ``save_model()``. Both see the same examples, batch size, steps and
optimizer (torch's fused AdamW, clipping included); the turns of one pair follow each other at once, in an order drawn
anew, so that both meet the same machine.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparseticket.bench.machine import describe
from sparseticket.bench.messages import errors_as_messages
from sparseticket.bench.timing import speedup
from sparseticket.errors import UserError
from sparseticket.files import write_json
from sparseticket.hub import quiet_transformers
from sparseticket.imp import Search
from sparseticket.options import find_settings
from sparseticket.progress import Screen, clock
from sparseticket.runs import RunFolder
from sparseticket.settings import Length, RunSettings
from sparseticket.tasks import Task, TaskOptions
from sparseticket.training import make_accelerator, total_steps
from sparseticket.workbench import Workbench

if TYPE_CHECKING:
    from transformers import Trainer

RESULTS = Path("bench/results")
TASK = "sst2"
SCHEDULE = "steps:0.5,0.6"  # the round that is timed trains at the first, and prunes to the second
PLAIN_EVERY = 4  # pairs: Trainer's random order is beside the question, and takes longest
OURS, GROUPED, PLAIN = "imp round", "trainer, grouped by length", "trainer"
SAMPLING = {GROUPED: "group_by_length", PLAIN: "random"}
WHAT_THEY_ARE = {
    OURS: "rewind, training under masks, pruning, ticket and network written (sparseticket find, no evaluation)",
    GROUPED: "transformers' Trainer, dense, batches of similar length, padded by its default collator; network written",
    PLAIN: "the same in random order, which is Trainer's default",
}


@dataclass(frozen=True)
class Setting:
    """What all turns have in common: the network at its beginning, the data, and how it is trained."""

    settings: RunSettings
    work: Workbench
    examples: list[dict[str, Any]]

    @property
    def steps(self) -> int:
        """Of one training."""
        return total_steps(self.work.task, self.settings.training)[0]


def measure(model: str, data: Path, *, pairs: int, round_length: str) -> dict[str, Any]:
    """Measure where Accelerate puts trainings; times in the result are seconds of a turn."""
    if pairs < 1:
        raise UserError(f"--pairs {pairs} makes no sense: give 1 or more (8 for a result).")
    setting = set_up(model, data, round_length)
    with tempfile.TemporaryDirectory() as folder:
        for arm in SAMPLING:
            theirs_of(warm_up(setting), arm, Path(folder), seed=0)()
        ours_of(warm_up(setting), Path(folder) / "warm-up", seed=0)()
        times, training = take_turns(setting, Path(folder), pairs)
        padded = padded_tokens(setting, Path(folder))
    ours = times[OURS]
    return {
        "machine": describe(torch.get_num_threads()),
        "device": setting.work.accelerator.device.type,
        "model": setting.work.spec.name,
        "task": TASK,
        "examples": len(setting.examples),
        "steps": setting.steps,
        "training": asdict(setting.settings.training),
        "sparsity": setting.settings.protocol.sparsities()[0],
        "arms": WHAT_THEY_ARE,
        "seconds": {arm: float(np.nanmedian(of_arm)) for arm, of_arm in times.items()},
        "seconds_of_round_outside_training": float(np.median(ours - training)),
        "padded_tokens_of_an_epoch": padded,
        "times_as_fast": {arm: as_fast(times[arm], ours) for arm in SAMPLING},
        "turns_s": {
            arm: [None if math.isnan(one) else round(one, 3) for one in of_arm] for arm, of_arm in times.items()
        },
    }


def set_up(model: str, data: Path, round_length: str) -> Setting:
    """Read the data, build the network; ``Trainer`` gets the token ids that our batches are made of."""
    settings = find_settings(
        model,
        task=TASK,
        data=data,
        dense=False,
        protocol={"schedule": SCHEDULE, "sparsity": 0.6, "prune_first": True},
        training={"round_length": round_length},
    )
    options = TaskOptions.of(settings.training, settings.data)
    work = Workbench.build(
        model, TASK, options, seed=0, weights=None, accelerator=make_accelerator(), screen=Screen(quiet=True)
    )
    if work.accelerator.num_processes > 1:
        raise UserError("one process is timed: run this without torchrun or accelerate launch.")
    return Setting(settings, work, examples_of(work.task))


def warm_up(setting: Setting) -> Setting:
    """The same with three steps."""
    training = replace(setting.settings.training, round_length="3it")
    return replace(setting, settings=replace(setting.settings, training=training))


def examples_of(task: Task) -> list[dict[str, Any]]:
    """The training set without padding: of each example ``input_ids``, ``attention_mask``, … as lists, ``labels``."""
    examples = []
    for batch in task.batches("train", seed=0, round=0, epoch=0):
        for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
            inputs = {name: t[row, :length].tolist() for name, t in batch.items() if name != "labels"}
            examples.append(inputs | {"labels": int(batch["labels"][row])})
    return examples


def take_turns(setting: Setting, folder: Path, pairs: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Seconds of each arm's turn in each pair, float64 [pairs] (NaN where it had none), and of our training alone."""
    order = np.random.default_rng(0)
    times = {arm: np.full(pairs, np.nan) for arm in WHAT_THEY_ARE}
    training = np.full(pairs, np.nan)
    for pair in range(pairs):
        for arm in order.permutation(list(times) if pair % PLAIN_EVERY == 0 else [OURS, GROUPED]):
            if arm == OURS:
                turn = ours_of(setting, folder / f"pair-{pair}", seed=pair)
            else:
                turn = theirs_of(setting, str(arm), folder, seed=pair)
            _synchronize(setting)
            begun = time.perf_counter()
            seconds = turn()
            _synchronize(setting)
            times[arm][pair] = time.perf_counter() - begun
            if arm == OURS:
                training[pair] = seconds
        said = ", ".join(f"{arm} {seconds[pair]:.1f} s" for arm, seconds in times.items() if seconds[pair] > 0)
        print(f"pair {pair + 1} of {pairs}: {said}", file=sys.stderr)
    return times, training


def ours_of(setting: Setting, out: Path, *, seed: int) -> Callable[[], float]:
    """One round of a run of its own in ``out``, as :meth:`Search.run_all` has it; gives the seconds of its training."""
    settings = replace(setting.settings, seed=seed)
    search = Search(settings, setting.work.copy(), RunFolder.open(out, asdict(settings)), 300.0)
    search.start()

    def turn() -> float:
        begun = time.monotonic()
        masks = search.load_ticket(0).masks
        trained = search.train(0, masks, search.rewind(0))
        result = {"round": 0, "sparsity": search.sparsities[0], "value": 0.0}
        search.prune(0, masks, result)
        search.finish(0, trained, result, begun)
        return trained.seconds

    return turn


def theirs_of(setting: Setting, arm: str, folder: Path, *, seed: int) -> Callable[[], float]:
    """Train and save with ``Trainer``, which is made before; gives the seconds of its training."""
    trainer = trainer_of(setting, arm, folder, seed=seed)

    def turn() -> float:
        begun = time.monotonic()
        with quiet_transformers():
            trainer.train()
            seconds = time.monotonic() - begun
            trainer.save_model()
        return seconds

    return turn


def trainer_of(setting: Setting, arm: str, folder: Path, *, seed: int) -> Trainer:
    """``Trainer`` with the same network, data, length and optimizer, and nothing that costs it time."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    training, work = setting.settings.training, setting.work
    on_cpu = work.accelerator.device.type == "cpu"
    length = Length.parse(training.round_length)
    work.origin.restore(work.network)
    with quiet_transformers():
        trainer = Trainer(
            copy.deepcopy(work.network.module),
            TrainingArguments(
                str(folder / "trainer"),
                per_device_train_batch_size=training.batch_size,
                num_train_epochs=length.value if length.unit == "ep" else 1.0,
                max_steps=int(length.value) if length.unit == "it" else -1,
                train_sampling_strategy=SAMPLING[arm],
                optim="adamw_torch_fused",
                learning_rate=training.lr,
                adam_epsilon=training.eps,
                weight_decay=training.weight_decay,
                max_grad_norm=training.clip,
                lr_scheduler_type="linear",
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=on_cpu,
                dataloader_pin_memory=not on_cpu,
                seed=seed,
            ),
            train_dataset=setting.examples,  # type: ignore[arg-type]
            processing_class=work.spec.tokenizer(),
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


def padded_tokens(setting: Setting, folder: Path) -> dict[str, int]:
    """Tokens of all batches of an epoch, padding included: what decides most of an arm's time."""
    ours = setting.work.task.batches("train", seed=0, round=0, epoch=0)
    tokens = {OURS: sum(batch["input_ids"].numel() for batch in ours)}
    for arm in SAMPLING:
        loader = trainer_of(setting, arm, folder, seed=0).get_train_dataloader()
        tokens[arm] = sum(batch["input_ids"].numel() for batch in loader)
    return tokens


def as_fast(theirs: np.ndarray, ours: np.ndarray) -> dict[str, float]:
    """How many times as fast ours is, from seconds float64 [pairs]: the median over pairs, with its 95 % interval."""
    both = ~np.isnan(theirs)
    ratio = speedup(theirs[both, None], ours[both, None])
    return {**asdict(ratio), "n": int(both.sum())}


def show(result: dict[str, Any]) -> None:
    """Print what matters of a result."""
    print(
        f"{result['model']} on {result['task']}, {result['device']}, {result['machine']['threads']} threads: "
        f"{result['steps']} steps of {result['training']['batch_size']}, {result['examples']} examples"
    )
    for arm, seconds in result["seconds"].items():
        print(f"{arm}: {seconds:.1f} s, {result['padded_tokens_of_an_epoch'][arm]:,} tokens an epoch")
    print(f"of a round, outside its training: {result['seconds_of_round_outside_training']:.2f} s")
    for arm, ratio in result["times_as_fast"].items():
        print(
            f"an IMP round is {ratio['median']:.3f}x as fast as {arm}, 95 % interval {ratio['low']:.3f} to "
            f"{ratio['high']:.3f} ({ratio['n']} pairs)"
        )


@errors_as_messages()
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m sparseticket.bench.trainer_cost", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder glue/SST-2 with train.tsv and dev.tsv")
    parser.add_argument("--model", default="minilm", help="a BERT-like encoder: alias, hub name or folder")
    parser.add_argument("--pairs", type=int, default=8, help="paired turns, 8 or more for a result")
    parser.add_argument("--round-length", default="1ep", help="of each training; below 1ep the examples differ")
    parser.add_argument("--out", type=Path, help=f"default: {RESULTS}/trainer_cost_DEVICE.json")
    given = parser.parse_args(arguments)
    begun = time.monotonic()
    result = measure(given.model, given.data, pairs=given.pairs, round_length=given.round_length)
    out = given.out or RESULTS / f"trainer_cost_{result['device']}.json"
    write_json(out, result)
    show(result)
    print(f"Written to {out} after {clock(time.monotonic() - begun)}")


def _synchronize(setting: Setting) -> None:
    if setting.work.accelerator.device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
