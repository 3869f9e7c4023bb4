import json
import os
import signal

import pytest

from sparseticket.bench.shapes import table
from sparseticket.bench.shapes.process import last_words, start
from sparseticket.bench.shapes.study import BASELINE, Study
from sparseticket.bench.shapes.trainings import left
from sparseticket.errors import UserError


@pytest.fixture(scope="module")
def sst2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glue") / "SST-2"
    folder.mkdir()
    for name, count in (("train", 64), ("dev", 20)):
        lines = [f"the film {n} is {('bad', 'very good')[n % 2]}\t{n % 2}" for n in range(count)]
        (folder / f"{name}.tsv").write_text("sentence\tlabel\n" + "\n".join(lines) + "\n")
    return folder


@pytest.fixture
def study(sst2, tmp_path):
    return Study(data=sst2, seed=0, out=tmp_path / "out", work=tmp_path / "work")


def test_each_cell_of_the_table_has_its_network_in_the_right_round(study):
    cells = list(study.cells())
    assert len({cell.name for cell in cells}) == len(cells) == 20
    assert cells[0] == BASELINE  # what the others are compared with
    rounds = {cell.name: str(study.round(cell).relative_to(study.work)) for cell in cells}
    assert rounds["dense-int8"] == "seed-0/unstructured/round-00"
    assert rounds["block-4x1-50-fp32"] == "seed-0/block-4x1/round-02"
    assert rounds["heads-neurons-70-int8"] == "seed-0/heads-neurons/round-03"
    assert rounds["2-4-50-fp32"] == "seed-0/2-4/round-02"


def test_the_dense_network_is_trained_once_for_all_shapes(study):
    assert left(study, study.shapes) == 1 + 4 * 3 + 2


def _fail(words):
    raise UserError(words)


def _be_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_breaks_in_its_own_process_leaves_its_words_and_takes_nothing_down(tmp_path):
    log = tmp_path / "logs" / "part.log"
    broken = start(_fail, "the disk is full:\nfree some space", log=log)
    killed = start(_be_killed, log=tmp_path / "killed.log")
    broken.join()
    killed.join()
    assert (broken.exitcode, killed.exitcode) == (2, -signal.SIGKILL)
    assert last_words(log) == "the disk is full:\nfree some space"


def cell(pattern, sparsity, precision="fp32", *, seed=0, value=0.8, speedup=1.5):
    latency = {"p50_ms": 10.0, "speedup": speedup, "speedup_low": speedup - 0.1, "speedup_high": speedup + 0.1}
    return {
        "pattern": pattern,
        "sparsity": sparsity,
        "precision": precision,
        "seed": seed,
        "task": "sst2",
        "model": "minilm",
        "metric": "accuracy",
        "trained_sparsity": sparsity,
        "value": value,
        "layout": "dense",
        "bytes": 90.2e6,
        "inputs": "batch 1, 128 tokens",
        "latency": {"1": latency, "2": latency},
        "training": {"round_length": "1ep", "steps": 217},
        "machine": {"cpu": "some CPU", "cores": 2, "versions": {"onnxruntime": "1.32.0"}},
    }


@pytest.fixture
def results(tmp_path):
    def write(*cells):
        for number, one in enumerate(cells):
            folder = tmp_path / "results" / f"seed-{one['seed']}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.json").write_text(json.dumps(one))
        return tmp_path / "results"

    return write


def rows(text):
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {tuple(line[:2]): dict(zip(lines[0][2:], line[2:], strict=True)) for line in lines[2:]}


def test_one_seed_has_intervals_and_what_is_not_measured_yet_is_a_dash(results):
    found = rows(table.markdown(table.read(results(cell("2:4", 0.5, value=0.8123), cell("dense", 0.0, "int8")))))
    assert list(found) == [("dense", "0.00"), ("2:4", "50.00")]
    row = found["2:4", "50.00"]
    assert (row["accuracy % fp32"], row["MB fp32"]) == ("81.23", "90.2")
    assert row["fp32, 1 thread"] == row["fp32, 2 threads"] == "1.50× (1.40–1.60), 10.0 ms"
    assert row["accuracy % int8"] == row["int8, 1 thread"] == "–"


def test_several_seeds_are_mean_and_standard_deviation(results):
    values, speedups = (0.80, 0.81, 0.85), (1.4, 1.5, 1.6)
    cells = [
        cell("block:4x1", 0.7, seed=seed, value=value, speedup=speedup)
        for seed, (value, speedup) in enumerate(zip(values, speedups, strict=True))
    ]
    text = table.markdown(table.read(results(*cells)))
    row = rows(text)["block:4x1", "70.00"]
    assert (row["accuracy % fp32"], row["fp32, 1 thread"]) == ("82.00 ± 2.65", "1.50 ± 0.10×, 10.0 ms")
    assert "Seeds 0, 1, 2" in text


def test_results_that_are_not_there_or_damaged_are_named(results, tmp_path):
    with pytest.raises(UserError, match="there are no results"):
        table.read(tmp_path)
    damaged = cell("2:4", 0.5)
    del damaged["latency"]
    with pytest.raises(UserError, match=r"0\.json lacks latency"):
        table.read(results(damaged))
