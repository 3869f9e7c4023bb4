"""The core of an attention as one operator of the library: no transposed copies, one pass over the scores."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import AttributeProto, FunctionProto, NodeProto, helper, numpy_helper

from sparseticket.export.graph_index import GraphIndex, Shape, attributes, keep_only, replace_nodes

ATTENTION = "MaskedAttention"  # ONNX Runtime's quantizer takes any "Attention" for its own
HEADS_FIRST, TURNED = [0, 2, 1, 3], [0, 2, 3, 1]
HEAD_STEP = 16  # floats: a head's size is a multiple of it in the library


@dataclass(frozen=True)
class Attention:
    """``softmax(q k^T * scale + mask) v`` in a graph.

    Attributes:
        inputs: names of q, k, v and mask.
        nodes: what computes it; the last one gives the output.
    """

    inputs: tuple[str, ...]
    heads: int
    size: int
    scale: float
    nodes: tuple[NodeProto, ...]


def fuse_attentions(model: onnx.ModelProto, domain: str) -> int:
    """Put it, in place, where transformers' eager attention is; how often."""
    index = GraphIndex(model.graph)
    found = [one for one in (_attention(index, node) for node in model.graph.node) if one is not None]
    instead: dict[str, NodeProto | None] = {}
    for one in found:
        output = one.nodes[-1].output[0]
        instead |= {node.output[0]: None for node in one.nodes}
        instead[output] = helper.make_node(
            ATTENTION,
            one.inputs,
            [output],
            name=f"{output}_attention",
            domain=domain,
            scale=one.scale,
            split=[0, 0, one.heads, one.size],
            merged=[0, 0, one.heads * one.size],
        )
    replace_nodes(model.graph, instead)
    if found:
        _drop_unread_shapes(model.graph)
    return len(found)


def _drop_unread_shapes(graph: onnx.GraphProto) -> None:
    """Remove each Concat, which made a shape, that nothing reads any more."""
    outputs = {one.name for one in graph.output}
    while True:
        read = {name for node in graph.node for name in node.input} | outputs
        kept = [node for node in graph.node if node.op_type != "Concat" or node.output[0] in read]
        if len(kept) == len(graph.node):
            return
        keep_only(graph.node, kept)


def _attention(index: GraphIndex, softmax: NodeProto) -> Attention | None:
    """The attention that ``softmax`` is in; None where it is in none, or in one that the operator does not take."""
    if softmax.op_type != "Softmax" or attributes(softmax).get("axis", -1) != -1:
        return None
    masked = index.maker(softmax.input[0], "Add")
    scaled = index.maker(masked.input[0], "Mul") if masked else None
    scores = index.maker(scaled.input[0], "MatMul") if scaled else None
    values = index.reader(softmax.output[0], "MatMul")
    turned = _permuting(index.reader(values.output[0], "Transpose"), HEADS_FIRST) if values else None
    merged = index.reader(turned.output[0], "Reshape") if turned else None
    if scores is None or merged is None or values.input[0] != softmax.output[0]:
        return None
    sides = [
        _heads(index, scores.input[0], HEADS_FIRST),
        _heads(index, scores.input[1], TURNED),
        _heads(index, values.input[1], HEADS_FIRST),
    ]
    scale = index.constants.get(scaled.input[1])
    if None in sides or scale is None or numpy_helper.to_array(scale).size != 1:
        return None
    q, k, v = (reshape.input[0] for reshape, _ in sides)
    mask, whole, split = masked.input[1], index.shapes.get(q), index.shapes.get(sides[0][0].output[0])
    if not _fits(whole, split) or any(index.shapes.get(name) != whole for name in (k, v, merged.output[0])):
        return None
    batch, rows, _ = whole
    if index.shapes.get(mask) != (batch, 1, rows, rows):  # no broadcasting but over the heads
        return None
    within = (node for side in sides for node in side)
    nodes = (*within, scores, scaled, masked, softmax, values, turned, merged)
    return Attention((q, k, v, mask), split[2], split[3], float(numpy_helper.to_array(scale).reshape(())), nodes)


def _heads(index: GraphIndex, name: str, perm: list[int]) -> tuple[NodeProto, NodeProto] | None:
    """The Reshape and the Transpose that make the heads ``name``."""
    transpose = _permuting(index.maker(name, "Transpose"), perm)
    reshape = index.maker(transpose.input[0], "Reshape") if transpose else None
    return (reshape, transpose) if reshape else None


def _permuting(transpose: NodeProto | None, perm: list[int]) -> NodeProto | None:
    return transpose if transpose is not None and attributes(transpose).get("perm") == perm else None


def _fits(whole: Shape | None, split: Shape | None) -> bool:
    """Whether ``whole`` [batch, rows, width] is split into heads of a size that the library takes."""
    if whole is None or split is None or len(whole) != 3 or len(split) != 4:
        return False
    heads, size = split[2:]
    return isinstance(heads, int) and isinstance(size, int) and size % HEAD_STEP == 0 and heads * size == whole[2]


def make_body(domain: str, opset: int) -> FunctionProto:
    """The operator in standard operators of ``opset``."""
    node = helper.make_node

    def constant(output: str, attribute: str, name: str, kind: int) -> NodeProto:
        made = node("Constant", [], [output])
        made.attribute.append(AttributeProto(name=name, ref_attr_name=attribute, type=kind))
        return made

    body = [
        constant("heads", "split", "value_ints", AttributeProto.INTS),
        constant("whole", "merged", "value_ints", AttributeProto.INTS),
        constant("factor", "scale", "value_float", AttributeProto.FLOAT),
    ]
    for name, perm in (("q", HEADS_FIRST), ("k", TURNED), ("v", HEADS_FIRST)):
        body.append(node("Reshape", [name, "heads"], [f"{name}_split"]))
        body.append(node("Transpose", [f"{name}_split"], [f"{name}_heads"], perm=perm))
    body += [
        node("MatMul", ["q_heads", "k_heads"], ["scores"]),
        node("Mul", ["scores", "factor"], ["scaled"]),
        node("Add", ["scaled", "mask"], ["masked"]),
        node("Softmax", ["masked"], ["weights"], axis=-1),
        node("MatMul", ["weights", "v_heads"], ["mixed"]),
        node("Transpose", ["mixed"], ["rows"], perm=HEADS_FIRST),
        node("Reshape", ["rows", "whole"], ["y"]),
    ]
    return helper.make_function(
        domain,
        ATTENTION,
        ["q", "k", "v", "mask"],
        ["y"],
        body,
        [helper.make_opsetid("", opset)],
        attributes=["split", "merged", "scale"],
    )
