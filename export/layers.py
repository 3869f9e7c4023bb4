"""The zeros in the weights of a written ONNX file, however they are stored: dense, as positions, or in INT8."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import numpy_helper
from torch import Tensor, nn

from sparseticket.errors import RunFailure

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

    @property
    def sparsity(self) -> float:
        return self.zeros / self.weights


class StoredWeights:
    """The initializers of an ONNX file, external data included."""

    def __init__(self, file: Path) -> None:
        self.graph = onnx.load(file).graph
        self._dense = {tensor.name: tensor for tensor in self.graph.initializer}
        self._sparse = {tensor.values.name: tensor for tensor in self.graph.sparse_initializer}
        self._axis = {
            node.input[0]: next((one.i for one in node.attribute if one.name == "axis"), 1)
            for node in self.graph.node
            if node.op_type == "DequantizeLinear"
        }

    def __contains__(self, name: str) -> bool:
        return name in self._dense or name in self._sparse

    def is_zero(self, name: str) -> np.ndarray:
        """Where the initializer ``name`` is 0, bool in its shape; for INT8, where it is its zero point."""
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

    def _channels(self, name: str, array: np.ndarray) -> int:
        return self._axis.get(name, -1) % array.ndim

    def layer_is_zero(self, place: Place) -> np.ndarray:
        """Where a layer's weight is 0, bool in torch's orientation; found also where it was quantized.

        Raises:
            RunFailure: the file has no such weight.
        """
        name = place.initializer
        for stored, turned in ((name, False), (name + QUANTIZED, False), (name + TRANSPOSED + QUANTIZED, True)):
            if stored in self:
                zero = self.is_zero(stored)
                return place.to_torch(zero.T if turned else zero)
        raise RunFailure(f"the weight {name} is not in the written file, so its zeros cannot be recounted.")

    def read_by_operators(self) -> Iterator[str]:
        """Names of the weights (two dimensions or more) that matrix products and convolutions read, each once."""
        before = {node.output[0]: node.input[0] for node in self.graph.node if node.op_type in PASSED_ON_BY}
        seen = set()
        for node in self.graph.node:
            for name in node.input[:2] if node.op_type in WEIGHT_OPERATORS else ():
                while name in before:
                    name = before[name]
                if name in self and name not in seen and self._dimensions(name) >= 2:
                    seen.add(name)
                    yield name

    def _dimensions(self, name: str) -> int:
        return len((self._sparse.get(name) or self._dense[name]).dims)


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
        quantized = place.initializer not in weights
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
