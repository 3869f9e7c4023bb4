"""Every head in every variant: verified while it is written, zeros recounted where they are stored, no path inside."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from sparseticket.errors import RunFailure, UserError
from sparseticket.export import graph, half, layers, quantize, to_onnx
from sparseticket.export.exporter import export_model

HEADS = ("classifier", "regression", "question-answering", "masked-lm", "encoder")
VARIANTS = {
    "plain": {},
    "int8": {"quantize": "dynamic", "agreement": 0.8},  # random weights: their logits are near ties
    "fused": {"optimize": "ort"},
    "fp16": {"dtype": "fp16"},
    "sparse": {"layout": "sparse-storage"},
    "all that goes together": {"dtype": "fp16", "optimize": "ort", "layout": "sparse-storage"},
}
EVERY_HEAD = ("plain", "int8", "all that goes together")  # a variant by itself adds nothing that depends on the head
CASES = [(head, name) for head in HEADS for name in VARIANTS if head == "classifier" or name in EVERY_HEAD]
OUTPUTS = {"question-answering": ["start_logits", "end_logits"], "encoder": ["last_hidden_state"]}


@pytest.mark.parametrize(("head", "variant"), CASES)
def test_heads_and_variants(berts, tmp_path, head, variant):
    report = export_model(berts[head], tmp_path / "out", **VARIANTS[variant])
    assert report["outputs"] == OUTPUTS.get(head, ["logits"])
    quantized = variant == "int8"
    sparsity = {layer["name"].removeprefix("bert."): layer["sparsity"] for layer in report["layers"]}
    for layer, share in (("attention.self.query", 0.5), ("attention.self.key", 0.0), ("intermediate.dense", 0.9)):
        found = sparsity[f"encoder.layer.0.{layer}"]
        assert share - 1e-3 <= found < share + 0.1 if quantized else found == pytest.approx(share, abs=1e-3)
    for item in (tmp_path / "out").iterdir():
        content = item.read_bytes()
        for path in (str(berts[head].parent), str(tmp_path), str(Path.home()), os.getcwd(), "site-packages"):
            assert path.encode() not in content, (item.name, path)


def initializers(file):
    return {tensor.name: tensor for tensor in onnx.load(file).graph.initializer}


def test_int8_holds_a_quarter_of_the_bytes_tied_decoder_and_embeddings_included(berts, tmp_path):
    plain = export_model(berts["masked-lm"], tmp_path / "plain")
    report = export_model(berts["masked-lm"], tmp_path / "int8", quantize="dynamic", agreement=0.8)
    large = [t for t in initializers(tmp_path / "int8" / "model.onnx").values() if np.prod(t.dims) >= 1024]
    assert {tensor.data_type for tensor in large} <= {TensorProto.INT8, TensorProto.UINT8}
    operators = [node.op_type for node in onnx.load(tmp_path / "int8" / "model.onnx").graph.node]
    assert operators.count("MatMulInteger") == len(report["layers"]) == len(plain["layers"])


def test_int8_is_judged_by_its_decisions_and_a_failure_names_the_output(classifier, tmp_path, monkeypatch):
    dynamic = quantize.dynamic

    def turned(source, target, *, large):
        dynamic(source, target, large=large)
        model = onnx.load(target)
        tensor = next(t for t in model.graph.initializer if t.name.startswith("classifier.weight") and "quan" in t.name)
        tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
        onnx.save(model, target)

    monkeypatch.setattr(quantize, "dynamic", turned)
    with pytest.raises(RunFailure, match=r"output 'logits', .* of the decisions are equal on random inputs"):
        export_model(classifier, tmp_path / "out", quantize="dynamic")
    assert list(tmp_path.iterdir()) == []
    assert export_model(classifier, tmp_path / "out", quantize="dynamic", agreement=0.0)["agreement"]["logits"] < 0.9


def test_a_zero_that_int8_revives_is_a_failure_that_names_the_layer(classifier, tmp_path, monkeypatch):
    dynamic = quantize.dynamic

    def revived(source, target, *, large):
        dynamic(source, target, large=large)
        model = onnx.load(target)
        tensor = next(t for t in model.graph.initializer if t.name.endswith("_quantized") and list(t.dims) == [32, 64])
        array = numpy_helper.to_array(tensor).copy()
        array[np.unravel_index(np.flatnonzero(array == 0)[0], array.shape)] = 1
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        onnx.save(model, target)

    monkeypatch.setattr(quantize, "dynamic", revived)
    with pytest.raises(RunFailure, match=r"encoder.layer.0.intermediate.dense has .* 1 of which were 0 and are not"):
        export_model(classifier, tmp_path / "out", quantize="dynamic")


def test_fusion_packs_query_key_and_value_and_says_what_it_fused(classifier, tmp_path):
    report = export_model(classifier, tmp_path / "out", optimize="ort")
    assert report["fused"]["attention"] == 2
    model = onnx.load(tmp_path / "out" / "model.onnx")
    assert [node.op_type for node in model.graph.node].count("Attention") == 2
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 20, "com.microsoft": 1}
    assert [32, 96] in [list(tensor.dims) for tensor in model.graph.initializer]


def test_fusion_that_finds_no_attention_is_an_error_and_not_silence(tmp_path, monkeypatch, classifier):
    from onnxscript.rewriter import ort_fusions

    monkeypatch.setattr(ort_fusions, "optimize_for_ort", lambda model: (model, {"attention": 0, "gelu": 2}))
    with pytest.raises(UserError, match="no attention in this model"):
        export_model(classifier, tmp_path / "out", optimize="ort")


def test_fp16_halves_the_file_and_keeps_fp32_inputs_and_outputs(small_resnet, tmp_path):
    plain = export_model(small_resnet, tmp_path / "plain")
    report = export_model(small_resnet, tmp_path / "half", dtype="fp16")
    assert report["tolerance"] == {"atol": 2e-2, "rtol": 2e-2}
    sizes = [next(f["bytes"] for f in one["files"] if f["name"] == "model.onnx") for one in (report, plain)]
    assert sizes[0] < 0.55 * sizes[1]
    assert report["layers"] == plain["layers"]
    session = onnxruntime.InferenceSession(tmp_path / "half" / "model.onnx", providers=["CPUExecutionProvider"])
    assert {value.type for value in (*session.get_inputs(), *session.get_outputs())} == {"tensor(float)"}


def test_fp16_that_answers_differently_is_a_failure(small_resnet, tmp_path, monkeypatch):
    to_half = half.to_half

    def wrong(model):
        converted = to_half(model)
        tensor = next(one for one in converted.graph.initializer if one.name == "linear.weight")
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float16(1.5), tensor.name))
        return converted

    monkeypatch.setattr(half, "to_half", wrong)
    with pytest.raises(RunFailure, match=r"output 'logits' .* differs by up to"):
        export_model(small_resnet, tmp_path / "out", dtype="fp16")
    assert list(tmp_path.iterdir()) == []


def test_sparse_storage_is_smaller_and_stores_only_what_pays(classifier, tmp_path):
    plain = export_model(classifier, tmp_path / "plain")
    report = export_model(classifier, tmp_path / "sparse", layout="sparse-storage")
    assert len(report["stored_sparse"]) == 1  # the layer with nine tenths zeros; not the one with a half
    sizes = [next(f["bytes"] for f in one["files"] if f["name"] == "model.onnx") for one in (report, plain)]
    assert sizes[0] < sizes[1] - 2048 * 2
    assert report["layers"] == plain["layers"]
    assert {layer.zeros for layer in layers.file_layers(tmp_path / "sparse" / "model.onnx")} >= {512, 2048 - 205}


def test_sparse_storage_that_makes_nothing_smaller_is_refused_before_tracing(small_resnet, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "trace", lambda *_: pytest.fail("it was traced"))
    with pytest.raises(UserError, match=r"fp16: 80 %.* Leave --layout dense"):  # 70 % of its weights are 0
        export_model(small_resnet, tmp_path / "out", layout="sparse-storage", dtype="fp16")
    assert list(tmp_path.iterdir()) == []


def test_an_invalid_file_is_not_kept(classifier, tmp_path, monkeypatch):
    save = to_onnx._save

    def without_a_node(model, file, *, external):
        del model.graph.node[0]
        save(model, file, external=external)

    monkeypatch.setattr(to_onnx, "_save", without_a_node)
    with pytest.raises(RunFailure, match="not valid ONNX"):
        export_model(classifier, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
