"""``--layout auto``: what it chooses from, that it keeps the fastest that is verified, and that it says why."""

import numpy as np
import onnx
import pytest
import torch

from sparseticket.bench import timing
from sparseticket.errors import RunFailure, UserError
from sparseticket.export import auto, to_onnx
from sparseticket.export.exporter import export_model
from sparseticket.export.report import show


@pytest.fixture(scope="module")
def sparse_classifier(tmp_path_factory, classifier):
    """The tiny classifier with 80 % of the 4x1 blocks of every encoder matrix dead, and so a few neurons."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(classifier)
    with torch.no_grad():
        for module in model.bert.encoder.modules():
            if isinstance(module, torch.nn.Linear):
                live = torch.rand(module.out_features // 4, module.in_features) < 0.2
                module.weight.masked_fill_(~live.repeat_interleave(4, 0), 0.0)
    folder = tmp_path_factory.mktemp("models") / "sparse"
    model.save_pretrained(folder)
    for file in classifier.glob("*token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def fake_times(monkeypatch):
    """Milliseconds by candidate instead of the clock's; returns what was timed."""

    def fake(by_name):
        timed = []

        def interleave(candidates, *, seconds):
            for one in candidates:
                one.call()
            timed.extend(one.name for one in candidates)
            return [np.full((5, 4), by_name.get(one.name, 9.0)) for one in candidates]

        monkeypatch.setattr(timing, "interleave", interleave)
        return timed

    return fake


def by_candidate(report):
    return {one["candidate"]: one for one in report["auto"]["candidates"]}


def test_on_this_machine_candidates_are_measured_and_the_fastest_is_written(sparse_classifier, tmp_path, fake_times):
    timed = fake_times({"dense": 2.0, "sparse-op": 1.0})
    report = export_model(sparse_classifier, tmp_path / "out", layout="auto")
    assert timed == ["dense", "shrunk", "sparse-op"]
    assert report["layout"] == "sparse-op" and report["auto"]["chosen"] == "sparse-op"
    assert report["auto"]["machine"]["cpu"] and report["auto"]["target"]
    found = by_candidate(report)
    assert found["sparse-op"]["speedup"] == 2 and "not faster than dense" in found["shrunk"]["why"]
    assert any(node.domain == "sparseticket" for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node)
    assert [item.name for item in tmp_path.iterdir()] == ["out"]  # no draft is left


def test_what_is_not_faster_is_not_chosen(sparse_classifier, tmp_path, fake_times):
    fake_times({"dense": 1.0, "sparse-op": 1.0})
    report = export_model(sparse_classifier, tmp_path / "out", layout="auto")
    assert report["layout"] == "dense" and "not faster than dense" in by_candidate(report)["sparse-op"]["why"]


def test_int8_is_considered_only_with_data_and_a_tolerance(sparse_classifier, reviews, tmp_path, fake_times):
    times = {"dense": 4.0, "sparse-op": 3.0, "dense, INT8": 2.0, "sparse-op, INT8": 1.0}
    timed = fake_times(times)
    with_data = {"layout": "auto", "task": "text", "data": reviews}
    report = export_model(sparse_classifier, tmp_path / "out", **with_data)
    assert report["quantize"] == "none" and timed == ["dense", "shrunk", "sparse-op"]
    assert report["auto"]["notes"] == [auto.NO_INT8]
    timed = fake_times(times)
    report = export_model(sparse_classifier, tmp_path / "out", **with_data, metric_drop=0.5, agreement=0.5)
    assert report["quantize"] == "dynamic" and report["auto"]["notes"] == [] and "dense, INT8" in timed
    assert report["task"]["metric"] == "accuracy"


def test_a_candidate_that_loses_too_much_is_refused_and_the_next_one_written(
    sparse_classifier, reviews, tmp_path, fake_times, monkeypatch
):
    fake_times({"dense": 4.0, "sparse-op": 3.0, "dense, INT8": 1.0, "sparse-op, INT8": 2.0})
    compare = to_onnx.on_task.compare

    def worse_in_int8(task, model, file, allowed_drop):
        assert allowed_drop == 0.25
        if any("Integer" in node.op_type for node in onnx.load(file).graph.node):
            raise RunFailure("the exported file has accuracy 0.1")
        return compare(task, model, file, 1.0)

    monkeypatch.setattr(to_onnx.on_task, "compare", worse_in_int8)
    asked = {"layout": "auto", "task": "text", "data": reviews, "metric_drop": 0.25, "agreement": 0.0}
    report = export_model(sparse_classifier, tmp_path / "out", **asked)
    assert "accuracy 0.1" in by_candidate(report)["dense, INT8"]["refused"]
    assert report["auto"]["chosen"] == "sparse-op"


def test_for_another_target_the_table_decides_and_its_origin_is_recorded(sparse_classifier, tmp_path, monkeypatch):
    from rich.console import Console

    monkeypatch.setattr(timing, "interleave", lambda *_, **__: pytest.fail("it was measured"))
    report = export_model(sparse_classifier, tmp_path / "out", layout="auto", target="avx512")
    found = by_candidate(report)
    assert report["layout"] == "sparse-op" and found["dense"]["speedup"] == 1
    assert 1 < found["sparse-op"]["speedup"] < 1 / (1 - auto.LINEAR_SHARE)
    assert report["auto"]["target"] == "avx512" and report["auto"]["figures"]
    console = Console(record=True, width=200)
    show(report, tmp_path / "out", console)
    assert "Chosen for avx512: sparse-op." in console.export_text()


def test_a_resnet_is_measured_but_not_predicted(small_resnet, tmp_path, fake_times):
    with pytest.raises(UserError, match="without --target"):
        export_model(small_resnet, tmp_path / "out", layout="auto", target="avx2")
    fake_times({"dense": 1.0})
    assert export_model(small_resnet, tmp_path / "out", layout="auto")["auto"]["chosen"] == "dense"
