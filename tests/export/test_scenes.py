"""Detectors and segmenters as ONNX files: raw outputs and logits like PyTorch's, INT8, timed by bench."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from sparseticket.bench import candidates
from sparseticket.bench.alone import Alone
from sparseticket.bench.runner import bench
from sparseticket.errors import RunFailure, UserError
from sparseticket.export.decisions import same_decisions
from sparseticket.export.exporter import export_model
from sparseticket.export.loaded_model import load
from sparseticket.export.on_task import _gives
from sparseticket.export.onnx_module import OnnxModule
from sparseticket.models import Head, resolve
from sparseticket.models.detector import OUTPUTS, decode
from sparseticket.models.scene import MODULES
from sparseticket.tasks import TaskOptions, make_task
from sparseticket.tasks.scene_batches import for_scenes

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


@pytest.mark.parametrize("kind", MODULES)
def test_on_a_resnet_of_imagenet_the_file_answers_as_pytorch_does(kind, tmp_path):
    resolve("resnet18").from_scratch().for_images(SIDE).build(Head(kind, CLASSES), seed=0).save(tmp_path / "model")
    report = export_model(tmp_path / "model", tmp_path / "onnx")
    assert report["outputs"] == (list(OUTPUTS) if kind == "detection" else ["logits"])
    assert report["max_abs_error"] < 1e-3 and any("layer4" in layer["name"] for layer in report["layers"])


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
def cells(tmp_path):
    """Pascal VOC's layout in small: two bright squares on each image; those to evaluate on are alike."""
    root = tmp_path / "VOC2007"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for number in range(8):
        pixels, boxes = np.zeros((48, 64, 3), np.uint8), []
        for left, top, kind in ((4 + 3 * (number % 4), 5, "cell"), (36, 6 + 4 * (number % 4), "plate")):
            pixels[top : top + 20, left : left + 20] = 255
            box = f"<xmin>{left}</xmin><ymin>{top}</ymin><xmax>{left + 20}</xmax><ymax>{top + 20}</ymax>"
            boxes.append(f"<object><name>{kind}</name><bndbox>{box}</bndbox></object>")
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{number}.jpg")
        size = "<size><width>64</width><height>48</height><depth>3</depth></size>"
        (root / "Annotations" / f"{number}.xml").write_text(f"<annotation>{size}{''.join(boxes)}</annotation>")
    for split, numbers in (("train", "0 1 2 3"), ("val", "4 5 6 7")):
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(numbers.split()))
    return root


def trained_detector(data):
    """A detector that has seen the four images often enough to find some of their squares."""
    task = make_task("detection", resolve("resnet20-cifar"), TaskOptions(data=data, batch_size=4))
    network = task.adapt(resolve("resnet20-cifar")).build(task.head, seed=0)
    optimizer = torch.optim.AdamW(network.module.parameters(), lr=3e-3)
    network.module.train()
    for step in range(60):
        (batch,) = task.batches("train", seed=0, round=0, epoch=step)
        task.loss(network.module, batch, step=step).backward()
        optimizer.step()
        optimizer.zero_grad()
    return network


def test_a_detector_s_average_precision_is_measured_on_its_data_and_is_pytorch_s(cells, tmp_path, monkeypatch):
    trained_detector(cells).save(tmp_path / "model")
    asked = {"task": "detection", "data": cells}
    measured = export_model(tmp_path / "model", tmp_path / "onnx", **asked)["task"]
    assert measured["metric"] == "AP" and measured["pytorch"] > 0.1
    assert measured["onnx"] == pytest.approx(measured["pytorch"], abs=1e-3)
    answer = OnnxModule.forward
    monkeypatch.setattr(OnnxModule, "forward", lambda self, *a: {n: v.flip(1) for n, v in answer(self, *a).items()})
    with pytest.raises(RunFailure, match=r"has AP 0\.0\d+ on detection, PyTorch 0\.[1-9]"):
        export_model(tmp_path / "model", tmp_path / "disturbed", **asked)


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


@pytest.mark.parametrize("kind", MODULES)
def test_bench_times_the_file_beside_the_folder(exported, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(candidates, "measure_alone", lambda *_, **__: Alone(load_ms=1.0, memory_bytes=1))
    folder, out, _ = exported[kind]
    result = bench([str(folder), str(out)], tmp_path / "bench", threads=(1,), seconds=0.05, min_rounds=8)
    providers = {record["provider"] for record in result["records"]}
    assert {"pytorch-cpu", "onnxruntime-cpu"} <= providers
    assert all(record["p50_ms"] > 0 for record in result["records"])


def test_a_detector_trained_on_no_named_data_cannot_be_measured_on_a_classifier_s_task(exported, tmp_path):
    with pytest.raises(UserError, match="needs a model for image-classification"):
        export_model(exported["detection"][0], tmp_path / "out", task="digits")
