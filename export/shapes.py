"""The shapes that an ONNX graph states of its values."""

from __future__ import annotations

import onnx


def known_shapes(graph: onnx.GraphProto) -> dict[str, tuple[str | int, ...] | None]:
    """Names and sizes of the dimensions, by value; None where one of them is neither."""
    return {value.name: _shape(value) for value in (*graph.value_info, *graph.input)}


def _shape(value: onnx.ValueInfoProto) -> tuple[str | int, ...] | None:
    dimensions = tuple(one.dim_param or one.dim_value for one in value.type.tensor_type.shape.dim)
    return dimensions if all(dimensions) else None
