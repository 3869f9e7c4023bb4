"""A weight encoded for the sparse operator: nothing is lost, and the body of standard operators answers as PyTorch."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from sparseticket.errors import UserError
from sparseticket.export import half, quantize, sparse_op, sparse_storage

ACTIVATE = {"": lambda y: y, "Gelu": torch.nn.functional.gelu, "Relu": torch.relu}


def sparse_weight(inputs: int, outputs: int, block: int, full: str = "", density: float = 0.3) -> np.ndarray:
    """[inputs, outputs]; one input, or one block of outputs, lives as a whole where ``full`` says so."""
    draw = np.random.default_rng(0)
    live = draw.random((inputs, -(-outputs // block))) < density
    live[3, :] |= full == "input"
    live[:, 2] |= full == "output"
    weight = draw.standard_normal((inputs, outputs)).astype(np.float32)
    return np.where(live.repeat(block, 1)[:, :outputs], weight, np.float32(0))


def model_of(encoded: sparse_op.Encoded, bias: np.ndarray, activation: str = "", opset: int = 20) -> onnx.ModelProto:
    arrays = {"values": encoded.values, "index": encoded.index, "scale": encoded.scale, "bias": bias}
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items() if array is not None]
    inputs, outputs = encoded.shape
    graph = helper.make_graph(
        [sparse_op.make_node(encoded, ["x", *(one.name for one in weights)], "y", activation)],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "rows", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "rows", outputs])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    sparse_op.add_functions(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


@pytest.mark.parametrize("block", [1, 2, 4, 8])
@pytest.mark.parametrize(("full", "axis"), [("", None), ("input", 0), ("output", 1)])
def test_encoding_keeps_every_weight_and_takes_the_axis_with_fewer_entries(block, full, axis):
    weight = sparse_weight(40, 40, block, full)
    encoded = sparse_op.encode(weight, block)
    assert axis is None or encoded.axis == axis
    np.testing.assert_array_equal(encoded.dense(), weight)
    along = encoded.index.astype(int)
    assert (np.diff(along, axis=encoded.axis) > 0).all()  # so no entry is written twice
    assert encoded.values.size < weight.size


@pytest.mark.parametrize("activation", sparse_op.ACTIVATIONS)
@pytest.mark.parametrize("full", ["input", "output"])
@pytest.mark.parametrize("block", [1, 2, 4, 8])
def test_the_body_answers_as_pytorch_does(block, full, activation):
    weight = sparse_weight(33, 24, block, full)
    draw = np.random.default_rng(1)
    bias, x = draw.standard_normal(24).astype(np.float32), draw.standard_normal((2, 5, 33)).astype(np.float32)
    expected = ACTIVATE[activation](torch.from_numpy(x @ weight + bias)).numpy()
    for opset in (17, 20, 25):
        got = run(model_of(sparse_op.encode(weight, block), bias, activation, opset), x)
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("full", ["input", "output"])
@pytest.mark.parametrize("activation", sparse_op.ACTIVATIONS)
def test_int8_values_are_within_half_a_step_and_the_body_multiplies_integers(full, activation):
    weight = sparse_weight(33, 24, 4, full)
    encoded = sparse_op.encode(weight, 4, int8=True)
    rounded = encoded.dense() * encoded.scale
    assert (np.abs(rounded - weight) <= encoded.scale / 2 + 1e-7).all()
    assert (rounded[weight == 0] == 0).all()
    x, bias = np.random.default_rng(1).standard_normal((2, 5, 33)).astype(np.float32), np.ones(24, np.float32)
    scale = (max(x.max(), 0) - min(x.min(), 0)) / 255
    zero = np.clip(np.rint(-min(x.min(), 0) / scale), 0, 255)
    x_int8 = np.clip(np.rint(x / scale) + zero, 0, 255) - zero
    expected = ACTIVATE[activation](torch.from_numpy((x_int8 * scale) @ rounded + bias)).numpy()
    np.testing.assert_allclose(run(model_of(encoded, bias, activation), x), expected, atol=1e-4)


def test_a_weight_with_no_living_entry_still_answers_its_bias():
    bias = np.arange(8, dtype=np.float32)
    got = run(model_of(sparse_op.encode(np.zeros((6, 8), np.float32), 4), bias), np.ones((1, 2, 6), np.float32))
    np.testing.assert_array_equal(got, np.broadcast_to(bias, (1, 2, 8)))


def test_what_would_undo_a_finished_file_refuses_it(tmp_path):
    model = model_of(sparse_op.encode(sparse_weight(33, 24, 4), 4), np.zeros(24, np.float32))
    file = tmp_path / "sparse.onnx"
    onnx.save(model, file)
    for undo in (
        lambda: quantize.dynamic(file, tmp_path / "int8.onnx", large=False),
        lambda: quantize.static(file, tmp_path / "int8.onnx", None, "x", large=False),
        lambda: half.to_half(model),
        lambda: sparse_storage.store_sparse(model),
    ):
        with pytest.raises(UserError, match="their rewrite is the last step"):
            undo()


def test_others_tools_do_what_the_documentation_says(tmp_path):
    """They pass over the operator, drop its body, or inline it; if one of them changes, docs/sparse-op.md must."""
    from onnx import inliner, version_converter
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    weight = sparse_weight(33, 24, 4)
    model, x = model_of(sparse_op.encode(weight, 4), np.zeros(24, np.float32)), np.ones((1, 2, 33), np.float32)
    file = tmp_path / "sparse.onnx"
    onnx.save(model, file)
    quantize_dynamic(file, tmp_path / "quantized.onnx")
    assert [node.op_type for node in onnx.load(tmp_path / "quantized.onnx").graph.node] == ["BlockSparseLinear"]
    converted = version_converter.convert_version(model, 21)
    assert sparse_op.sparse_nodes(converted) and not converted.functions
    quant_pre_process(file, tmp_path / "prepared.onnx")
    for other in (onnx.load(tmp_path / "prepared.onnx"), inliner.inline_local_functions(model)):
        assert not sparse_op.sparse_nodes(other)
        np.testing.assert_allclose(run(other, x), x @ weight, atol=1e-5)
