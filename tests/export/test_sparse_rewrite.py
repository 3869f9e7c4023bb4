"""``--layout sparse-op``: which layers are rewritten, and that the file answers with the library and without it."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from sparseticket.errors import RunFailure, UserError
from sparseticket.export import break_even, graph, layers, native, sparse_op, sparse_rewrite
from sparseticket.export.break_even import Figures
from sparseticket.export.exporter import export_model
from sparseticket.export.linears import find_linears
from sparseticket.export.report import show

ENCODER = "bert.encoder.layer.0."
FIGURES = {"4x1": Figures(0.6, {0.6: 1.0, 0.1: 6.0})}


def figures(break_even, *speedups):
    return {"break_even": break_even, "speedup": dict(zip(("0.5", "0.3", "0.2", "0.1"), speedups, strict=True))}


FP32 = {
    "1x1": figures(0.35, 0.72, 1.2, 1.8, 3.4),
    "2x1": figures(0.45, 0.9, 1.6, 2.3, 4.2),
    "4x1": figures(0.6, 1.6, 3.0, 4.3, 6.8),
    "8x1": figures(0.6, 1.7, 3.2, 4.6, 7.2),
}
TABLE = {
    "measured": {"what": "nothing: made up, so that no measurement changes what these tests expect"},
    "fp32": {"avx2": FP32, "avx512": FP32},
    "convolution": {"avx2": FP32, "avx512": FP32},
    "int8": {"vnni": {"4x1": figures(0.35, 0.8, 1.1, 1.3, 1.7), "4x4": figures(0.45, 0.9, 1.3, 1.6, 2.2)}},
    "dense_int8": {"vnni": 3.3},
}


@pytest.fixture(autouse=True)
def made_up_table(monkeypatch):
    monkeypatch.setattr(break_even, "table", lambda: TABLE)


@pytest.fixture(scope="module")
def sparse_bert(tmp_path_factory, berts):
    """Query unstructured, value and pooler in 4x1 blocks, 66 neurons that no block divides, the rest dense."""
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=150,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=66,
        max_position_embeddings=40,
        initializer_range=0.3,
    )
    model = transformers.BertForSequenceClassification(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_()
    layer = model.bert.encoder.layer[0]
    prune(layer.attention.self.query, 1, 0.2)
    for one in (layer.attention.self.value, layer.intermediate.dense, model.bert.pooler.dense):
        prune(one, 4, 0.2)
    folder = tmp_path_factory.mktemp("models") / "sparse"
    model.save_pretrained(folder)
    for file in berts["classifier"].glob("*token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@torch.no_grad()
def prune(layer: nn.Linear, block: int, density: float) -> None:
    live = torch.rand(-(-layer.out_features // block), layer.in_features) < density
    layer.weight.masked_fill_(~live.repeat_interleave(block, 0)[: layer.out_features], 0.0)


def operators(folder):
    return [node.op_type for node in onnx.load(folder / "model.onnx").graph.node]


def runs(report):
    return {layer["layer"].removeprefix(ENCODER): layer["runs"] for layer in report["sparse_op"]["layers"]}


@pytest.mark.parametrize("opset", [17, 20])  # below 20, GELU is a chain of five operators
def test_layers_are_rewritten_where_they_win_with_their_bias_and_activation(sparse_bert, tmp_path, opset):
    report = export_model(sparse_bert, tmp_path / "out", layout="sparse-op", target="avx512", opset=opset)
    assert runs(report) == {
        "attention.self.query": "1x1",
        "attention.self.key": "dense",
        "attention.self.value": "4x1",
        "attention.output.dense": "dense",
        "intermediate.dense": "4x1",
        "output.dense": "dense",
        "bert.pooler.dense": "4x1",
        "classifier": "dense",
    }
    found = operators(tmp_path / "out")
    assert (found.count("SparseLinear"), found.count("BlockSparseLinear")) == (1, 2)
    assert found.count("BlockSparseLinearGelu") == 1 and not {"Gelu", "Erf"} & set(found)
    assert report["sparse_op"]["target"] == "avx512" and report["sparse_op"]["figures"]
    weights = {name: float((weight == 0).float().mean()) for name, weight in torch_weights(sparse_bert).items()}
    assert {layer["name"]: layer["sparsity"] for layer in report["layers"]} == pytest.approx(weights)
    from_file = sorted(layer.zeros for layer in layers.file_layers(tmp_path / "out" / "model.onnx"))
    assert from_file == sorted(layer["zeros"] for layer in report["layers"])
    assert json.loads((tmp_path / "out" / "export_report.json").read_text()) == report


def torch_weights(folder):
    from sparseticket.export.loaded_model import load

    return layers.torch_layers(load(folder).module)


def test_with_int8_the_other_layers_are_quantized_and_blocks_hold_int8_values(sparse_bert, tmp_path):
    asked = {"layout": "sparse-op", "quantize": "dynamic", "target": "vnni", "agreement": 0.8}
    report = export_model(sparse_bert, tmp_path / "out", **asked)
    found = operators(tmp_path / "out")
    assert found.count("BlockSparseLinearInt8") == 2 and found.count("BlockSparseLinearInt8Gelu") == 1
    assert found.count("MatMulInteger") == 5 and not {"Gemm", "SparseLinear"} & set(found)
    assert runs(report)["attention.self.query"] == "dense"  # of its 4x1 blocks, 60 % live
    tensors = {one.name: one.data_type for one in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer}
    values = [kind for name, kind in tensors.items() if name.endswith("_sparse_values")]
    assert values == [TensorProto.INT8] * 3


def test_the_screen_says_which_layers_run_sparse_and_how_to_run_them_fast(sparse_bert, tmp_path):
    from rich.console import Console

    console = Console(width=300, record=True, quiet=False, file=open(tmp_path / "screen", "w"))  # noqa: SIM115
    show(export_model(sparse_bert, tmp_path / "out", layout="sparse-op", target="avx2"), tmp_path / "out", console)
    screen = console.export_text()
    assert "4 of 8 layers run sparse on avx2" in screen
    assert "intermediate.dense: 4x1 (" in screen and "break-even" in screen
    assert "options.register_custom_ops_library(sparseticket.export.runtime.library_path())" in screen


@pytest.mark.skipif(native.find_library() is None, reason=f"the library is {native.MISSING}")
def test_a_file_is_verified_with_the_library_and_without_it(sparse_bert, tmp_path, monkeypatch):
    report = export_model(sparse_bert, tmp_path / "out", layout="sparse-op", target="avx512")
    assert report["library"] == {
        "verified_with": native.isa(),
        "max_abs_error_without": pytest.approx(0, abs=1e-4),
    }
    make_function = sparse_op.make_function

    def wrong_body(name, opset):
        function = make_function(name, opset)
        if name == "BlockSparseLinear":
            function.node[-1].op_type = "Sub"  # the bias
        return function

    monkeypatch.setattr(sparse_op, "make_function", wrong_body)
    with pytest.raises(RunFailure, match="answers differently from PyTorch"):
        export_model(sparse_bert, tmp_path / "wrong", layout="sparse-op", target="avx512")
    assert not (tmp_path / "wrong").exists()


def test_without_the_library_the_report_says_that_it_was_not_verified_with_it(sparse_bert, tmp_path, monkeypatch):
    monkeypatch.setattr(native, "find_library", lambda: None)
    report = export_model(sparse_bert, tmp_path / "out", layout="sparse-op", target="avx512")
    assert report["library"]["verified_with"] is None and "compiler" in report["library"]["missing"]


def test_a_zero_that_the_encoding_revives_is_a_failure_that_names_the_layer(sparse_bert, tmp_path, monkeypatch):
    encode = sparse_op.encode

    def revived(weight, block=1, *, int8=False):
        changed = weight.copy()
        if block == 1:
            changed[np.unravel_index(np.flatnonzero(changed == 0)[0], changed.shape)] = 1e-6
        return encode(changed, block, int8=int8)

    monkeypatch.setattr(sparse_op, "encode", revived)
    with pytest.raises(RunFailure, match=r"attention.self.query has .* 1 of which were 0 and are not"):
        export_model(sparse_bert, tmp_path / "out", layout="sparse-op", target="avx512")


def test_a_model_in_which_no_layer_wins_is_refused_before_tracing(classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "trace", lambda *_: pytest.fail("it was traced"))
    with pytest.raises(UserError, match=r"the nearest is .*break-even .* Leave --layout dense"):
        export_model(classifier, tmp_path / "out", layout="sparse-op", quantize="dynamic", target="vnni")
    with pytest.raises(UserError, match="INT8 with VNNI"):
        export_model(classifier, tmp_path / "out", layout="sparse-op", quantize="dynamic", target="avx2")


def small_graph(*nodes, weights, outputs=("y",)):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", "outputs"]) for name in outputs]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 24])],
        values,
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def weight_4x1(outputs=20):
    draw = np.random.default_rng(0)
    live = (draw.random((24, outputs // 4 + 1)) < 0.2).repeat(4, 1)[:, :outputs]
    return np.where(live, draw.standard_normal((24, outputs)), 0).astype(np.float32)


def test_two_layers_that_share_a_weight_share_its_encoding_and_each_keeps_its_bias():
    biases = {"b": np.ones(18, np.float32), "c": np.full(18, 2, np.float32)}
    nodes = []
    for bias in biases:
        nodes += [
            helper.make_node("MatMul", ["x", "w"], [f"p{bias}"]),
            helper.make_node("Add", [bias, f"p{bias}"], [f"y{bias}"]),
        ]
    model = small_graph(*nodes, weights={"w": weight_4x1(18), **biases}, outputs=("yb", "yc"))
    x = np.random.default_rng(1).standard_normal((3, 24)).astype(np.float32)
    before = answers(model, x)
    sparse_rewrite.rewrite(model, FIGURES, int8=False)
    sparse_op.add_functions(model)
    onnx.checker.check_model(model, full_check=True)
    assert [tensor.name for tensor in model.graph.initializer].count("w_sparse_values") == 1
    assert "w" not in {tensor.name for tensor in model.graph.initializer}
    for one, other in zip(before, answers(model, x), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def answers(model, x):
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})


def test_what_something_else_reads_too_is_not_folded_away():
    product, bias = helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["p", "b"], ["h"])
    relu, tanh = helper.make_node("Relu", ["h"], ["y"]), helper.make_node("Tanh", ["h"], ["z"])
    weights = {"w": weight_4x1(), "b": np.ones(20, np.float32)}
    (alone,) = find_linears(small_graph(product, bias, relu, weights=weights))
    (read_twice,) = find_linears(small_graph(product, bias, relu, tanh, weights=weights, outputs=("y", "z")))
    (is_output,) = find_linears(small_graph(product, bias, relu, weights=weights, outputs=("y", "h")))
    assert (alone.bias, alone.activation, alone.output) == ("b", "Relu", "y")
    assert (read_twice.bias, read_twice.activation, read_twice.output) == ("b", "", "h")
    assert (is_output.activation, is_output.output) == ("", "h")


def test_gelu_by_tanh_and_products_that_are_no_linear_layer_are_left_alone():
    weights = {"w": weight_4x1(), "b": np.ones((1, 20), np.float32), "w3": np.zeros((1, 24, 20), np.float32)}
    product = helper.make_node("MatMul", ["x", "w"], ["p"])
    (tanh,) = find_linears(
        small_graph(product, helper.make_node("Gelu", ["p"], ["y"], approximate="tanh"), weights=weights)
    )
    assert tanh.activation == ""
    (other_bias,) = find_linears(small_graph(product, helper.make_node("Add", ["p", "b"], ["y"]), weights=weights))
    assert other_bias.bias is None and other_bias.output == "p"
    for node in (
        helper.make_node("MatMul", ["x", "w3"], ["y"]),
        helper.make_node("Gemm", ["x", "w"], ["y"], alpha=2.0),
        helper.make_node("Gemm", ["x", "w"], ["y"], transA=1),
        helper.make_node("Gemm", ["x", "w", "b"], ["y"]),
    ):
        assert list(find_linears(small_graph(node, weights=weights))) == []
