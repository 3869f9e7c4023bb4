"""What cannot work is refused before any work is done, and the message says what to do."""

import importlib.util
from pathlib import Path

import pytest

from sparseticket.errors import UserError
from sparseticket.export import loaded_model
from sparseticket.export.exporter import export_model

HERE = Path(__file__).parent
REFUSED = [
    ({"format": "tflite"}, "one of onnx, pt2, safetensors, hf"),
    ({"layout": "csr"}, "one of dense, "),
    ({"quantize": "int4"}, "one of none, dynamic, static"),
    ({"dtype": "int4"}, "one of fp32, fp16, bf16"),
    ({"dtype": "bf16"}, "choose --dtype fp16, or another format"),
    ({"optimize": "tensorrt"}, "one of none, ort"),
    ({"opset": 26}, "choose one from 17 to 25"),
    ({"agreement": 1.5}, "from 0 to 1"),
    ({"quantize": "dynamic", "optimize": "ort"}, "Leave out --optimize ort"),
    ({"quantize": "dynamic", "layout": "sparse-storage"}, "leave out --quantize or --layout"),
    ({"quantize": "dynamic", "dtype": "fp16"}, "leave out --dtype fp16 or --quantize"),
    ({"quantize": "static"}, "--data DIR"),
    ({"layout": "sparse-storage", "external_data": True}, "leave out --external-data"),
    ({"quantize": "dynamic", "atol": 1.0}, "--agreement"),
    ({"agreement": 0.5}, "--atol and --rtol"),
    ({"data": HERE / "nowhere"}, "there is no"),
    ({"data": HERE}, "name the task with --task"),  # a model folder does not say which
    ({"format": "hf", "opset": 18}, "--opset is for --format onnx"),
    ({"format": "safetensors", "quantize": "dynamic"}, "--quantize is for --format onnx"),
    ({"format": "hf", "external_data": True}, "--external-data is for --format onnx"),
    ({"format": "safetensors", "layout": "sparse-storage"}, "--layout is for --format onnx"),
    ({"format": "hf", "layout": "shrunk"}, "use --format safetensors"),
    ({"quantize": "static", "data": HERE, "task": "text"}, "use --quantize dynamic"),
    ({"layout": "sparse-op", "dtype": "fp16"}, "leave out --dtype fp16"),
    ({"layout": "sparse-op", "optimize": "ort"}, "leave out --optimize ort"),
    ({"layout": "sparse-op", "quantize": "static", "data": HERE, "task": "text"}, "use --quantize dynamic"),
    ({"layout": "auto", "quantize": "dynamic"}, "leave out --quantize"),
    ({"layout": "auto", "optimize": "ort"}, "leave out --optimize ort"),
    ({"layout": "auto", "metric_drop": 0.01}, "--data DIR"),
    ({"metric_drop": 2.0, "task": "text"}, "from 0 to 1"),
    ({"target": "sse9", "layout": "auto"}, "one of this, avx2, avx512, vnni"),
    ({"target": "avx2"}, "--target is for --layout sparse-op and auto"),
    ({"format": "safetensors", "layout": "sparse-op"}, "--layout is for --format onnx"),
    ({"format": "hf", "layout": "auto"}, "--layout is for --format onnx"),
]


@pytest.fixture
def no_work(monkeypatch):
    monkeypatch.setattr(loaded_model, "load", lambda *_: pytest.fail("the model was loaded"))


@pytest.mark.parametrize(("asked", "advice"), REFUSED)
def test_what_cannot_work_is_refused_before_the_model_is_loaded(classifier, tmp_path, no_work, asked, advice):
    with pytest.raises(UserError, match=advice) as error:
        export_model(classifier, tmp_path / "out", **asked)
    assert error.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("asked", "advice"),
    [({"quantize": "dynamic"}, "--quantize static --data DIR"), ({"optimize": "ort"}, "Leave it out")],
)
def test_what_is_useless_for_a_resnet_is_refused_before_it_is_loaded(small_resnet, tmp_path, no_work, asked, advice):
    with pytest.raises(UserError, match=advice):
        export_model(small_resnet, tmp_path / "out", **asked)


@pytest.mark.parametrize(("format", "library"), [("onnx", "onnxscript"), ("onnx", "onnxruntime")])
def test_a_missing_library_is_named_with_its_pip_line(classifier, tmp_path, no_work, monkeypatch, format, library):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == library else found(name))
    with pytest.raises(UserError, match=f"pip install {library}"):
        export_model(classifier, tmp_path / "out", format=format)


@pytest.mark.parametrize("format", ["onnx", "safetensors"])
def test_a_decoder_is_refused_before_it_is_traced(tmp_path, format):
    import transformers

    config = transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1, n_positions=16)
    transformers.GPT2Model(config).save_pretrained(tmp_path / "gpt")
    with pytest.raises(UserError, match="only encoders"):
        export_model(tmp_path / "gpt", tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()
