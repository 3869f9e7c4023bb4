"""A detector's export measured on its data: average precision of the file beside PyTorch's."""

import pytest
import torch
from miniatures import annotation, one_object, write_voc
from PIL import Image

from sparseticket.errors import RunFailure
from sparseticket.export import on_task
from sparseticket.export.exporter import export_model
from sparseticket.export.onnx_module import OnnxModule
from sparseticket.models import resolve
from sparseticket.models.detector import OUTPUTS, decode
from sparseticket.tasks import TaskOptions, make_task

pytest.importorskip("pycocotools")
FOUND_WELL = 3  # boxes of an image that are annotated: those that the detector is surest of


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A random detector, and VOC's layout around pictures whose objects are where it sees them best."""
    root = tmp_path_factory.mktemp("detector")
    data = write_voc(root / "voc", train=2, evaluation=2)
    spec = resolve("resnet20-cifar")
    task = make_task("detection", spec, TaskOptions(data=data, batch_size=2))
    network = task.adapt(spec).build(task.head, seed=0)
    with torch.no_grad():
        network.module.head.classification_head.cls_logits.bias.fill_(1.0)  # sure enough to be counted
        network.module.head.regression_head.bbox_reg.bias.fill_(1.5)  # boxes of three strides, not of none
    network.save(root / "model")
    (batch,) = task.batches("eval", seed=0, round=0, epoch=0)
    with torch.inference_mode():
        seen = decode(network.module.eval()(batch["pixels"]), task.format.size, task.strides)
    for number, one in enumerate(seen, 2):
        width, height = Image.open(data / "JPEGImages" / f"image_{number}.jpg").size
        scale = torch.tensor([width, height]).repeat(2) / task.format.size
        boxes = (one["boxes"][:FOUND_WELL] * scale).round().int().tolist()
        names = [task.class_names[label] for label in one["labels"][:FOUND_WELL]]
        objects = [one_object(name, box) for name, box in zip(names, boxes, strict=True)]
        (data / "Annotations" / f"image_{number}.xml").write_text(annotation(objects))
    return root / "model", data


def test_the_file_finds_as_much_as_pytorch_does(detector, tmp_path):
    folder, data = detector
    report = export_model(folder, tmp_path / "onnx", task="detection", data=data)
    assert (report["task"]["name"], report["task"]["metric"]) == ("detection", "AP")
    assert report["task"]["onnx"] == pytest.approx(report["task"]["pytorch"], abs=1e-3)
    assert report["task"]["pytorch"] > 0.3


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_file_with_a_disturbed_output_finds_less_and_nothing_is_kept(detector, output, tmp_path, monkeypatch):
    class Disturbed(OnnxModule):
        def forward(self, pixels):
            raw = super().forward(pixels)
            return {**raw, output: raw[output].roll(1, dims=1)}  # as if the places were in another order

    monkeypatch.setattr(on_task, "OnnxModule", Disturbed)
    folder, data = detector
    with pytest.raises(RunFailure, match=r"the exported file has AP 0\.\d+ on detection, PyTorch 0\.\d+"):
        export_model(folder, tmp_path / "onnx", task="detection", data=data)
    assert not (tmp_path / "onnx").exists()
