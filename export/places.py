"""Find each layer's weight in a traced graph, and say where the zeros in it are."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from sparseticket.errors import RunFailure
from sparseticket.export.layers import torch_layers

if TYPE_CHECKING:
    from onnx_ir import Node
    from torch.onnx import ONNXProgram

    from sparseticket.export.loaded_model import LoadedModel

TRACED_OPERATORS = ("MatMul", "Gemm", "Conv")


@dataclass(frozen=True)
class Place:
    """Where a layer's weight is in a graph: an initializer, or columns of one that fusion packed.

    Attributes:
        transposed: the initializer is [in, out], torch's weight is [out, in].
        columns: first and last (exclusive) column that are this layer's; None for all.
    """

    initializer: str
    transposed: bool
    columns: tuple[int, int] | None = None

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """The layer's part of the initializer's ``array``, in torch's orientation."""
        own = array if self.columns is None else array[:, slice(*self.columns)]
        return own.T if self.transposed else own


@dataclass(frozen=True)
class _Use:
    place: Place
    module: str  # that the operator came from
    array: np.ndarray


def find_weights(program: ONNXProgram, model: LoadedModel) -> dict[str, Place]:
    """Where each layer's weight is, by the layer's name. Needs the nodes' metadata, so before any fusion.

    Left out are layers that no answer depends on (ESM's contact head, BigBird's pooler), or reads without calling them
    (a part of MobileBERT's MLM decoder).

    Three ways, in this order, because each fails for some layers: by the module that the operator came from (a
    convolution with folded BatchNorm says that it came from the BatchNorm); by name (linear weights are transposed
    and renamed, equal tensors are merged under one name); by content.

    Raises:
        RunFailure: a layer's weight is nowhere in the graph.
    """
    uses = list(_uses(program))
    by_module = {use.module: use.place for use in uses}
    by_name = {use.place.initializer.removesuffix(".weight"): use.place for use in uses}
    found, missing = {}, []
    for name, weight in torch_layers(model.module).items():
        place = by_module.get(name) or by_name.get(name) or _same_content(weight.cpu().numpy(), uses)
        if place is None:
            missing.append(name)
        else:
            found[name] = place
    if missing and (lost := _read_by_calls(model, missing)):
        raise RunFailure(f"the weight of {lost[0]} is not in the exported graph, so its zeros cannot be recounted.")
    return found


def _read_by_calls(model: LoadedModel, layers: Sequence[str]) -> list[str]:
    """Which of these layers an answer calls, and depends on: BigBird calls a pooler whose output its heads drop."""
    called: list[str] = []
    parts = {name: model.module.get_submodule(name) for name in layers}
    hooks = [part.register_forward_hook(lambda *_, name=name: called.append(name)) for name, part in parts.items()]
    fed = model.example(1, min(8, model.max_length))
    try:
        with torch.enable_grad():
            answer = model.module(**fed) if model.kind == "text" else model.module(*fed.values())
    finally:
        for hook in hooks:
            hook.remove()
    if not called:
        return []
    outputs = [answer] if isinstance(answer, Tensor) else [answer[name] for name in model.outputs]
    weights = [parts[name].weight for name in called]
    gradients = torch.autograd.grad(sum(output.sum() for output in outputs), weights, allow_unused=True)
    return [name for name, gradient in zip(called, gradients, strict=True) if gradient is not None]


def find_fused(program: ONNXProgram, module: nn.Module, places: Mapping[str, Place]) -> dict[str, Place]:
    """Where the weights are after fusion, which packs query, key and value side by side; by content.

    Raises:
        RunFailure: a layer's weight is nowhere in the graph.
    """
    weights = torch_layers(module)
    left = program.model.graph.initializers
    packed = [(name, value.const_value.numpy()) for name, value in left.items() if len(value.const_value.shape) == 2]
    found = {}
    for name, place in places.items():
        held = place if place.initializer in left else _in_packed(weights[name].cpu().numpy().T, packed)
        if held is None:
            raise RunFailure(f"the weight of {name} is not in the fused graph, so its zeros cannot be recounted.")
        found[name] = held
    return found


def expected_zeros(program: ONNXProgram, module: nn.Module, places: Mapping[str, Place]) -> dict[str, np.ndarray]:
    """Which weights of each layer are 0 and must be so in the file, bool in the weight's shape. Needs the metadata.

    They are the layer's own, but for a convolution whose BatchNorm was folded into it: a channel that BatchNorm scales
    by 0 becomes zeros.
    """
    modules = dict(module.named_modules())
    folded = {use.place.initializer: modules.get(use.module) for use in _uses(program)}
    weights, expected = torch_layers(module), {}
    for name, place in places.items():
        weight, norm = weights[name], folded[place.initializer]
        if isinstance(norm, nn.BatchNorm2d) and norm.affine and weight.dim() == 4:
            scale = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
            weight = weight * scale[:, None, None, None]
        expected[name] = (weight == 0).cpu().numpy()
    return expected


def _uses(program: ONNXProgram) -> Iterator[_Use]:
    for node in program.model.graph.all_nodes():
        if node.op_type not in TRACED_OPERATORS:
            continue
        for value in node.inputs[:2]:
            producer = value.producer() if value is not None else None
            turned = producer is not None and producer.op_type == "Transpose"
            held = producer.inputs[0] if turned else value
            tensor = held.const_value if held is not None and held.is_initializer() else None
            if tensor is not None and len(tensor.shape) >= 2:
                scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "['', '']"))
                yield _Use(Place(held.name, _is_transposed(node) != turned), scopes[-2], tensor.numpy())


def _is_transposed(node: Node) -> bool:
    """Whether the operator multiplies by [in, out], where the weight is its second factor."""
    if node.op_type == "Gemm":
        turned = node.attributes.get("transB")
        return turned is None or turned.as_int() == 0
    return node.op_type == "MatMul"


def _same_content(weight: np.ndarray, uses: list[_Use]) -> Place | None:
    for use in uses:
        for transposed in {use.place.transposed, False} if weight.ndim == 2 else {False}:
            place = Place(use.place.initializer, transposed)
            if np.array_equal(place.to_torch(use.array), weight):
                return place
    return None


def _in_packed(columns: np.ndarray, packed: list[tuple[str, np.ndarray]]) -> Place | None:
    rows, width = columns.shape
    for name, array in packed:
        if array.shape[0] != rows:
            continue
        for first in range(0, array.shape[1] - width + 1, width):
            if np.array_equal(array[:, first : first + width], columns):
                return Place(name, True, (first, first + width))
    return None
