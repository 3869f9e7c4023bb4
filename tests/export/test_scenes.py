"""Detectors and segmenters as ONNX files: raw outputs and logits like PyTorch's, INT8."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from sparseticket.errors import UserError
from sparseticket.export.decisions import same_decisions
from sparseticket.export.exporter import export_model
from sparseticket.export.loaded_model import load
from sparseticket.export.on_task import _gives
from sparseticket.export.onnx_module import OnnxModule
from sparseticket.models import Head, resolve
from sparseticket.models.detector import OUTPUTS, decode
from sparseticket.models.scene import MODULES
from sparseticket.tasks.scenes import for_scenes

SIDE, CLASSES = 64, 3


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Of each kind a sparse network on the CIFAR ResNet-20: its folder, its export's and the report."""
    found = {}
    for kind in MODULES:
        root = tmp_path_factory.mktemp(kind)
        network = resolve("resnet20-cifar").for_images(SIDE).build(Head(kind, CLASSES), seed=0)
        with torch.no_grad():
            for name in network.prunable:
                weight = network.backbone()[name]
                weight.masked_fill_(torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.7, 0.0)
        network.save(root / "model")
        found[kind] = root / "model", root / "onnx", export_model(root / "model", root / "onnx")
    return found


@pytest.mark.parametrize("kind", MODULES)
def test_the_file_answers_as_pytorch_does_for_any_batch(exported, kind):
    folder, out, report = exported[kind]
    model = load(folder)
    assert report["outputs"] == list(model.outputs) == (list(OUTPUTS) if kind == "detection" else ["logits"])
    assert [shape["batch"] for shape in report["shapes"]] == [1, 2, 5] and report["max_abs_error"] < 1e-3
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    pixels = model.example(3)
    names = list(model.outputs)
    answers = dict(zip(names, session.run(names, {"pixel_values": pixels["pixel_values"].numpy()}), strict=True))
    for name, expected in model.answer(pixels).items():
        assert torch.allclose(torch.from_numpy(answers[name]), expected, atol=1e-3)


@pytest.mark.parametrize("kind", MODULES)
def test_zeros_of_the_backbone_are_zeros_of_the_file(exported, kind):
    layers = {layer["name"]: layer for layer in exported[kind][2]["layers"]}
    backbone = [layer for name, layer in layers.items() if ".layer" in name and "fpn" not in name]
    assert len(backbone) == 18 and all(layer["sparsity"] > 0.6 for layer in backbone)


def test_a_detector_s_outputs_can_be_decoded_with_what_lies_beside_the_file(exported):
    folder, out, _ = exported["detection"]
    beside = json.loads((out / "preprocessing.json").read_text())
    assert beside["strides"] == [4, 8, 16] and beside["size"] == SIDE
    model = load(folder)
    pixels = model.example(2)["pixel_values"]
    ours, theirs = (
        decode(
            {name: raw[name] + (2.0 if name == "class_logits" else 0.0) for name in OUTPUTS}, SIDE, beside["strides"]
        )
        for raw in (model.module(pixels), OnnxModule(model, out / "model.onnx")(pixels))
    )
    for one, other in zip(ours, theirs, strict=True):
        assert len(one["boxes"]) and torch.allclose(one["boxes"], other["boxes"], atol=1e-2)


@pytest.mark.parametrize("kind", ["detection", "segmentation"])
def test_a_task_takes_a_model_with_its_own_head_only(exported, kind):
    model = load(exported[kind][0])
    assert _gives(Head(kind, CLASSES), model)
    assert not _gives(Head(kind, CLASSES + 1), model)
    assert not any(_gives(Head(other, CLASSES), model) for other in (*MODULES, "image-classification") if other != kind)


@pytest.fixture
def streets(tmp_path):
    """CamVid's layout in small: noise, and masks of its 11 classes."""
    for split in ("train", "val"):
        for number in range(4):
            draw = np.random.default_rng([number, split == "val"])
            for folder, shape, high in ((split, (48, 64, 3), 256), (f"{split}annot", (48, 64), 12)):
                (tmp_path / "camvid" / folder).mkdir(parents=True, exist_ok=True)
                array = draw.integers(0, high, shape, dtype=np.uint8)
                Image.fromarray(array).save(tmp_path / "camvid" / folder / f"{number}.png")
    return tmp_path / "camvid"


def test_a_segmenter_in_int8_is_calibrated_and_measured_on_its_task(streets, tmp_path):
    spec = for_scenes(resolve("resnet20-cifar"))
    spec.build(Head("segmentation", 11), seed=0).save(tmp_path / "model")
    asked = {"quantize": "static", "task": "segmentation", "data": streets, "agreement": 0.2}
    report = export_model(tmp_path / "model", tmp_path / "int8", **asked)
    assert report["task"]["metric"] == "mIoU" and abs(report["task"]["onnx"] - report["task"]["pytorch"]) < 0.1
    assert report["agreement"]["inputs"] == "segmentation" and report["agreement"]["logits"] > 0.2


def test_decisions_of_pixels_are_those_of_the_largest_class():
    expected = torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]]).numpy()  # classes 1 and 0
    got = torch.tensor([[[[1.0, 2.0]], [[0.0, 1.0]]]]).numpy()  # classes 0 and 0
    assert same_decisions("logits", expected, got, None).tolist() == [False, True]


def test_a_detector_trained_on_no_named_data_cannot_be_measured_on_a_classifier_s_task(exported, tmp_path):
    with pytest.raises(UserError, match="needs a model for image-classification"):
        export_model(exported["detection"][0], tmp_path / "out", task="digits")
