"""From a pre-trained model to an answer: finding a ticket, and what a user's call of the exported network takes."""

import itertools
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from sparseticket.bench.candidates import find as candidate
from sparseticket.bench.inputs import make_feeds
from sparseticket.bench.sessions import open_session
from sparseticket.export.exporter import export_model
from sparseticket.imp import find
from sparseticket.options import find_settings
from sparseticket.progress import Screen


@pytest.mark.benchmark(group="end to end: from a model to its exported ticket")
def test_find_of_three_rounds_and_its_export(
    benchmark: BenchmarkFixture, text_model: Path, reviews: Path, tmp_path: Path
) -> None:
    settings = find_settings(
        str(text_model),
        task="text",
        data=reviews,
        protocol={"schedule": "linear:0.3", "sparsity": 0.6},
        training={"round_length": "10it", "batch_size": 16, "max_length": 32},
    )
    runs = (tmp_path / f"run-{number}" for number in itertools.count())

    def whole(run: Path) -> dict:
        find(settings, run, screen=Screen(quiet=True))
        return export_model(run)

    report = benchmark.pedantic(whole, setup=lambda: ((next(runs),), {}), rounds=3)
    zeros, weights = (sum(layer[key] for layer in report["layers"]) for key in ("zeros", "weights"))
    assert zeros > 0.55 * weights


@pytest.mark.benchmark(group="end to end: one call")
@pytest.mark.parametrize("runtime", ["pytorch", "onnxruntime"])
@pytest.mark.parametrize(("batch", "length"), [(1, 32), (1, 128), (8, 128)])
def test_one_call(
    benchmark: BenchmarkFixture, text_model: Path, tmp_path: Path, runtime: str, batch: int, length: int
) -> None:
    path = text_model
    if runtime == "onnxruntime":
        export_model(text_model, tmp_path / "onnx")
        path = tmp_path / "onnx"
    found = candidate("model", str(path))
    arrays = make_feeds({"model": found.needs}, batch=batch, length=length).for_model(found.needs)
    call = open_session(runtime, found.path, "cpu", arrays, threads=1).call
    benchmark.extra_info["rows a call"] = batch
    assert arrays["input_ids"].shape == (batch, length)
    answer = benchmark(call)
    if runtime == "pytorch":  # the file was compared with it when it was written, and gives nothing back here
        assert answer.logits.shape == (batch, 2) and answer.logits.isfinite().all()
