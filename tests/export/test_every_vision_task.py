"""Whatever vision task is registered: its network exports, answers as PyTorch does, and runs in bench."""

from dataclasses import replace

import onnxruntime
import pytest
import torch
from miniatures import PUBLISHED, write_camvid, write_class_folders, write_each, write_voc

from sparseticket.bench import candidates
from sparseticket.bench.alone import Alone
from sparseticket.bench.runner import bench
from sparseticket.errors import UserError
from sparseticket.export.exporter import export_model
from sparseticket.models import resolve
from sparseticket.models.vision_saved import load_saved
from sparseticket.tasks import TaskOptions, entries, entry, make_task

SIDES = {"resnet20-cifar": 32, "resnet18": 40}  # the smallest of each family; up to 32 pixels ResNet-18 loses its stem
VISION = [name for name, one in entries().items() if one.kind == "vision"]
LARGE_STEM = ["detection", "image-folder", "segmentation", "segmentation-v3"]
CASES = [
    *((name, "resnet20-cifar") for name in VISION),
    *((name, "resnet18") for name in (*LARGE_STEM, "cifar10")),  # cifar10: its stem for small images
]
WRITERS = {**PUBLISHED, "voc": write_voc, "camvid": write_camvid, "class folders": write_class_folders}


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """A folder of each layout, and None for tasks that bring their own data."""
    root = write_each(tmp_path_factory.mktemp("layouts"), WRITERS)
    return [*(root / name for name in WRITERS), None]


def task_on(layouts, name, spec):
    """The task on the first data that it takes."""
    if library := entry(name).library:
        pytest.importorskip(library)
    refusals = {}
    for data in layouts:
        try:
            return make_task(name, spec, TaskOptions(data=data, batch_size=2, queue=8))
        except UserError as error:
            refusals[str(error)] = data
    pytest.fail("\n".join([f"write a miniature of {name}'s data in tests/helpers/miniatures.py:", *refusals]))


def small(model):
    spec = resolve(model).from_scratch()
    return replace(spec.for_images(SIDES[model]), scene=replace(spec.scene, size=SIDES[model]))


@pytest.mark.parametrize(("name", "model"), CASES)
def test_its_network_exports_answers_as_pytorch_does_and_runs_in_bench(name, model, layouts, tmp_path, monkeypatch):
    spec = small(model)
    task = task_on(layouts, name, spec)
    spec = task.adapt(spec) if hasattr(task, "adapt") else spec
    spec.build(task.head, seed=0).save(tmp_path / "model")
    report = export_model(tmp_path / "model", tmp_path / "onnx")

    pixels = torch.randn(3, 3, spec.format.size, spec.format.size, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    got = dict(zip(report["outputs"], session.run(report["outputs"], {"pixel_values": pixels.numpy()}), strict=True))
    with torch.inference_mode():
        answer = load_saved(tmp_path / "model")(pixels)
    expected = {report["outputs"][0]: answer} if isinstance(answer, torch.Tensor) else answer
    assert got.keys() == expected.keys() and [one.name for one in session.get_outputs()] == list(expected)
    for output, wanted in expected.items():
        torch.testing.assert_close(torch.from_numpy(got[output]), wanted, atol=1e-4, rtol=1e-4)
        assert wanted.std(0).max() > 1e-3, f"{output} does not depend on the image enough to compare"

    monkeypatch.setattr(candidates, "measure_alone", lambda *_, **__: Alone(load_ms=1.0, memory_bytes=1))
    monkeypatch.setattr(candidates, "PROVIDERS", {"cpu": "CPUExecutionProvider"})
    compared = [str(tmp_path / "model"), str(tmp_path / "onnx")]
    measured = bench(compared, tmp_path / "bench", threads=(1,), seconds=0.02, min_rounds=3)
    by_runtime = {record["provider"]: record["p50_ms"] for record in measured["records"]}
    assert by_runtime["pytorch-cpu"] > 0 and by_runtime["onnxruntime-cpu"] > 0
    assert measured["inputs"] == f"batch 1, 3x{spec.format.size}x{spec.format.size} images"


def test_both_stems_of_resnet18_are_among_the_cases(layouts):
    stems = [task_on(layouts, name, small("resnet18")).adapt(small("resnet18")).small_stem for name in LARGE_STEM]
    assert not any(stems)
    assert task_on(layouts, "cifar10", small("resnet18")).adapt(small("resnet18")).small_stem
