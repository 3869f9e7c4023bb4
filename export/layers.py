"""The zeros in the weights of a written ONNX file, however stored: dense, as positions, in INT8, or for sparse_op."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper
from torch import Tensor, nn

from sparseticket.errors import RunFailure
from sparseticket.export import sparse_op
from sparseticket.export.graph_index import attributes

if TYPE_CHECKING:
    from sparseticket.export.places import Place

WEIGHT_OPERATORS = ("MatMul", "Gemm", "Conv", "MatMulInteger", "ConvInteger", "Attention")
PASSED_ON_BY = ("DequantizeLinear", "Transpose", "Cast")  # between a weight and its operator
QUANTIZED, TRANSPOSED = "_quantized", "_Transposed"  # what ONNX Runtime's quantizer appends to a weight's name


@dataclass(frozen=True)
class Layer:
    """Zeros of one weight: how many of how many."""

    name: str
    zeros: int
    weights: int

    @classmethod
    def of(cls, name: str, weight: Tensor) -> Layer:
        return cls(name, int((weight == 0).sum()), weight.numel())

    @property
    def sparsity(self) -> float:
        return self.zeros / self.weights

    def report(self) -> dict[str, Any]:
        return {**vars(self), "sparsity": self.sparsity}


class StoredWeights:
    """The initializers of an ONNX file, external data included."""

    def __init__(self, file: Path) -> None:
        self.graph = onnx.load(file).graph
        self._dense = {tensor.name: tensor for tensor in self.graph.initializer}
        self._sparse = {tensor.values.name: tensor for tensor in self.graph.sparse_initializer}
        self._axis = {
            node.input[0]: attributes(node).get("axis", 1)
            for node in self.graph.node
            if node.op_type == "DequantizeLinear"
        }
        self._encoded = {
            node.input[1].removesuffix(f"{sparse_op.SUFFIX}values"): node
            for node in self.graph.node
            if sparse_op.is_sparse(node)
        }

    def __contains__(self, name: str) -> bool:
        return name in self._dense or name in self._sparse or name in self._encoded

    def is_zero(self, name: str) -> np.ndarray:
        """Where the weight ``name`` is 0, bool in its shape; for INT8, where it is its zero point."""
        if name in self._encoded:
            return self._encoded_is_zero(name)
        if name in self._sparse:
            sparse = self._sparse[name]
            zero, positions = np.ones(tuple(sparse.dims), bool), numpy_helper.to_array(sparse.indices)
            at = np.unravel_index(positions, zero.shape) if positions.ndim == 1 else tuple(positions.T)
            zero[at] = numpy_helper.to_array(sparse.values) == 0
            return zero
        array = numpy_helper.to_array(self._dense[name])
        point = self._dense.get(f"{name.removesuffix(QUANTIZED)}_zero_point") if name.endswith(QUANTIZED) else None
        if point is None:
            return array == 0
        points = numpy_helper.to_array(point)
        if points.ndim:  # one a channel: along this axis, and for MatMulInteger along the last
            points = np.expand_dims(points, [axis for axis in range(array.ndim) if axis != self._channels(name, array)])
        return array == points

    def _encoded_is_zero(self, name: str) -> np.ndarray:
        """Of a weight of the sparse operator, without the outputs that were added to fill its last block."""
        node = self._encoded[name]
        zero = sparse_op.decode(node, self._dense).dense() == 0
        outputs = self._dense.get(f"{name}{sparse_op.SUFFIX}outputs")
        zero = zero if outputs is None else zero[:, : int(numpy_helper.to_array(outputs)[0])]
        kernels = attributes(node).get("conv_shape")
        return zero if kernels is None else zero.T.reshape(-1, *kernels[1:])

    def _channels(self, name: str, array: np.ndarray) -> int:
        return self._axis.get(name, -1) % array.ndim

    def layer_is_zero(self, place: Place) -> np.ndarray:
        """Where a layer's weight is 0, bool in torch's orientation; found also where it was quantized.

        Raises:
            RunFailure: the file has no such weight.
        """
        stored = self._stored(place)
        zero = self.is_zero(stored)
        turned = stored.removesuffix(QUANTIZED).removeprefix(place.initializer) == TRANSPOSED
        return place.to_torch(zero.T if turned else zero)

    def is_rounded(self, place: Place) -> bool:
        """Whether a layer's weight is in INT8, where more of it may be 0."""
        stored = self._stored(place)
        node = self._encoded.get(stored)
        return stored.endswith(QUANTIZED) or (node is not None and "Int8" in node.op_type)

    def _stored(self, place: Place) -> str:
        name = place.initializer
        for stored in (name, name + TRANSPOSED, name + QUANTIZED, name + TRANSPOSED + QUANTIZED):
            if stored in self:
                return stored
        raise RunFailure(f"the weight {name} is not in the written file, so its zeros cannot be recounted.")

    def read_by_operators(self) -> Iterator[str]:
        """Names of the weights (two dimensions or more) that matrix products and convolutions read, each once."""
        before = {node.output[0]: node.input[0] for node in self.graph.node if node.op_type in PASSED_ON_BY}
        seen = set()
        for node in self.graph.node:
            for name in self._weights_of(node):
                while name in before:
                    name = before[name]
                if name in self and name not in seen and self._dimensions(name) >= 2:
                    seen.add(name)
                    yield name

    @staticmethod
    def _weights_of(node: NodeProto) -> Sequence[str]:
        if sparse_op.is_sparse(node):
            return (node.input[1].removesuffix(f"{sparse_op.SUFFIX}values"),)
        return node.input[:2] if node.op_type in WEIGHT_OPERATORS else ()

    def _dimensions(self, name: str) -> int:
        return 2 if name in self._encoded else len((self._sparse.get(name) or self._dense[name]).dims)


def torch_layers(module: nn.Module) -> dict[str, Tensor]:
    """The weights of every Linear and Conv2d, by the name of the layer, in model order."""
    return {
        name: layer.weight.detach()
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }


def recount(file: Path, places: Mapping[str, Place], expected: Mapping[str, np.ndarray]) -> list[Layer]:
    """Count the zeros of each layer in the written file, in the order of ``places``.

    Raises:
        RunFailure: names the first layer whose zeros are not those of the model (``expected``). INT8 may have more of
            them (what is rounded to 0), fp32 and fp16 may not.
    """
    weights = StoredWeights(file)
    counted = []
    for name, place in places.items():
        zero = weights.layer_is_zero(place)
        quantized = weights.is_rounded(place)
        revived = int((expected[name] & ~zero).sum())
        if revived or (zero.sum() != expected[name].sum() and not quantized):
            raise RunFailure(
                f"{name} has {int(zero.sum())} zeros in the written file and {int(expected[name].sum())} in the model, "
                f"of {zero.size} weights, {revived} of which were 0 and are not. Nothing was kept. "
                "Please report this with the model's architecture."
            )
        counted.append(Layer(name, int(zero.sum()), zero.size))
    return counted


def file_layers(file: Path) -> list[Layer]:
    """Zeros of every weight that a matrix product or convolution of an ONNX file reads, by initializer name."""
    weights = StoredWeights(file)
    zeros = {name: weights.is_zero(name) for name in weights.read_by_operators()}
    return [Layer(name, int(zero.sum()), zero.size) for name, zero in zeros.items()]
