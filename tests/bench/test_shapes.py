import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import transformers

import sparseticket
from sparseticket import toml
from sparseticket.bench import candidates
from sparseticket.bench.alone import Alone
from sparseticket.bench.shapes import measure as measure_module
from sparseticket.bench.shapes import table, trainings
from sparseticket.bench.shapes.__main__ import main, run
from sparseticket.bench.shapes.measure import measure
from sparseticket.bench.shapes.process import last_words, start
from sparseticket.bench.shapes.study import BASELINE, Cell, Shape, Study
from sparseticket.bench.shapes.trainings import left, train_all
from sparseticket.errors import UserError
from sparseticket.progress import Screen
from sparseticket.runs import settings_table


@pytest.fixture(scope="module")
def sst2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glue") / "SST-2"
    folder.mkdir()
    for name, count in (("train", 64), ("dev", 20)):
        lines = [f"the film {n} is {('bad', 'very good')[n % 2]}\t{n % 2}" for n in range(count)]
        (folder / f"{name}.tsv").write_text("sentence\tlabel\n" + "\n".join(lines) + "\n")
    return folder


def tiny(folder):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "film", "is", "bad", "very", "good"]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    transformers.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=128).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=256,
        max_position_embeddings=128,
    )
    transformers.BertForPreTraining(config).save_pretrained(folder)
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


class Returned:
    """What a training that ran in this process looks like to the study."""

    exitcode = 0

    def is_alive(self):
        return False

    def join(self):
        return None


def begin_here(study, shape, first, *, begin=trainings._begin):
    """Train in this process what can be trained: a process of its own takes seconds to begin."""
    if shape.pattern == "block:512x512":
        return begin(study, shape, first)
    trainings._train(study.settings(shape), study.run(shape), None if shape is first else study.run(first))
    return Returned()


@pytest.fixture(scope="module")
def trained(sst2, tmp_path_factory):
    """Three shapes of a tiny model, of which the second cannot be; what was said, and what failed."""
    folder = tmp_path_factory.mktemp("study")
    shapes = (
        Shape("unstructured", (0.5,), "steps:0.5"),
        Shape("block:512x512", (0.5,), "steps:0.5"),
        Shape("2:4", (0.5,), "one-round"),
    )
    study = Study(
        sst2, 0, folder / "out", folder / "work", str(tiny(folder / "tiny")), "2it", seconds=0.05, shapes=shapes
    )
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainings, "_begin", begin_here)
        return study, said, train_all(study, shapes, said.append)


def test_a_shape_that_fails_is_named_and_the_others_are_trained(trained):
    study, said, failed = trained
    assert len(failed) == 1
    assert failed[0].startswith("block:512x512: pattern block:512x512 is larger than every layer")
    assert left(study, study.shapes) == 1
    assert (study.run(study.shapes[2]) / "summary.json").is_file()
    assert sum("taken from the first run" in line for line in said) == 1
    assert {"unstructured: round 1, 50.0% sparse", "2:4: round 1, 50.0% sparse"} <= {
        line.rpartition(",")[0] for line in said
    }


def test_what_is_trained_is_not_trained_again(trained):
    study, *_ = trained
    said = []
    assert train_all(study, [study.shapes[0], study.shapes[2]], said.append) == said == []


def test_a_cell_is_exported_asked_for_its_accuracy_and_timed_beside_the_dense_file(trained, monkeypatch):
    monkeypatch.setattr(measure_module, "THREADS", (1,))
    monkeypatch.setattr(candidates, "measure_alone", lambda *_, **__: Alone(load_ms=1.0, memory_bytes=1))
    study, *_ = trained
    cell = Cell(study.shapes[2], 0.5, "int8")
    measure(study, cell)
    found = table.read_cell(study.result(cell))
    assert (found["pattern"], found["trained_sparsity"], found["model"]) == ("2:4", 0.5, "tiny")
    metrics = json.loads((study.round(cell) / "metrics.json").read_text())
    reported = json.loads((study.export(cell) / "export_report.json").read_text())["task"]
    assert found["value"] == reported["onnx"] and found["metric"] == reported["metric"] == "accuracy"
    assert found["trained_value"] == metrics["value"] == pytest.approx(reported["pytorch"])
    assert 20 * found["value"] == pytest.approx(round(20 * found["value"]))  # of twenty sentences
    assert list(found["latency"]) == ["1"]
    assert found["bytes"] == (study.export(cell) / "model.onnx").stat().st_size
    assert found["bytes"] < 0.5 * (study.export(BASELINE) / "model.onnx").stat().st_size
    assert found["latency"]["1"]["speedup_low"] <= found["latency"]["1"]["speedup"]
    assert str(study.work) not in study.result(cell).read_text()  # no path of this machine


def test_runs_and_results_of_other_settings_are_refused_before_anything_is_done(study):
    folder = study.run(study.shapes[1])
    folder.mkdir(parents=True)
    table_of = settings_table(replace(study, round_length="2ep").settings(study.shapes[1]))
    (folder / "run.toml").write_text(toml.dumps(table_of))
    with pytest.raises(UserError, match=r"training\.round_length: '2ep' there, '1ep' now(.|\n)*--work"):
        run(study, Screen(quiet=True))
    (folder / "run.toml").unlink()
    result = study.result(BASELINE)
    result.parent.mkdir(parents=True)
    for changed in ({"model": "bert-base"}, {"training": {"round_length": "3it", "steps": 3}}):
        result.write_text(json.dumps(cell("dense", 0.0) | changed))
        with pytest.raises(UserError, match=r"dense-fp32.json is of .* choose another folder with --out"):
            run(study, Screen(quiet=True))
    result.write_text(json.dumps(cell("dense", 0.0)))
    study.check_alike()


@pytest.mark.parametrize("changed", [{"model": "bert-base"}, {"training": {"round_length": "1ep", "steps": 3}}])
def test_a_table_is_of_one_model_and_training(results, changed):
    mixed = results(cell("2:4", 0.5), cell("2:4", 0.5, seed=1) | changed)
    with pytest.raises(UserError, match=r"seed-1.*seed-0.* do not belong in one table"):
        table.read(mixed)


def test_the_command_says_what_it_lacks_before_it_starts(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--data", str(tmp_path / "nowhere")])
    assert end.value.code == 2
    assert "with --data" in capsys.readouterr().err


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


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for the process in /proc")
def test_what_runs_ends_when_the_study_is_killed(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from sparseticket.bench.shapes.process import start\n"
        "print(start(time.sleep, 600, log=Path(sys.argv[1])).pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "part.log")]
    root = str(Path(sparseticket.__file__).parents[1])
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": root}) as study:
        child = int(study.stdout.readline())
        deadline = time.monotonic() + 30
        while not (tmp_path / "part.log").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert _runs(child)
        study.kill()
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(process):
    try:
        return "(zombie)" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


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
