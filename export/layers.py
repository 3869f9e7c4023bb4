"""Find each layer's weight in an ONNX graph, and recount its zeros in the file that was written."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from sparseticket.errors import RunFailure

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

WEIGHT_OPERATORS = ("MatMul", "Gemm", "Conv")


@dataclass(frozen=True)
class Layer:
    """Zeros of one weight: how many of how many."""

    name: str
    zeros: int
    weights: int

    @property
    def sparsity(self) -> float:
        return self.zeros / self.weights


@dataclass(frozen=True)
class Use:
    """An operator that reads a weight: the initializer's name, and the module the operator came from."""

    initializer: str
    module: str
    array: np.ndarray


def torch_layers(module: nn.Module) -> dict[str, Tensor]:
    """The weights of every Linear and Conv2d, by the name of the layer, in model order."""
    return {
        name: layer.weight.detach()
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }


def find_weights(program: ONNXProgram, module: nn.Module) -> dict[str, str]:
    """Which initializer holds which layer's weight: layer name -> initializer name. Needs the nodes' metadata.

    Three ways, in this order, because each fails for some layers: by the module that the operator came from (a
    convolution with folded BatchNorm says that it came from the BatchNorm); by name (linear weights are transposed
    and renamed, equal tensors are merged under one name); by content.

    Raises:
        RunFailure: a layer's weight is nowhere in the graph.
    """
    uses = list(_uses(program))
    by_module = {use.module: use.initializer for use in uses}
    by_name = {use.initializer.removesuffix(".weight"): use.initializer for use in uses}
    found = {}
    for name, weight in torch_layers(module).items():
        holder = by_module.get(name) or by_name.get(name) or _same_content(weight, uses)
        if holder is None:
            raise RunFailure(f"the weight of {name} is not in the exported graph, so its zeros cannot be recounted.")
        found[name] = holder
    return found


def expected_zeros(program: ONNXProgram, module: nn.Module, holders: Mapping[str, str]) -> dict[str, int]:
    """Zeros that each layer should have in the file. Needs the nodes' metadata.

    They are the layer's own, but for a convolution whose BatchNorm was folded into it: a channel that BatchNorm scales
    by 0 becomes zeros.
    """
    batch_norms = dict(module.named_modules())
    folded = {use.initializer: batch_norms.get(use.module) for use in _uses(program)}
    expected = {}
    for name, weight in torch_layers(module).items():
        norm = folded[holders[name]]
        if isinstance(norm, nn.BatchNorm2d) and norm.affine and weight.dim() == 4:
            scale = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
            weight = weight * scale[:, None, None, None]
        expected[name] = int((weight == 0).sum())
    return expected


def recount(file: Path, holders: Mapping[str, str]) -> list[Layer]:
    """Count the zeros of each layer in the written file (external data included), in the order of ``holders``."""
    arrays = {tensor.name: tensor for tensor in onnx.load(file).graph.initializer}
    return [_count(layer, numpy_helper.to_array(arrays[initializer])) for layer, initializer in holders.items()]


def check(layers: list[Layer], expected: Mapping[str, int]) -> None:
    """Raise :class:`RunFailure` that names the first layer whose zeros in the file are not those of the model."""
    for layer in layers:
        if layer.zeros != expected[layer.name]:
            raise RunFailure(
                f"{layer.name} has {layer.zeros} zeros in the written file and {expected[layer.name]} in the model, "
                f"of {layer.weights} weights. Nothing was kept. Please report this with the model's architecture."
            )


def file_layers(file: Path) -> list[Layer]:
    """Zeros of every float weight that a matrix product or convolution of an ONNX file reads, by initializer name."""
    graph = onnx.load(file).graph
    arrays = {tensor.name: tensor for tensor in graph.initializer}
    read = {name for node in graph.node if node.op_type in WEIGHT_OPERATORS for name in node.input[:2]}
    weights = {name: numpy_helper.to_array(tensor) for name, tensor in arrays.items() if name in read}
    return [_count(name, array) for name, array in weights.items() if array.ndim >= 2 and array.dtype.kind == "f"]


def _count(name: str, array: np.ndarray) -> Layer:
    return Layer(name, int(array.size - np.count_nonzero(array)), int(array.size))


def _uses(program: ONNXProgram) -> Iterator[Use]:
    for node in program.model.graph.all_nodes():
        if node.op_type not in WEIGHT_OPERATORS:
            continue
        for value in node.inputs[:2]:
            tensor = value.const_value if value is not None and value.is_initializer() else None
            if tensor is not None and len(tensor.shape) >= 2:
                scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "['', '']"))
                yield Use(value.name, scopes[-2], tensor.numpy())


def _same_content(weight: Tensor, uses: list[Use]) -> str | None:
    array = weight.cpu().numpy()
    for use in uses:
        if np.array_equal(use.array, array) or (array.ndim == 2 and np.array_equal(use.array, array.T)):
            return use.initializer
    return None
