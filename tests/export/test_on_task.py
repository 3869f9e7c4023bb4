"""The task's metric of the file beside PyTorch's, by the task's own code; calibration on its training data."""

import json
import shutil
from contextlib import nullcontext

import onnx
import pytest
import torch
from miniatures import write_class_folders

from sparseticket.errors import RunFailure, UserError
from sparseticket.export import decisions, on_task, to_onnx
from sparseticket.export.decisions import same_decisions, same_values
from sparseticket.export.exporter import export_model
from sparseticket.export.loaded_model import load
from sparseticket.export.onnx_module import OnnxModule
from sparseticket.export.options import Options
from sparseticket.models import resolve
from sparseticket.tasks import TaskOptions, make_task
from sparseticket.tasks.image_task import ImageTask


def test_a_run_knows_its_task_and_the_file_scores_as_pytorch_does(run, reviews):
    report = export_model(run / "round-00", data=reviews)
    found = report["task"]
    assert (found["name"], found["metric"]) == ("text", "accuracy")
    assert found["onnx"] == found["pytorch"] > 0
    model = onnx.load(run / "round-00" / "onnx" / "model.onnx")
    assert {entry.key: entry.value for entry in model.metadata_props} == report["provenance"]


def test_the_files_metadata_say_where_it_comes_from(run, save_ticket, monkeypatch):
    identity = save_ticket(run / "round-01" / "ticket.ticket")
    report = export_model(run)
    model = onnx.load(run / "onnx" / "model.onnx")
    entries = {entry.key.removeprefix("sparseticket."): entry.value for entry in model.metadata_props}
    assert entries.pop("version")
    zeros, weights = (sum(layer[key] for layer in report["layers"]) for key in ("zeros", "weights"))
    assert float(entries.pop("sparsity")) == pytest.approx(zeros / weights, abs=1e-6)
    assert entries == {
        "source": "tiny-sst2/round-01/model",
        "model": "tiny",
        "ticket": identity,
        "ticket_sparsity": "0.500000",
        "pattern": "unstructured",
        "task": "text",
        "metric": "accuracy",
        "value": "0.750000",
    }


def test_int8_is_compared_on_the_tasks_data(classifier, reviews, tmp_path):
    report = export_model(classifier, tmp_path / "out", quantize="dynamic", task="text", data=reviews, agreement=0.5)
    assert report["agreement"]["inputs"] == "text"
    assert report["task"]["onnx"] >= report["task"]["pytorch"] - 0.5


def test_masked_lm_is_evaluated_by_its_own_task(masked_lm, tmp_path):
    text = tmp_path / "corpus.txt"
    text.write_text("\n".join(["the lottery ticket wins", "a ticket winning the lottery"] * 40))
    report = export_model(masked_lm, tmp_path / "out", task="mlm", data=text)
    assert report["task"]["metric"] == "masked_accuracy"
    assert report["task"]["onnx"] == report["task"]["pytorch"]


def test_answers_to_questions_are_evaluated_by_their_own_task(berts, tmp_path):
    passage = "the lottery ticket wins"
    answers = [{"answer_start": passage.index("ticket"), "text": "ticket"}]
    asked = {"context": passage, "qas": [{"id": "1", "question": "winning the lottery", "answers": answers}]}
    for name in ("train-v1.1.json", "dev-v1.1.json"):
        (tmp_path / name).write_text(json.dumps({"data": [{"title": "", "paragraphs": [asked]}]}))
    report = export_model(berts["question-answering"], tmp_path / "out", task="squad", data=tmp_path)
    assert report["task"]["metric"] == "f1" and report["task"]["onnx"] == report["task"]["pytorch"]
    with pytest.raises(UserError, match="task squad needs a model for question-answering"):
        on_task.make("squad", tmp_path, load(berts["classifier"]), berts["classifier"], max_length=32)


def test_static_int8_calibrates_on_training_images_and_keeps_the_metric(small_resnet, tmp_path, monkeypatch):
    batches, splits = ImageTask.batches, []

    def watched(self, split, **where):
        splits.append(split)
        return batches(self, split, **where)

    monkeypatch.setattr(ImageTask, "batches", watched)
    report = export_model(small_resnet, tmp_path / "out", quantize="static", task="digits", agreement=0.8)
    assert splits[0] == "train" and set(splits[1:]) == {"eval"}
    assert report["agreement"]["logits"] >= 0.8
    assert abs(report["task"]["onnx"] - report["task"]["pytorch"]) <= 0.2
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QuantizeLinear") >= 20
    points = {t.name: t.data_type for t in graph.initializer if t.name.endswith("_zero_point")}
    assert points["pixel_values_zero_point"] == onnx.TensorProto.UINT8
    assert points["conv1.weight_zero_point"] == onnx.TensorProto.INT8
    assert next(t.dims for t in graph.initializer if t.name == "conv1.weight_scale") == [16]
    sparsity = {layer["name"]: layer["sparsity"] for layer in report["layers"]}
    assert 0.65 < sparsity["layer3.0.conv1"] < 0.8


def test_a_metric_that_falls_is_a_failure(small_resnet, tmp_path, monkeypatch):
    monkeypatch.setattr(to_onnx, "ALLOWED_DROP", -0.5)
    with pytest.raises(RunFailure, match=r"accuracy 0\.\d+ on digits, PyTorch 0\.\d+"):
        export_model(small_resnet, tmp_path / "out", task="digits")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("asked", "drop"),
    [
        ({}, 0.01),
        ({"quantize": "dynamic"}, 0.03),
        ({"quantize": "dynamic", "agreement": 0.8}, 0.2),
        ({"quantize": "dynamic", "agreement": 0.99}, 0.03),
        ({"quantize": "dynamic", "agreement": 0.0}, 1.0),
    ],
)
def test_int8_may_lose_three_points_unless_a_lower_agreement_was_asked_for(asked, drop):
    assert to_onnx._allowed_drop(Options(**asked)) == pytest.approx(drop)


def test_int8_that_loses_more_of_the_metric_than_it_may_is_a_failure(classifier, reviews, tmp_path, monkeypatch):
    monkeypatch.setattr(to_onnx, "ALLOWED_INT8_DROP", -0.9)  # not even as good as PyTorch is good enough
    monkeypatch.setattr(to_onnx.decisions, "check_decisions", lambda *_: {"logits": 1.0})
    with pytest.raises(RunFailure, match=r"it may lose at most -0\.9"):
        export_model(classifier, tmp_path / "out", quantize="dynamic", task="text", data=reviews)


def test_a_task_that_needs_another_head_is_refused(masked_lm, berts, reviews, tmp_path):
    for folder in (masked_lm, berts["regression"]):
        with pytest.raises(UserError, match="needs a model for sequence-classification with 2 classes"):
            on_task.make("text", reviews, load(folder), folder, max_length=32)
    with pytest.raises(UserError, match="for vision models"):
        on_task.make("digits", None, load(masked_lm), masked_lm, max_length=32)


def test_an_onnx_file_is_called_as_the_model_is(berts, tmp_path):
    folder = berts["question-answering"]
    export_model(folder, tmp_path / "out")
    model = load(folder)
    inputs = model.example(2, 9)
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    expected = model.module(**inputs)
    del inputs["token_type_ids"]  # as a tokenizer that makes none
    got = OnnxModule(model, tmp_path / "out" / "model.onnx").eval()(**inputs)
    torch.testing.assert_close(got.end_logits, expected.end_logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(got["start_logits"], expected["start_logits"], atol=1e-4, rtol=0)


def test_decisions():
    logits = torch.tensor([[1.0, 2.0], [2.0, 1.0]]).numpy()
    assert same_decisions("logits", logits, logits[:, ::-1], None).tolist() == [False, False]
    values = torch.tensor([[101.0], [105.0]]).numpy()  # a tenth of their span is 0.4, whatever lies below them
    assert same_values(values, values + torch.tensor([[0.3], [0.5]]).numpy()).tolist() == [True, False]
    vectors = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [1.0, 0.0]]]).numpy()
    other = torch.tensor([[[6.0, 8.0], [0.0, 1.0], [0.0, 1.0]]]).numpy()
    real = torch.tensor([[True, True, False]]).numpy()
    assert same_decisions("last_hidden_state", vectors, other, real).tolist() == [True, False]


def test_the_report_is_what_the_folder_says(run, reviews):
    report = export_model(run, data=reviews)
    assert json.loads((run / "onnx" / "export_report.json").read_text()) == report


def test_images_of_other_classes_are_refused(tmp_path):
    write_class_folders(tmp_path / "data")
    spec = resolve("resnet20-cifar")
    task = make_task("image-folder", spec, TaskOptions(tmp_path / "data", batch_size=2))
    task.adapt(spec).build(task.head, seed=0).save(tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "fine", task="image-folder", data=tmp_path / "data")
    for split in ("train", "test"):
        (tmp_path / "data" / split / "cat").rename(tmp_path / "data" / split / "zebra")
    with pytest.raises(UserError, match="the classes dog, zebra, and this model knows cat, dog"):
        export_model(tmp_path / "model", tmp_path / "out", task="image-folder", data=tmp_path / "data")


@pytest.mark.parametrize(
    ("known", "ours", "fits"),
    [
        (["0", "1"], True, True),
        (["1", "0"], False, False),
        (["1", "2"], False, False),
        (["NEGATIVE", "POSITIVE"], False, True),  # of somebody else, who has other words
        (["NEGATIVE", "POSITIVE"], True, False),
    ],
)
def test_texts_whose_classes_the_model_knows_by_other_numbers_are_refused(
    classifier, reviews, tmp_path, known, ours, fits
):
    folder = shutil.copytree(classifier, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    names = {"id2label": dict(enumerate(known)), "label2id": {name: n for n, name in enumerate(known)}}
    (folder / "config.json").write_text(json.dumps(config | names))
    with nullcontext() if fits else pytest.raises(UserError, match="have the classes 0, 1, and this model knows "):
        on_task.make("text", reviews, load(folder), folder, max_length=16, ours=ours)


def test_what_a_task_refuses_while_it_calibrates_is_said_in_its_own_words(small_resnet, tmp_path, monkeypatch):
    def refuse(self, split, **where):
        raise UserError("the images ran out")

    monkeypatch.setattr(ImageTask, "batches", refuse)
    with pytest.raises(UserError, match=r"^the images ran out$"):
        export_model(small_resnet, tmp_path / "out", quantize="static", task="digits")


def test_a_regression_is_compared_over_all_rows_and_not_batch_by_batch(berts, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(decisions, "same_values", lambda *both: seen.append(both) or same_values(*both))
    report = export_model(berts["regression"], tmp_path / "out", quantize="dynamic", agreement=0.0)
    ((expected, got),) = seen
    assert expected.shape == got.shape == (decisions.RANDOM_ROWS, 1)
    assert report["agreement"]["logits"] == pytest.approx(same_values(expected, got).mean())
