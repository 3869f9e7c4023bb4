"""The core of an attention as one operator of the library: no transposed copies, one pass over the scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import onnx
from onnx import AttributeProto, FunctionProto, NodeProto, helper, numpy_helper

from sparseticket.export.shapes import known_shapes

ATTENTION = "MaskedAttention"  # ONNX Runtime's quantizer takes any "Attention" for its own
HEADS_FIRST, TURNED = [0, 2, 1, 3], [0, 2, 3, 1]
HEAD_STEP = 16  # floats: a head's size is a multiple of it in the library


def fuse_attentions(model: onnx.ModelProto, domain: str) -> int:
    """Put it, in place, where transformers' eager attention is: softmax(q k^T * scale + mask) v; how often."""
    graph = _Graph(model)
    found = [one for one in map(graph.attention, model.graph.node) if one is not None]
    instead: dict[str, NodeProto | None] = {}
    for inputs, (heads, size), scale, nodes in found:
        instead |= {node.output[0]: None for node in nodes}
        output = nodes[-1].output[0]
        shapes = {"split": [0, 0, heads, size], "merged": [0, 0, heads * size]}
        instead[output] = helper.make_node(
            ATTENTION, inputs, [output], name=f"{output}_attention", domain=domain, scale=scale, **shapes
        )
    _replace(model.graph, instead)
    return len(found)


def _replace(graph: onnx.GraphProto, instead: dict[str, NodeProto | None]) -> None:
    """Nodes by their first output; a Concat that made a shape which nothing reads any more goes too."""
    nodes = [instead.get(node.output[0], node) for node in graph.node]
    kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes if node is not None]
    outputs = {one.name for one in graph.output}
    while instead:
        read = {name for node in kept for name in node.input} | outputs
        used = [node for node in kept if node.op_type != "Concat" or node.output[0] in read]
        if len(used) == len(kept):
            break
        kept = used
    del graph.node[:]
    graph.node.extend(kept)


class _Graph:
    """What makes and reads each value, constants and shapes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self._made = {node.output[0]: node for node in graph.node}
        self._reader = {name: node for node in graph.node for name in node.input}
        self._readers = Counter(name for node in graph.node for name in node.input)
        self._readers.update(one.name for one in graph.output)
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._shapes = known_shapes(graph)

    def attention(self, softmax: NodeProto) -> tuple[list[str], tuple[int, int], float, Sequence[NodeProto]] | None:
        """Inputs (q, k, v, mask), heads and their size, scale, and nodes of the attention that ``softmax`` is in."""
        if softmax.op_type != "Softmax" or _attribute(softmax, "axis", -1) != -1:
            return None
        masked = self._before(softmax.input[0], "Add")
        scaled = self._before(masked.input[0], "Mul") if masked else None
        scores = self._before(scaled.input[0], "MatMul") if scaled else None
        values = self._after(softmax.output[0], "MatMul")
        turned = self._after(values.output[0], "Transpose", HEADS_FIRST) if values else None
        merged = self._after(turned.output[0], "Reshape") if turned else None
        if scores is None or merged is None or values.input[0] != softmax.output[0]:
            return None
        sides = [
            self._heads(scores.input[0], HEADS_FIRST),
            self._heads(scores.input[1], TURNED),
            self._heads(values.input[1], HEADS_FIRST),
        ]
        scale = self._constants.get(scaled.input[1])
        if None in sides or scale is None or numpy_helper.to_array(scale).size != 1:
            return None
        inputs = [reshape.input[0] for reshape, _ in sides]
        mask, whole = masked.input[1], self._shapes.get(inputs[0])
        split = self._shapes.get(sides[0][0].output[0])
        if not self._fits([*inputs, merged.output[0]], mask, whole, split):
            return None
        nodes = [node for side in sides for node in side]
        scale_value = float(numpy_helper.to_array(scale).reshape(()))
        return (
            [*inputs, mask],
            (split[2], split[3]),
            scale_value,
            [*nodes, scores, scaled, masked, softmax, values, turned, merged],
        )

    def _fits(
        self, equal: list[str], mask: str, whole: tuple[str | int, ...] | None, split: tuple[str | int, ...] | None
    ) -> bool:
        """Whether the shapes are those that the operator takes: no broadcasting but over the heads."""
        if whole is None or split is None or len(whole) != 3 or len(split) != 4:
            return False
        heads, size = split[2:]
        sizes = isinstance(heads, int) and isinstance(size, int) and size % HEAD_STEP == 0 and heads * size == whole[2]
        batch, rows, _ = whole
        return (
            sizes
            and all(self._shapes.get(one) == whole for one in equal)
            and self._shapes.get(mask)
            == (
                batch,
                1,
                rows,
                rows,
            )
        )

    def _heads(self, name: str, perm: list[int]) -> tuple[NodeProto, NodeProto] | None:
        transpose = self._before(name, "Transpose", perm)
        reshape = self._before(transpose.input[0], "Reshape") if transpose else None
        return (reshape, transpose) if reshape else None

    def _before(self, name: str, op_type: str, perm: list[int] | None = None) -> NodeProto | None:
        return self._fitting(self._made.get(name), name, op_type, perm)

    def _after(self, name: str, op_type: str, perm: list[int] | None = None) -> NodeProto | None:
        return self._fitting(self._reader.get(name), name, op_type, perm)

    def _fitting(self, node: NodeProto | None, name: str, op_type: str, perm: list[int] | None) -> NodeProto | None:
        """``node``, if it is of the kind and nothing else reads ``name`` between it and its neighbour."""
        if node is None or node.op_type != op_type or self._readers[name] != 1:
            return None
        return node if perm is None or _attribute(node, "perm", None) == perm else None


def _attribute(node: NodeProto, name: str, default: object) -> object:
    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)


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
