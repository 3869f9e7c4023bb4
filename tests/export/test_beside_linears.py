"""Convolutions on the sparse operator, layer norms of sums, attentions: as PyTorch, with the library and without it."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from sparseticket.export import native, runtime, sparse_op
from sparseticket.export.add_layer_norm import ADD_LAYER_NORM, fuse_norms
from sparseticket.export.attention import ATTENTION
from sparseticket.export.break_even import Figures
from sparseticket.export.linears import find_convolutions
from sparseticket.export.sparse_rewrite import rewrite

ALWAYS = {"4x1": Figures(1.0, {1.0: 1.0})}
library = pytest.mark.skipif(native.find_library() is None, reason=f"the library is {native.MISSING}")


def run(model, file, feeds, *, library):
    onnx.save(model, file)
    asked = {"providers": ["CPUExecutionProvider"]}
    session = runtime.session(file, **asked) if library else onnxruntime.InferenceSession(file, **asked)
    return session.run(None, feeds)[0]


def convolution(channels, outputs, kernel, block, **moves):
    """A model with one convolution and a Relu, and its weight and bias; 30 % of the blocks of outputs live."""
    draw = np.random.default_rng(0)
    live = (draw.random((-(-outputs // block), channels, *kernel)) < 0.3).repeat(block, 0)[:outputs]
    weight = np.where(live, draw.standard_normal(live.shape), 0).astype(np.float32)
    bias = draw.standard_normal(outputs).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["h"], kernel_shape=kernel, **moves),
            helper.make_node("Relu", ["h"], ["y"]),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", channels, "height", "width"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", outputs, "down", "right"])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model, torch.from_numpy(weight), torch.from_numpy(bias)


@pytest.mark.parametrize("with_library", [pytest.param(True, marks=library), False])
@pytest.mark.parametrize("pattern", ["1x1", "2x1", "4x1", "8x1"])
@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "strides", "pads", "image"),
    [
        (16, 32, (1, 1), (1, 1), (0, 0), (7, 7)),
        (16, 24, (1, 1), (2, 2), (0, 0), (56, 56)),
        (5, 20, (3, 3), (1, 1), (1, 1), (40, 71)),
        (8, 136, (3, 3), (2, 2), (1, 1), (14, 13)),
        (3, 16, (7, 7), (2, 2), (3, 3), (33, 32)),
        (4, 12, (3, 5), (2, 3), (1, 2), (17, 30)),
        (4, 10, (3, 3), (1, 1), (1, 1), (9, 9)),  # outputs that blocks of 4 and 8 do not divide
    ],
)
def test_a_sparse_convolution_answers_as_pytorch(
    tmp_path, with_library, pattern, channels, outputs, kernel, strides, pads, image
):
    block = int(pattern[0])
    moves = {"strides": strides, "pads": (*pads, *pads)}
    model, weight, bias = convolution(channels, outputs, kernel, block, **moves)
    (decision,) = rewrite(model, {}, int8=False, of_convolutions={pattern: Figures(1.0, {1.0: 1.0})})
    sparse_op.add_functions(model)
    assert decision.runs == pattern and "Conv" not in {node.op_type for node in model.graph.node}
    x = torch.randn(2, channels, *image)
    expected = torch.relu(torch.nn.functional.conv2d(x, weight, bias, strides, pads))
    found = run(model, tmp_path / "net.onnx", {"x": x.numpy()}, library=with_library)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)


def test_groups_dilation_automatic_padding_and_huge_strides_stay_dense():
    plain = {"strides": (1, 1)}
    for moves in ({"group": 2}, {"dilations": (2, 2)}, {"auto_pad": "SAME_UPPER"}, {"strides": (256, 1)}):
        model, *_ = convolution(4, 8, (3, 3), 1, **(plain | moves))
        assert list(find_convolutions(model)) == []


@library
@pytest.mark.parametrize("image", [(2, 2), (40, 2)])
def test_an_image_smaller_than_the_kernel_is_a_clear_error(tmp_path, image):
    model, *_ = convolution(4, 8, (3, 3), 4, strides=(1, 1), pads=(0, 0, 0, 0))
    rewrite(model, {}, int8=False, of_convolutions=ALWAYS)
    sparse_op.add_functions(model)
    with pytest.raises(Exception, match="smaller than the kernel"):
        run(model, tmp_path / "net.onnx", {"x": np.zeros((1, 4, *image), np.float32)}, library=True)


def sum_and_norm(second=("batch", "rows", 24), **attributes):
    shapes = {"a": ("batch", "rows", 24), "b": second, "y": ("batch", "rows", 24)}
    infos = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    draw = np.random.default_rng(0)
    weights = {name: draw.standard_normal(24).astype(np.float32) for name in ("scale", "bias")}
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["a", "b"], ["s"]),
            helper.make_node("LayerNormalization", ["s", "scale", "bias"], ["y"], epsilon=1e-6, **attributes),
        ],
        "net",
        [infos["a"], infos["b"]],
        [infos["y"]],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    rewrite(model, {}, int8=False)
    sparse_op.add_functions(model)
    onnx.checker.check_model(model, full_check=True)
    return model, weights


@pytest.mark.parametrize("with_library", [pytest.param(True, marks=library), False])
def test_a_layer_norm_of_a_sum_is_one_operator_and_answers_as_pytorch(tmp_path, with_library):
    model, weights = sum_and_norm()
    assert [node.op_type for node in model.graph.node] == [ADD_LAYER_NORM]
    a, b = torch.randn(3, 5, 24) * 4 + 1, torch.randn(3, 5, 24)
    scale, bias = (torch.from_numpy(weights[name]) for name in ("scale", "bias"))
    expected = torch.nn.functional.layer_norm(a + b, (24,), scale, bias, 1e-6)
    feeds = {"a": a.numpy(), "b": b.numpy()}
    found = run(model, tmp_path / "net.onnx", feeds, library=with_library)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5)


def test_a_sum_that_broadcasts_and_a_norm_over_more_dimensions_are_left_alone():
    broadcasting, _ = sum_and_norm((1, "rows", 24))
    assert [node.op_type for node in broadcasting.graph.node] == ["Add", "LayerNormalization"]
    wide, _ = sum_and_norm()
    norm = helper.make_node("LayerNormalization", ["s", "scale", "bias"], ["y"], axis=1)
    del wide.graph.node[:]
    wide.graph.node.extend([helper.make_node("Add", ["a", "b"], ["s"]), norm])
    assert fuse_norms(wide, sparse_op.DOMAIN) == 0


def attention(heads, size, *, second=0.125, transposed=(0, 2, 3, 1)):
    """transformers' eager attention as torch writes it; its shapes are named batch and rows."""
    whole, split = ["batch", "rows", heads * size], ["batch", "rows", heads, size]
    square = ["batch", heads, "rows", "rows"]

    def info(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    node = helper.make_node
    nodes = [node("Reshape", [name, "split"], [f"{name}4"]) for name in "qkv"]
    nodes += [
        node("Transpose", ["q4"], ["qh"], perm=(0, 2, 1, 3)),
        node("Transpose", ["k4"], ["kh"], perm=transposed),
        node("Transpose", ["v4"], ["vh"], perm=(0, 2, 1, 3)),
        node("MatMul", ["qh", "kh"], ["scores"]),
        node("Mul", ["scores", "scale"], ["scaled"]),
        node("Add", ["scaled", "mask"], ["masked"]),
        node("Softmax", ["masked"], ["weights"], axis=-1),
        node("MatMul", ["weights", "vh"], ["mixed"]),
        node("Transpose", ["mixed"], ["turned"], perm=(0, 2, 1, 3)),
        node("Reshape", ["turned", "merged"], ["y"]),
    ]
    constants = {"split": np.array([0, 0, heads, size]), "merged": np.array([0, 0, heads * size])}
    constants["scale"] = np.array(second, np.float32)
    graph = helper.make_graph(
        nodes,
        "net",
        [*(info(name, whole) for name in "qkv"), info("mask", ["batch", 1, "rows", "rows"])],
        [info("y", whole)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
        value_info=[*(info(f"{name}4", split) for name in "qkv"), info("scores", square), info("y", whole)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    rewrite(model, {}, int8=False)
    sparse_op.add_functions(model)
    onnx.checker.check_model(model)
    return model


@pytest.mark.parametrize("with_library", [pytest.param(True, marks=library), False])
@pytest.mark.parametrize(
    ("heads", "size", "rows", "texts"), [(12, 64, 128, 1), (2, 16, 1, 2), (3, 48, 70, 3), (4, 32, 17, 2)]
)
def test_an_attention_is_one_operator_and_answers_as_pytorch(tmp_path, with_library, heads, size, rows, texts):
    model = attention(heads, size)
    assert [node.op_type for node in model.graph.node] == [ATTENTION] and not model.graph.initializer
    q, k, v = torch.randn(3, texts, rows, heads * size)
    hidden = torch.rand(texts, 1, rows, rows) < 0.3
    hidden[0, 0, 0] = True  # a row that sees nothing is the mean of all, as it is in PyTorch
    mask = torch.where(hidden, torch.finfo(torch.float32).min, 0.0)
    split = [one.view(texts, rows, heads, size).transpose(1, 2).double() for one in (q, k, v)]
    weights = torch.softmax((split[0] @ split[1].mT).float() * 0.125 + mask, -1).double()
    expected = (weights @ split[2]).transpose(1, 2).reshape(texts, rows, -1)
    feeds = {"q": q.numpy(), "k": k.numpy(), "v": v.numpy(), "mask": mask.numpy()}
    found = run(model, tmp_path / "net.onnx", feeds, library=with_library)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_heads_of_another_size_and_other_transpositions_are_left_alone():
    for model in (attention(3, 20), attention(2, 16, transposed=(0, 2, 1, 3))):
        assert "Softmax" in {node.op_type for node in model.graph.node}


@library
@pytest.mark.parametrize("mask", [(1, 1, 5, 5), (2, 1, 5, 6), (2, 3, 5, 5)])
def test_a_mask_of_another_shape_than_the_rows_is_a_clear_error(tmp_path, mask):
    feeds = {name: np.zeros((2, 5, 48), np.float32) for name in "qkv"} | {"mask": np.zeros(mask, np.float32)}
    model = attention(3, 16)
    for one in model.graph.input:
        one.type.tensor_type.ClearField("shape")
    with pytest.raises(Exception, match=r"mask must be \[n, 1, rows, keys\]"):
        run(model, tmp_path / "net.onnx", feeds, library=True)


@library
@pytest.mark.parametrize("poison", ["q", "k", "v", "row"])
def test_what_is_not_finite_in_an_attention_is_so_where_the_body_has_it(tmp_path, poison):
    model = attention(2, 16)
    draw = np.random.default_rng(0)
    feeds = {name: draw.standard_normal((1, 5, 32)).astype(np.float32) for name in "qkv"}
    feeds["mask"] = np.zeros((1, 1, 5, 5), np.float32)
    if poison == "row":
        feeds["mask"][0, 0, 2] = -np.inf
    else:
        feeds[poison][0, 1, 3] = np.nan
    found = run(model, tmp_path / "net.onnx", feeds, library=True)
    expected = run(model, tmp_path / "net.onnx", feeds, library=False)
    assert np.isnan(expected).any()
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@library
def test_what_a_mask_of_minus_infinity_hides_has_no_weight_at_all(tmp_path):
    feeds = {name: np.ones((1, 3, 32), np.float32) for name in "qkv"}
    feeds["v"][0, 2] = 1e38
    feeds["mask"] = np.zeros((1, 1, 3, 3), np.float32)
    feeds["mask"][..., 2] = -np.inf
    np.testing.assert_allclose(run(attention(2, 16), tmp_path / "net.onnx", feeds, library=True), 1, rtol=1e-6)
