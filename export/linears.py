"""The linear layers and convolutions of an ONNX graph: a constant weight, its bias, the activation that follows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from sparseticket.export.graph_index import GraphIndex, attributes

LARGEST_MOVE = 255  # a kernel, stride or padding that the library takes
FIRST_GELU_CONSTANTS = {"Div": 2**0.5, "Mul": 0.5**0.5}


@dataclass(frozen=True)
class Convolution:
    """How a kernel [rows, columns] moves: steps down and right; rows and columns of zeros above, left, below, right."""

    kernel_shape: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]


@dataclass(frozen=True)
class Linear:
    """``act(x @ W + bias)`` in a graph, or a convolution, whose W [K, N] has K = (channel, kernel row, kernel column).

    Attributes:
        weight: the initializer; [N, K] where ``turned``, [N, channels, rows, columns] of a convolution, else [K, N].
        bias: an initializer [N]; None where there is none.
        activation: "", "Gelu" or "Relu".
        nodes: what computes it, in order; the last one gives ``output``.
    """

    x: str
    weight: str
    turned: bool
    bias: str | None
    activation: str
    nodes: tuple[NodeProto, ...]
    convolution: Convolution | None = None

    @property
    def output(self) -> str:
        return self.nodes[-1].output[0]

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        """W [K, N], from the initializer's array."""
        return weight.reshape(len(weight), -1).T if self.turned or self.convolution else weight

    def array(self, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The initializer's array of ``shape``, from W [K, N]."""
        return matrix.T.reshape(shape) if self.turned or self.convolution else matrix


def find_linears(model: onnx.ModelProto) -> Iterator[Linear]:
    """Every linear layer with an fp32 weight, in the graph's order."""
    index = GraphIndex(model.graph)
    for node in model.graph.node:
        linear = _product(index, node)
        if linear is not None:
            yield _with_activation(index, _with_bias(index, linear))


def find_convolutions(model: onnx.ModelProto) -> Iterator[Linear]:
    """Every convolution of an image with an fp32 weight, without groups and dilation, in the graph's order."""
    index = GraphIndex(model.graph)
    for node in model.graph.node:
        convolution = _convolution(index, node)
        if convolution is not None:
            yield _with_relu(index, convolution)


def _product(index: GraphIndex, node: NodeProto) -> Linear | None:
    weight = _weight(index, node, ("MatMul", "Gemm"), dimensions=2)
    if weight is None:
        return None
    if node.op_type == "MatMul":
        return Linear(node.input[0], weight.name, False, None, "", (node,))
    given = attributes(node)
    turned = bool(given.get("transB", 0))
    plain = given.get("alpha", 1) == 1 and given.get("beta", 1) == 1 and not given.get("transA", 0)
    bias = _bias(node)
    if not plain or (bias is not None and not index.is_vector(bias, weight.dims[0 if turned else 1])):
        return None
    return Linear(node.input[0], weight.name, turned, bias, "", (node,))


def _convolution(index: GraphIndex, node: NodeProto) -> Linear | None:
    weight = _weight(index, node, ("Conv",), dimensions=4)
    if weight is None:
        return None
    given = attributes(node)
    plain = given.get("group", 1) == 1 and set(given.get("dilations", [1])) == {1}
    bias = _bias(node)
    if not plain or given.get("auto_pad", b"NOTSET") != b"NOTSET":
        return None
    if bias is not None and not index.is_vector(bias, weight.dims[0]):
        return None
    moves = Convolution(tuple(weight.dims[2:]), tuple(given.get("strides", (1, 1))), tuple(given.get("pads", (0,) * 4)))
    if max(*moves.kernel_shape, *moves.strides, *moves.pads) > LARGEST_MOVE:
        return None
    return Linear(node.input[0], weight.name, False, bias, "", (node,), moves)


def _weight(index: GraphIndex, node: NodeProto, op_types: Sequence[str], dimensions: int) -> TensorProto | None:
    """The constant fp32 weight that one of ONNX's own operators multiplies what is no constant by."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in op_types or node.input[0] in index.constants:
        return None
    weight = index.constants.get(node.input[1])
    fits = weight is not None and len(weight.dims) == dimensions and weight.data_type == TensorProto.FLOAT
    return weight if fits else None


def _bias(node: NodeProto) -> str | None:
    return node.input[2] if len(node.input) > 2 and node.input[2] else None


def _with_bias(index: GraphIndex, linear: Linear) -> Linear:
    """With the Add that alone reads it, where there is one."""
    add = index.reader(linear.output, "Add")
    if add is None or linear.bias is not None:
        return linear
    other = next(name for name in add.input if name != linear.output)
    if not index.is_vector(other, index.constants[linear.weight].dims[0 if linear.turned else 1]):
        return linear
    return replace(linear, bias=other, nodes=(*linear.nodes, add))


def _with_activation(index: GraphIndex, linear: Linear) -> Linear:
    """With the Relu or (exact) Gelu that alone reads it, where there is one."""
    followed = _with_relu(index, linear)
    if followed.activation:
        return followed
    if gelu := index.reader(linear.output, "Gelu"):
        exact = attributes(gelu).get("approximate", b"none") == b"none"
        return replace(linear, activation="Gelu", nodes=(*linear.nodes, gelu)) if exact else linear
    chain = _erf_chain(index, linear.output)
    return replace(linear, activation="Gelu", nodes=(*linear.nodes, *chain)) if chain else linear


def _with_relu(index: GraphIndex, linear: Linear) -> Linear:
    relu = index.reader(linear.output, "Relu")
    return replace(linear, activation="Relu", nodes=(*linear.nodes, relu)) if relu is not None else linear


def _erf_chain(index: GraphIndex, h: str) -> tuple[NodeProto, ...]:
    """``h * (erf(h / sqrt 2) + 1) * 0.5`` in any order of the products, as it is written below opset 20."""
    if not index.is_inside(h, reads=2):
        return ()
    gelu = FIRST_GELU_CONSTANTS
    first = next((node for node in index.readers[h] if _has_constant(index, node, gelu.get(node.op_type))), None)
    erf = index.reader(first.output[0], "Erf") if first is not None else None
    plus = index.reader(erf.output[0], "Add") if erf is not None else None
    if plus is None or not _has_constant(index, plus, 1.0):
        return ()
    chain = [first, erf, plus]
    for _ in range(2):
        product = index.reader(chain[-1].output[0], "Mul")
        if product is None:
            return ()
        chain.append(product)
    halved = [_has_constant(index, node, 0.5) for node in chain[3:]]
    by_h = [h in node.input for node in chain[3:]]
    fits = sorted(halved) == [False, True] and sorted(by_h) == [False, True] and halved != by_h
    return tuple(chain) if fits else ()


def _has_constant(index: GraphIndex, node: NodeProto, value: float | None) -> bool:
    """One of its inputs (of a Div: the second) is the constant ``value``."""
    names = node.input[1:] if node.op_type == "Div" else node.input
    tensors = [index.constants[name] for name in names if name in index.constants]
    numbers = [numpy_helper.to_array(one) for one in tensors if not one.dims or list(one.dims) == [1]]
    return value is not None and any(np.allclose(number, value, rtol=1e-5) for number in numbers)
