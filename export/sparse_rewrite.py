"""Put the sparse operators in the place of linear layers and convolutions, where the table says that they win."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper
from torch import nn

from sparseticket.errors import UserError
from sparseticket.export import sparse_op
from sparseticket.export.add_layer_norm import fuse_norms
from sparseticket.export.attention import fuse_attentions
from sparseticket.export.break_even import Choice, Figures, choose
from sparseticket.export.graph_index import keep_only
from sparseticket.export.layers import TRANSPOSED
from sparseticket.export.linears import Linear, find_convolutions, find_linears

DENSE = "dense"
INT8_BLOCK = 4


@dataclass(frozen=True)
class Decision:
    """What became of one linear layer: ``runs`` is the pattern it runs in, or "dense"."""

    weight: str
    runs: str
    why: str

    def report(self, names: Mapping[str, str]) -> dict[str, Any]:
        """For the report, under the layer's name instead of the initializer's where ``names`` has it."""
        return {"layer": names.get(self.weight, self.weight), "runs": self.runs, "why": self.why}


def check_wins(
    module: nn.Module, known: Mapping[str, Figures], target: str, of_convolutions: Mapping[str, Figures] | None = None
) -> None:
    """Refuse, from the zeros of the weights alone, a model in which :func:`rewrite` would change nothing.

    Raises:
        UserError: names the layer that comes nearest to its break-even.
    """
    if not known:
        raise UserError(
            f"the table has no figures of these sparse operators on {target}: fp32 was measured with AVX2 and AVX-512, "
            "INT8 with VNNI (--target avx2, avx512, vnni). Leave out --quantize or --layout sparse-op."
        )
    found = []
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            found.append((name, choose(layer.weight.detach().cpu().numpy().T, known)))
        elif isinstance(layer, nn.Conv2d) and layer.groups == 1 and of_convolutions:
            found.append((name, choose(layer.weight.detach().flatten(1).cpu().numpy().T, of_convolutions)))
    choices = [(name, choice) for name, choice in found if choice is not None]
    if any(choice.wins for _, choice in choices):
        return
    nearest = min(choices, key=lambda one: one[1].density / one[1].break_even, default=None)
    raise UserError(
        "no layer is sparse enough for the sparse operator to be faster than dense"
        + (f"; the nearest is {nearest[0]}: {nearest[1].why}" if nearest else "")
        + ". Leave --layout dense, or export a sparser ticket; with --pattern block:4x1 it pays from fewer zeros on."
    )


def rewrite(
    model: onnx.ModelProto,
    known: Mapping[str, Figures],
    *,
    int8: bool,
    of_convolutions: Mapping[str, Figures] | None = None,
    only: Collection[str] | None = None,
) -> list[Decision]:
    """Replace, in place, each layer that is faster so.

    ``known`` are the figures of the target by pattern for linear layers; without ``of_convolutions`` those stay dense.
    ``only`` are the weights that may be replaced; None is all.

    The nodes have no bodies yet (:func:`sparse_op.add_functions`), so that what is left dense can still be quantized.
    """
    fuse_norms(model, sparse_op.DOMAIN)
    fuse_attentions(model, sparse_op.DOMAIN)
    writer, decisions = _Writer(model, int8), []
    for linear in (*find_linears(model), *(find_convolutions(model) if of_convolutions else ())):
        if only is not None and linear.weight not in only:
            continue
        choice = choose(writer.weight(linear), of_convolutions if linear.convolution else known)
        if choice is None:
            decisions.append(Decision(linear.weight, DENSE, f"more than {sparse_op.LARGEST:,} inputs or outputs"))
            continue
        decisions.append(Decision(linear.weight, choice.pattern if choice.wins else DENSE, choice.why))
        if choice.wins:
            writer.replace(linear, choice)
    writer.finish()
    sparse_op.declare(model)
    return decisions


class _Writer:
    """The graph while it is rewritten."""

    def __init__(self, model: onnx.ModelProto, int8: bool) -> None:
        self._graph, self._int8 = model.graph, int8
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._added: dict[str, np.ndarray] = {}
        self._encoded: dict[str, sparse_op.Encoded] = {}
        self._instead: dict[str, list[NodeProto]] = {}  # by the output of the last node that they replace
        self._gone: set[str] = set()  # outputs

    def weight(self, linear: Linear) -> np.ndarray:
        """W [K, N]."""
        return linear.matrix(numpy_helper.to_array(self._tensors[linear.weight]))

    def replace(self, linear: Linear, choice: Choice) -> None:
        weight = self.weight(linear)
        outputs, block = weight.shape[1], INT8_BLOCK if self._int8 else choice.block
        name = linear.weight + (TRANSPOSED if linear.turned else "")
        if name not in self._encoded:  # two layers may share a weight
            self._encoded[name] = sparse_op.encode(sparse_op.pad_outputs(weight, block), block, int8=self._int8)
        encoded = self._encoded[name]
        inputs = [linear.x, *self._add_weight(name, encoded), self._add_bias(linear, name, encoded.shape[1])]
        self._instead[linear.output] = list(self._nodes(linear, encoded, inputs, outputs, name))
        self._gone |= {node.output[0] for node in linear.nodes}

    def _nodes(
        self, linear: Linear, encoded: sparse_op.Encoded, inputs: list[str], outputs: int, name: str
    ) -> Iterator[NodeProto]:
        padded = encoded.shape[1] > outputs
        output = f"{linear.output}_padded" if padded else linear.output
        yield sparse_op.make_node(
            encoded, inputs, output, linear.activation, f"{linear.output}_sparse", linear.convolution
        )
        if padded:
            cut = [f"{name}{sparse_op.SUFFIX}{part}" for part in ("first_output", "outputs", "outputs_axis")]
            axis = 1 if linear.convolution else -1
            self._added |= dict(zip(cut, (np.array([value]) for value in (0, outputs, axis)), strict=True))
            yield helper.make_node("Slice", [output, *cut], [linear.output], name=f"{linear.output}_cut")

    def _add_weight(self, name: str, encoded: sparse_op.Encoded) -> list[str]:
        parts = {"values": encoded.values, "index": encoded.index, "scale": encoded.scale}
        named = {f"{name}{sparse_op.SUFFIX}{part}": array for part, array in parts.items() if array is not None}
        self._added |= named
        return list(named)

    def _add_bias(self, linear: Linear, name: str, outputs: int) -> str:
        bias = np.zeros(0, np.float32) if linear.bias is None else numpy_helper.to_array(self._tensors[linear.bias])
        if len(bias) == outputs:
            return linear.bias
        added = f"{name}{sparse_op.SUFFIX}bias" + (f"_{linear.bias}" if linear.bias else "")
        self._added[added] = np.pad(bias, (0, outputs - len(bias)))
        return added

    def finish(self) -> None:
        """Write the new nodes and weights, and drop what nothing reads any more."""
        graph, nodes = self._graph, []
        for node in graph.node:
            nodes += self._instead.get(node.output[0], [] if node.output[0] in self._gone else [node])
        keep_only(graph.node, nodes)
        read = set(_names_read(graph))
        keep_only(graph.initializer, [one for one in graph.initializer if one.name in read])
        graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in self._added.items())
        made = {name for node in nodes for name in node.output}
        keep_only(graph.value_info, [one for one in graph.value_info if one.name in made or one.name not in self._gone])


def _names_read(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _names_read(inner)
    yield from (value.name for value in graph.output)
