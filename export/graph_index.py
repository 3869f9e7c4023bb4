"""An ONNX graph by its values: which node makes each and which read it, which are constant, what shapes it states."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import onnx
from onnx import NodeProto, helper

Shape = tuple[str | int, ...]  # names and sizes of the dimensions


class GraphIndex:
    """Of a graph as it is now.

    Attributes:
        constants: initializers by name.
        readers: the nodes that read a value, as often as they read it.
        shapes: None where a dimension has neither a name nor a size.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        self.shapes = {value.name: _shape(value) for value in (*graph.value_info, *graph.input)}
        self._makers = {node.output[0]: node for node in graph.node}
        self._outputs = {value.name for value in graph.output}
        for node in graph.node:
            for name in node.input:
                self.readers[name].append(node)

    def is_inside(self, name: str, *, reads: int = 1) -> bool:
        """Whether ``name`` is read so often, and is no output of the graph."""
        return len(self.readers[name]) == reads and name not in self._outputs

    def maker(self, name: str, op_type: str) -> NodeProto | None:
        """The node that makes ``name``, where it is an ``op_type`` and only one node reads it."""
        node = self._makers.get(name)
        return node if node is not None and node.op_type == op_type and self.is_inside(name) else None

    def reader(self, name: str, op_type: str) -> NodeProto | None:
        """The only node that reads ``name``, where it is an ``op_type``."""
        return self.readers[name][0] if self.is_inside(name) and self.readers[name][0].op_type == op_type else None

    def is_vector(self, name: str, length: str | int) -> bool:
        """Whether ``name`` is a constant of that many fp32 numbers."""
        tensor = self.constants.get(name)
        return tensor is not None and list(tensor.dims) == [length] and tensor.data_type == onnx.TensorProto.FLOAT


def attributes(node: NodeProto) -> dict[str, Any]:
    """The attributes that a node states, by name."""
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def replace_nodes(graph: onnx.GraphProto, instead: Mapping[str, NodeProto | None]) -> None:
    """Put nodes of ``instead`` in the place of those whose first output they are named by; None leaves nothing."""
    nodes = [instead.get(node.output[0], node) for node in graph.node]
    keep_only(graph.node, [node for node in nodes if node is not None])


def keep_only(field: Any, kept: list[Any]) -> None:
    """Make ``kept`` all that a repeated field of a message holds."""
    del field[:]
    field.extend(kept)


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that ``model`` says it is written in."""
    return next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _shape(value: onnx.ValueInfoProto) -> Shape | None:
    dimensions = tuple(one.dim_param or one.dim_value for one in value.type.tensor_type.shape.dim)
    return dimensions if all(dimensions) else None
