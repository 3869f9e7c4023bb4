"""The linear layers and convolutions of an ONNX graph: a constant weight, its bias, the activation that follows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

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
    graph = _Graph(model)
    for node in model.graph.node:
        linear = graph.product(node)
        if linear is not None:
            yield graph.with_activation(graph.with_bias(linear))


def find_convolutions(model: onnx.ModelProto) -> Iterator[Linear]:
    """Every convolution of an image with an fp32 weight, without groups and dilation, in the graph's order."""
    graph = _Graph(model)
    for node in model.graph.node:
        convolution = graph.convolution(node)
        if convolution is not None:
            yield graph.with_relu(convolution)


class _Graph:
    """Who reads what, and what is constant."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._outputs = {value.name for value in model.graph.output}
        self._readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in node.input:
                self._readers[name].append(node)

    def product(self, node: NodeProto) -> Linear | None:
        if node.domain not in ("", "ai.onnx") or node.op_type not in ("MatMul", "Gemm"):
            return None
        x, weight, *rest = node.input
        tensor = self._constants.get(weight)
        if x in self._constants or tensor is None or len(tensor.dims) != 2:
            return None
        if tensor.data_type != onnx.TensorProto.FLOAT:
            return None
        if node.op_type == "MatMul":
            return Linear(x, weight, False, None, "", (node,))
        given = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        turned = bool(given.get("transB", 0))
        bias = rest[0] if rest and rest[0] else None
        plain = given.get("alpha", 1) == 1 and given.get("beta", 1) == 1 and not given.get("transA", 0)
        if not plain or (bias is not None and not self._is_bias(bias, tensor.dims[0 if turned else 1])):
            return None
        return Linear(x, weight, turned, bias, "", (node,))

    def convolution(self, node: NodeProto) -> Linear | None:
        if node.domain not in ("", "ai.onnx") or node.op_type != "Conv":
            return None
        x, weight, *rest = node.input
        tensor = self._constants.get(weight)
        if x in self._constants or tensor is None or len(tensor.dims) != 4:
            return None
        given = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        plain = given.get("group", 1) == 1 and set(given.get("dilations", [1])) == {1}
        if not plain or given.get("auto_pad", b"NOTSET") != b"NOTSET" or tensor.data_type != onnx.TensorProto.FLOAT:
            return None
        bias = rest[0] if rest and rest[0] else None
        if bias is not None and not self._is_bias(bias, tensor.dims[0]):
            return None
        moves = Convolution(
            tuple(tensor.dims[2:]), tuple(given.get("strides", (1, 1))), tuple(given.get("pads", (0,) * 4))
        )
        if max(*moves.kernel_shape, *moves.strides, *moves.pads) > LARGEST_MOVE:
            return None
        return Linear(x, weight, False, bias, "", (node,), moves)

    def with_bias(self, linear: Linear) -> Linear:
        """With the Add that alone reads it, where there is one."""
        add = self._only_reader(linear.output, "Add")
        if add is None or linear.bias is not None:
            return linear
        other = self._other(add, linear.output)
        outputs = self._constants[linear.weight].dims[0 if linear.turned else 1]
        if other is None or not self._is_bias(other, outputs):
            return linear
        return replace(linear, bias=other, nodes=(*linear.nodes, add))

    def with_activation(self, linear: Linear) -> Linear:
        """With the Relu or (exact) Gelu that alone reads it, where there is one."""
        followed = self.with_relu(linear)
        if followed.activation:
            return followed
        gelu = self._only_reader(linear.output, "Gelu")
        if gelu is not None:
            exact = all(one.s == b"none" for one in gelu.attribute if one.name == "approximate")
            return replace(linear, activation="Gelu", nodes=(*linear.nodes, gelu)) if exact else linear
        chain = self._erf_chain(linear.output)
        return replace(linear, activation="Gelu", nodes=(*linear.nodes, *chain)) if chain else linear

    def with_relu(self, linear: Linear) -> Linear:
        relu = self._only_reader(linear.output, "Relu")
        return replace(linear, activation="Relu", nodes=(*linear.nodes, relu)) if relu is not None else linear

    def _erf_chain(self, h: str) -> tuple[NodeProto, ...]:
        """``h * (erf(h / sqrt 2) + 1) * 0.5`` in any order of the products, as it is written below opset 20."""
        readers = self._readers[h]
        first = next(
            (node for node in readers if self._has_constant(node, FIRST_GELU_CONSTANTS.get(node.op_type))), None
        )
        erf = self._only_reader(first.output[0], "Erf") if first is not None else None
        plus = self._only_reader(erf.output[0], "Add") if erf is not None else None
        if plus is None or not self._has_constant(plus, 1.0):
            return ()
        chain = [first, erf, plus]
        for _ in range(2):
            product = self._only_reader(chain[-1].output[0], "Mul")
            if product is None:
                return ()
            chain.append(product)
        halved = [self._has_constant(node, 0.5) for node in chain[3:]]
        by_h = [h in node.input for node in chain[3:]]
        fits = sorted(halved) == [False, True] and sorted(by_h) == [False, True] and halved != by_h
        inside = h not in self._outputs and len(readers) == 2
        return tuple(chain) if fits and inside else ()

    def _only_reader(self, name: str, op_type: str) -> NodeProto | None:
        readers = self._readers[name]
        fits = len(readers) == 1 and name not in self._outputs and readers[0].op_type == op_type
        return readers[0] if fits else None

    @staticmethod
    def _other(node: NodeProto, name: str) -> str | None:
        return next((one for one in node.input if one != name), None)

    def _is_bias(self, name: str, outputs: int) -> bool:
        tensor = self._constants.get(name)
        return tensor is not None and list(tensor.dims) == [outputs] and tensor.data_type == onnx.TensorProto.FLOAT

    def _has_constant(self, node: NodeProto, value: float | None) -> bool:
        """One of its inputs (of a Div: the second) is the constant ``value``."""
        names = node.input[1:] if node.op_type == "Div" else node.input
        tensors = [self._constants[name] for name in names if name in self._constants]
        numbers = [numpy_helper.to_array(one) for one in tensors if not one.dims or list(one.dims) == [1]]
        return value is not None and any(np.allclose(number, value, rtol=1e-5) for number in numbers)
