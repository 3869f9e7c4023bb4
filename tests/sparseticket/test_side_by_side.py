"""Several processes share a study's trainings: each is trained once, and gives what one process would have given."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STUDY = """
title = "Two tickets of tiny texts"
source = "mine"
model = "{model}"

[training]
round_length = "3it"
batch_size = 8
max_length = 16
lr = 1e-3

[[step]]
name = "first"
find = "neurips20/text"
protocol = {{ schedule = "one-round", sparsity = 0.5 }}

[[step]]
name = "second"
find = "neurips20/text"
protocol = {{ schedule = "one-round", sparsity = 0.5 }}
seed = 1

[[step]]
name = "sparser"
find = "neurips20/text"
protocol = {{ schedule = "one-round", sparsity = 0.7 }}
dense_round = "second"
seed = 1

[[step]]
name = "guess"
control = "first"
kind = "random-mask"

[[step]]
name = "table"
matrix = ["first", "second", "guess"]
tasks = ["text"]
seeds = 2

[[step]]
name = "arms"
transfer = "first"
seeds = 2
controls = ["random-mask"]
"""
WORKER = """
import os, sys
from sparseticket import imp, transfer
rank, log = os.environ["RANK"], sys.argv.pop(1)
for module in (imp, transfer):
    def noted(*arguments, original=module.train, **options):
        with open(log, "a") as file:
            file.write(f"{rank} {options['checkpoint'].path.parent}\\n")
        return original(*arguments, **options)
    module.train = noted
from sparseticket.cli import main
main()
"""


def values(out):
    """Every arm's value by its folder, and what the study says in all."""
    arms = {str(path.relative_to(out).parent): json.loads(path.read_text()) for path in out.rglob("metrics.json")}
    for metrics in arms.values():
        metrics.pop("taken_from", None)
        for name in [name for name in metrics if name.startswith("seconds")]:
            del metrics[name]
    said = json.loads((out / "study.json").read_text())
    for step in said["steps"].values():
        for entry in step["result"].get("rounds", []):
            del entry["seconds"]
    return arms, said


def test_two_processes_share_the_trainings_and_give_what_one_gives(cli, tiny_bert, tmp_path):
    recipe, data, log = tmp_path / "mine.toml", tmp_path / "text.csv", tmp_path / "trained"
    recipe.write_text(STUDY.format(model=tiny_bert))
    rows = [f"the film {n} is {('good', 'bad')[n % 2]},{('good', 'bad')[n % 2]}" for n in range(40)]
    data.write_text("\n".join(["text,label", *rows]) + "\n")
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", worker, log]
    launch += ["run", recipe, "--data", data, "--out", tmp_path / "two", "--side-by-side"]
    done = subprocess.run(
        [*map(str, launch)], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("All steps:") == 1  # one process speaks for all
    trained = [line.split(" ", 1) for line in log.read_text().splitlines()]
    folders = [folder for _, folder in trained]
    # 2 rounds of each ticket, but one dense round of two; dense and three tickets for each seed; of the transfer its
    # controls' arms: all of it once
    assert len(set(folders)) == len(folders) == 3 * 2 - 1 + 4 * 2 + 2
    assert {rank for rank, _ in trained} == {"0", "1"}

    code, text = cli("run", recipe, "--data", data, "--out", tmp_path / "one")
    assert code == 0, text
    assert values(tmp_path / "two") == values(tmp_path / "one")


@pytest.mark.parametrize(
    "verb", [["run", "demo/digits"], ["transfer", "x.ticket"], ["matrix", "x.ticket", "--task", "a"]]
)
def test_one_process_has_nobody_at_its_side(cli, verb, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    code, text = cli(*verb, "--side-by-side")
    assert code == 2 and "torchrun" in text
