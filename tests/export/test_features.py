"""A network pre-trained without labels is exported without its projection head, down to the pooled features."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from miniatures import write_class_folders
from safetensors.torch import load_file

from sparseticket.bench import candidates
from sparseticket.bench.alone import Alone
from sparseticket.bench.runner import bench
from sparseticket.errors import UserError
from sparseticket.export.exporter import export_model
from sparseticket.imp import find
from sparseticket.models import Head, resolve
from sparseticket.models.vision_saved import describe_saved, load_saved
from sparseticket.options import find_settings
from sparseticket.progress import Screen


@pytest.fixture(scope="module", params=["simclr", "moco"])
def run(request, tmp_path_factory):
    """A run of one pruned round on six pictures of two classes, and the pictures."""
    root = tmp_path_factory.mktemp(request.param)
    write_class_folders(root / "data")
    settings = find_settings(
        "resnet20-cifar",
        task=request.param,
        data=root / "data",
        dense=False,
        protocol={"sparsity": 0.2},
        training={
            "round_length": "1it",
            "batch_size": 4,
            "lr": 0.01,
            **({"queue": 8} if request.param == "moco" else {}),
        },
    )
    find(settings, root / "run", screen=Screen(quiet=True))
    return root / "run"


def test_the_saved_network_is_the_backbone_and_ends_in_features(run):
    folder = run / "round-00" / "model"
    assert describe_saved(folder).classes == 0
    assert not any(name.startswith("linear.") for name in load_file(folder / "model.safetensors"))
    pixels = torch.randn(2, 3, 32, 32)
    module = load_saved(folder)
    features = []
    whole = resolve("resnet20-cifar").build(
        Head("image-classification", 10), seed=0, weights=folder / "model.safetensors"
    )
    whole.module.linear.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    whole.module.eval()(pixels)
    assert torch.equal(module(pixels), features[0]) and features[0].shape == (2, 64)
    assert whole.pretrained == whole.backbone().keys() and not whole.head_pretrained


def test_the_exported_file_gives_features_retrieves_as_pytorch_does_and_is_measured(run, tmp_path, monkeypatch):
    report = export_model(run, tmp_path / "onnx", data=run.parent / "data")
    assert report["task"]["metric"] == "retrieval"
    assert report["task"]["onnx"] == pytest.approx(report["task"]["pytorch"], abs=1e-6)
    file = tmp_path / "onnx" / "model.onnx"
    assert [output.name for output in onnx.load(file).graph.output] == ["features"]
    pixels = torch.randn(3, 3, 32, 32)
    (features,) = onnxruntime.InferenceSession(file).run(None, {"pixel_values": pixels.numpy()})
    assert np.allclose(features, load_saved(run / "round-00" / "model")(pixels).detach(), atol=1e-4)
    assert json.loads((tmp_path / "onnx" / "preprocessing.json").read_text())["classes"] == 0

    monkeypatch.setattr(candidates, "measure_alone", lambda *_, **__: Alone(load_ms=1.0, memory_bytes=1))
    measured = bench(
        [str(run / "round-00"), str(tmp_path / "onnx")], tmp_path / "bench", threads=(1,), seconds=0.02, min_rounds=3
    )
    by_runtime = {record["provider"]: record for record in measured["records"]}
    assert {"pytorch-cpu", "onnxruntime-cpu"} <= by_runtime.keys()
    assert all(record["p50_ms"] > 0 for record in measured["records"])


def test_for_pytorch_the_backbone_is_written_as_it_is_loaded(run, tmp_path):
    export_model(run, tmp_path / "hf", format="hf")
    assert isinstance(load_saved(tmp_path / "hf").linear, torch.nn.Identity)


def test_features_are_no_answer_to_a_classification_task(run, tmp_path):
    with pytest.raises(UserError, match="needs a model for image-classification"):
        export_model(run, tmp_path / "onnx", task="digits")


def test_a_saved_backbone_of_torchvision_loads_there_but_for_its_head(tmp_path):
    network = resolve("resnet18").build(Head("projection", 128), seed=0, weights=_weights(tmp_path))
    network.save(tmp_path / "model")
    plain = torchvision.models.resnet18()
    result = plain.load_state_dict(load_file(tmp_path / "model" / "model.safetensors"), strict=False)
    assert result.missing_keys == ["fc.weight", "fc.bias"] and not result.unexpected_keys


def _weights(folder: Path) -> Path:
    torch.save(torchvision.models.resnet18().state_dict(), folder / "resnet18.pth")
    return folder / "resnet18.pth"


def test_a_run_of_few_images_calibrates_in_batches_of_its_own_size(run, tmp_path):
    report = export_model(run / "round-00", tmp_path / "out", data=run.parent / "data", quantize="static", agreement=0)
    assert report["task"]["metric"] == "retrieval"  # 8 images to train on, and batches of 4
