"""Residual sum and layer norm as one operator of the library: ONNX Runtime's own takes as long as a sparse layer."""

from __future__ import annotations

import onnx
from onnx import AttributeProto, FunctionProto, NodeProto, helper

from sparseticket.export.graph_index import GraphIndex, attributes, replace_nodes

ADD_LAYER_NORM = "AddLayerNorm"
STANDARD = {"axis": -1, "stash_type": 1}


def fuse_norms(model: onnx.ModelProto, domain: str) -> int:
    """Put it, in place, where a layer norm over the last dimension alone reads a sum of two equal shapes; how often."""
    index = GraphIndex(model.graph)
    instead: dict[str, NodeProto | None] = {}
    for norm in model.graph.node:
        added = index.maker(norm.input[0], "Add") if norm.op_type == "LayerNormalization" else None
        if added is None or len(norm.input) != 3 or len(norm.output) != 1:
            continue
        first, second = (index.shapes.get(name) for name in added.input)
        given = attributes(norm)
        plain = all(given.get(name, value) == value for name, value in STANDARD.items())
        if first and first == second and plain and all(index.is_vector(name, first[-1]) for name in norm.input[1:]):
            instead[added.output[0]] = None
            instead[norm.output[0]] = helper.make_node(
                ADD_LAYER_NORM,
                [*added.input, *norm.input[1:]],
                list(norm.output),
                name=f"{norm.name or norm.output[0]}_of_sum",
                domain=domain,
                epsilon=given.get("epsilon", 1e-5),
            )
    replace_nodes(model.graph, instead)
    return len(instead) // 2


def make_body(domain: str, opset: int) -> FunctionProto:
    """The operator in standard operators of ``opset``."""
    norm = helper.make_node("LayerNormalization", ["sum", "scale", "bias"], ["y"], axis=-1)
    norm.attribute.append(AttributeProto(name="epsilon", ref_attr_name="epsilon", type=AttributeProto.FLOAT))
    return helper.make_function(
        domain,
        ADD_LAYER_NORM,
        ["a", "b", "scale", "bias"],
        ["y"],
        [helper.make_node("Add", ["a", "b"], ["sum"]), norm],
        [helper.make_opsetid("", opset)],
        attributes=["epsilon"],
    )
