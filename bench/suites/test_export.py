"""How long the steps of an export take: tracing and writing, recounting zeros, comparing with PyTorch."""

from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from sparseticket.export import layers, verify
from sparseticket.export.exporter import export_model
from sparseticket.export.loaded_model import load

pytestmark = pytest.mark.benchmark(group="export")


@pytest.fixture(scope="module")
def exported(text_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "onnx"
    export_model(text_model, out)
    return out / "model.onnx"


@pytest.mark.parametrize("model", ["text_model", "image_model"])
def test_whole_export(benchmark: BenchmarkFixture, model: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    source = request.getfixturevalue(model)
    report = benchmark.pedantic(export_model, (source, tmp_path / "onnx"), rounds=3, warmup_rounds=1)
    assert report["max_abs_error"] < 1e-3


def test_load_of_a_text_model(benchmark: BenchmarkFixture, text_model: Path) -> None:
    assert benchmark(load, text_model).kind == "text"


def test_zeros_counted_in_the_file(benchmark: BenchmarkFixture, exported: Path) -> None:
    counted = benchmark(layers.file_layers, exported)
    assert sum(layer.zeros for layer in counted) > 0.4 * sum(layer.weights for layer in counted)


def test_comparison_with_pytorch(benchmark: BenchmarkFixture, text_model: Path, exported: Path) -> None:
    model, tolerance = load(text_model), verify.Tolerance(1e-4, 0.0)
    assert benchmark(verify.verify, model, exported, tolerance)
