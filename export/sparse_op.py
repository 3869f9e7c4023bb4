"""The sparse operators as an ONNX file holds them: live weights by lines, and a body in standard operators.

``y = act(x @ W + bias)`` with x [..., K] and W [K, N]. A line of W is an input (axis 1) or an output (axis 0), and
every line holds as many entries as its longest: ScatterElements rebuilds W from that in one step, the only rebuild that
ONNX Runtime folds cheaply when it loads (a Reshape or Transpose of the dense weight costs a copy of it).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import AttributeProto, FunctionProto, NodeProto, TensorProto, helper, numpy_helper

from sparseticket.errors import UserError
from sparseticket.export import add_layer_norm, attention
from sparseticket.export.graph_index import attributes, opset_of
from sparseticket.export.linears import Convolution

DOMAIN, VERSION = "sparseticket", 1
LARGEST = 65_536  # inputs or outputs: an index is a uint16
ACTIVATIONS = ("", "Gelu", "Relu")
INT8_MAX = 127
BESIDE = {  # operators without a sparse weight, which would be most of the time that is left
    add_layer_norm.ADD_LAYER_NORM: add_layer_norm.make_body,
    attention.ATTENTION: attention.make_body,
}
CONVOLUTION = ("conv_shape", "kernel_shape", "strides", "pads")  # attributes of a convolution
SUFFIX = "_sparse_"  # between a weight's name and what its parts are called: values, index, scale


@dataclass(frozen=True)
class Encoded:
    """A weight [K, N] as its live entries: blocks of ``block`` outputs of one input, live or dead as one.

    Attributes:
        axis: 1 where a line is an input and ``index`` [K, P] says which output its entries begin at; 0 where a line is
            an output (block) and ``index`` [P, N / block] says which input. Strictly increasing along a line, whose
            unused entries are dead positions.
        values: float32, or int8 with ``scale``: [K, P * block] or [P, N].
        scale: float32 [N], of int8 values; None for float32.
    """

    shape: tuple[int, int]
    block: int
    axis: int
    index: np.ndarray  # uint16
    values: np.ndarray
    scale: np.ndarray | None = None

    def dense(self) -> np.ndarray:
        """W [K, N], in the type of ``values``."""
        weight = np.zeros(self.shape, self.values.dtype)
        offsets = np.arange(self.block) if self.axis == 1 else np.zeros(self.block, np.int64)
        index = (self.index.astype(np.int64)[..., None] + offsets).reshape(self.values.shape)
        np.put_along_axis(weight, index, self.values, self.axis)
        return weight


def live_blocks(weight: np.ndarray, block: int) -> np.ndarray:
    """Which blocks of ``block`` outputs of one input have a weight that is not 0: bool [K, ceil(N / block)]."""
    return (pad_outputs(weight, block) != 0).reshape(len(weight), -1, block).any(2)


def pad_outputs(weight: np.ndarray, block: int) -> np.ndarray:
    """``weight`` [..., N] with zeros up to a multiple of ``block``."""
    missing = -weight.shape[-1] % block
    return np.pad(weight, [(0, 0)] * (weight.ndim - 1) + [(0, missing)]) if missing else weight


def encode(weight: np.ndarray, block: int = 1, *, int8: bool = False) -> Encoded:
    """Encode a float32 ``weight`` [K, N], N a multiple of ``block``, along the axis that takes fewer entries.

    ``int8`` rounds it to 127 steps an output, symmetric.
    """
    live = live_blocks(weight, block)
    axis = min((1, 0), key=lambda axis: _entries(live, axis) * live.shape[1 - axis])
    entries = _entries(live, axis)
    # dead positions come after the live ones, lowest first, so that a line is filled up without a duplicate
    place = np.argsort(~live, axis=axis, kind="stable").take(np.arange(entries), axis=axis)
    place.sort(axis=axis)
    scale = None
    if int8:
        scale = np.abs(weight).max(0) / np.float32(INT8_MAX)
        scale[scale == 0] = 1
        weight = np.rint(weight / scale).astype(np.int8)
    if axis == 1:
        blocks = weight.reshape(*live.shape, block)
        values = np.take_along_axis(blocks, place[..., None], 1).reshape(len(weight), -1)
        place = place * block
    else:
        values = np.take_along_axis(weight, place.repeat(block, 1), 0)
    return Encoded(weight.shape, block, axis, place.astype(np.uint16), np.ascontiguousarray(values), scale)


def _entries(live: np.ndarray, axis: int) -> int:
    return max(1, int(live.sum(axis).max()))


def op_type(block: int, *, int8: bool = False, convolution: bool = False, activation: str = "") -> str:
    """The operator's name: ``SparseLinearGelu``, ``BlockSparseLinearInt8``, ``BlockSparseConvRelu``, ..."""
    kind = "SparseConv" if convolution else "SparseLinear"
    return ("Block" if block > 1 else "") + kind + ("Int8" if int8 else "") + activation


def make_node(
    encoded: Encoded,
    inputs: list[str],
    output: str,
    activation: str = "",
    name: str = "",
    convolution: Convolution | None = None,
) -> NodeProto:
    """The node; ``inputs`` are names of x, values, index, (int8: scale,) bias."""
    offsets = range(encoded.block) if encoded.axis == 1 else [0] * encoded.block
    moves = {name: list(value) for name, value in vars(convolution).items()} if convolution else {}
    if convolution:
        inputs_of_weight, outputs = encoded.shape
        channels = inputs_of_weight // math.prod(convolution.kernel_shape)
        moves["conv_shape"] = [outputs, channels, *convolution.kernel_shape]
    return helper.make_node(
        op_type(
            encoded.block,
            int8=encoded.scale is not None,
            convolution=convolution is not None,
            activation=activation,
        ),
        inputs,
        [output],
        name=name,
        domain=DOMAIN,
        shape=list(encoded.shape),
        axis=encoded.axis,
        **({"offsets": list(offsets)} if encoded.block > 1 else {}),
        **moves,
    )


def is_sparse(node: NodeProto) -> bool:
    """Whether ``node`` has a sparse weight."""
    return node.domain == DOMAIN and "Sparse" in node.op_type


def sparse_nodes(model: onnx.ModelProto) -> list[NodeProto]:
    """The nodes of ``model`` that have a sparse weight."""
    return [node for node in model.graph.node if is_sparse(node)]


def refuse(model: onnx.ModelProto, what: str) -> None:
    """Raise :class:`UserError` where ``model`` is a finished sparse-op file: ``what`` would undo or miss its nodes."""
    if any(function.domain == DOMAIN for function in model.functions):
        raise UserError(
            f"this file holds sparse operators, and {what} would undo or miss them: their rewrite is the last step. "
            "Export the model again, with the layout and --quantize that you want together."
        )


def decode(node: NodeProto, weights: dict[str, TensorProto]) -> Encoded:
    """The weight of a node of this operator, its initializers in ``weights``."""
    given = attributes(node)
    values, index = (numpy_helper.to_array(weights[name]) for name in node.input[1:3])
    scale = numpy_helper.to_array(weights[node.input[3]]) if "Int8" in node.op_type else None
    block = len(given.get("offsets", [0]))
    return Encoded(tuple(given["shape"]), block, given["axis"], index, values, scale)


def declare(model: onnx.ModelProto) -> None:
    """Say in ``model`` that it uses this domain, without which it cannot be read."""
    if all(entry.domain != DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))


def add_functions(model: onnx.ModelProto) -> None:
    """Give ``model`` the bodies of the operators that it uses, so that it runs where the library is not.

    Last of all: ONNX Runtime's quantizer does nothing at all to a file with functions.
    """
    declare(model)
    opset = opset_of(model)
    model.functions.extend(make_function(name, opset) for name in sorted({n.op_type for n in sparse_nodes(model)}))
    used = {node.op_type for node in model.graph.node if node.domain == DOMAIN}
    for name, make_body in BESIDE.items():
        if name in used:
            model.functions.append(make_body(DOMAIN, opset))


def make_function(name: str, opset: int) -> FunctionProto:
    """The body of the operator ``name`` in standard operators of ``opset``."""
    int8, block, convolution = "Int8" in name, name.startswith("Block"), "Conv" in name
    inputs = ["x", "values", "index", *(["scale"] if int8 else []), "bias"]
    activation = next((one for one in ACTIVATIONS if one and name.endswith(one)), "")
    computed = "h" if activation else "y"
    product = _convolve(computed) if convolution else _multiply(int8, computed)
    body = [*_rebuild(int8, block), *product, *_activate(activation)]
    return helper.make_function(
        DOMAIN,
        name,
        inputs,
        ["y"],
        body,
        [helper.make_opsetid("", opset)],
        attributes=["shape", "axis", *(["offsets"] if block else []), *(CONVOLUTION if convolution else [])],
    )


def _rebuild(int8: bool, block: bool) -> Iterable[NodeProto]:
    """The dense weight ``w`` from ``values`` and ``index``."""
    node = helper.make_node
    zero = numpy_helper.from_array(np.zeros(1, np.int8 if int8 else np.float32))
    yield _constant("dense", "shape")
    yield node("ConstantOfShape", ["dense"], ["zeros"], value=zero)
    yield node("Cast", ["index"], ["first"], to=TensorProto.INT32)
    if block:
        yield node("Constant", [], ["last_axis"], value_ints=[2])
        yield node("Unsqueeze", ["first", "last_axis"], ["firsts"])
        yield _constant("offsets_int64", "offsets")
        yield node("Cast", ["offsets_int64"], ["steps"], to=TensorProto.INT32)
        yield node("Add", ["firsts", "steps"], ["all"])
        yield node("Shape", ["values"], ["as_values"])
        yield node("Reshape", ["all", "as_values"], ["places"])
    scatter = node("ScatterElements", ["zeros", "places" if block else "first", "values"], ["w"])
    scatter.attribute.append(_reference("axis", "axis", AttributeProto.INT))
    yield scatter


def _convolve(output: str) -> Iterable[NodeProto]:
    yield helper.make_node("Transpose", ["w"], ["outputs_first"], perm=[1, 0])
    yield _constant("kernels_shape", "conv_shape")
    yield helper.make_node("Reshape", ["outputs_first", "kernels_shape"], ["kernels"])
    node = helper.make_node("Conv", ["x", "kernels", "bias"], [output])
    node.attribute.extend(_reference(name, name, AttributeProto.INTS) for name in CONVOLUTION if name != "conv_shape")
    yield node


def _multiply(int8: bool, output: str) -> Iterable[NodeProto]:
    node = helper.make_node
    if not int8:
        yield node("MatMul", ["x", "w"], ["product"])
    else:
        yield node("DynamicQuantizeLinear", ["x"], ["x_int8", "x_scale", "x_zero"])
        yield node("MatMulInteger", ["x_int8", "w", "x_zero"], ["integers"])
        yield node("Cast", ["integers"], ["floats"], to=TensorProto.FLOAT)
        yield node("Mul", ["x_scale", "scale"], ["scales"])
        yield node("Mul", ["floats", "scales"], ["product"])
    yield node("Add", ["product", "bias"], [output])


def _activate(activation: str) -> Iterable[NodeProto]:
    node = helper.make_node
    if activation == "Relu":
        yield node("Relu", ["h"], ["y"])
    if activation == "Gelu":  # as torch writes it; ONNX has the operator from opset 20 on
        for constant, value in (("root", 2**0.5), ("one", 1.0), ("half", 0.5)):
            yield node("Constant", [], [constant], value_float=value)
        yield node("Div", ["h", "root"], ["over_root"])
        yield node("Erf", ["over_root"], ["erf"])
        yield node("Add", ["erf", "one"], ["plus_one"])
        yield node("Mul", ["h", "plus_one"], ["doubled"])
        yield node("Mul", ["doubled", "half"], ["y"])


def _constant(output: str, attribute: str) -> NodeProto:
    made = helper.make_node("Constant", [], [output])
    made.attribute.append(_reference("value_ints", attribute, AttributeProto.INTS))
    return made


def _reference(name: str, attribute: str, kind: int) -> AttributeProto:
    return AttributeProto(name=name, ref_attr_name=attribute, type=kind)
