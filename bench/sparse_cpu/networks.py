"""The ONNX files that are measured: random weights, zeros where magnitudes are smallest, as many in every layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
import transformers
from onnx import TensorProto, helper, numpy_helper

from sparseticket.export import graph, quantize, sparse_op, sparse_rewrite
from sparseticket.export.break_even import BLOCKS, Figures
from sparseticket.export.linears import find_linears
from sparseticket.export.loaded_model import load
from sparseticket.export.quiet import quiet
from sparseticket.hub import quiet_transformers

LAYERS = ((768, 768), (768, 3072), (3072, 768))  # inputs, outputs: those of BERT-base
OPSET = 20
ALWAYS = Figures(1.0, {1.0: 1.0})  # rewrite, whatever the table says: that is what is measured


class Files:
    """The files of one network with one pattern of zeros, made in ``folder`` when they are first asked for."""

    def __init__(self, whole: Path, folder: Path, pattern: str, sparsity: float) -> None:
        self._whole, self._folder, self._pattern, self._sparsity = whole, folder, pattern, sparsity

    def dense(self) -> Path:
        """The zeros among the other weights."""
        return self._pruned(self._whole, "dense.onnx")

    def for_deepsparse(self) -> Path:
        """The same as :meth:`dense` in the operators that it knows."""
        return self._pruned(for_deepsparse(self._whole), "deepsparse.onnx")

    def _pruned(self, whole: Path, name: str) -> Path:
        file = self._folder / name
        if not file.exists():
            model = onnx.load(whole)
            prune(model, self._pattern, self._sparsity)
            onnx.save(model, file)
        return file

    def dense_int8(self) -> Path:
        """The same, by ONNX Runtime's dynamic quantization."""
        file = self._folder / "dense-int8.onnx"
        if not file.exists():
            quantize.dynamic(self.dense(), file, large=False)
        return file

    def sparse(self, *, int8: bool = False) -> Path:
        """Pruned layers on the sparse operator; with ``int8`` its values and all other layers are INT8."""
        file = self._folder / ("sparse-int8.onnx" if int8 else "sparse.onnx")
        if not file.exists():
            model = onnx.load(self.dense())
            sparse_rewrite.rewrite(model, {self._pattern: ALWAYS}, int8=int8, only=pruned_weights(model))
            onnx.save(model, file)
            if int8:
                quantize.dynamic(file, file, large=False)
                model = onnx.load(file)
            sparse_op.add_functions(model)
            onnx.save(model, file)
        return file


def write_layer(file: Path, inputs: int, outputs: int) -> None:
    """One linear layer with a bias: x [batch, rows, inputs]."""
    draw = np.random.default_rng(0)
    weight = 0.02 * draw.standard_normal((inputs, outputs), dtype=np.float32)
    bias = 0.02 * draw.standard_normal(outputs, dtype=np.float32)
    made = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["p"], "product"), helper.make_node("Add", ["p", "b"], ["y"], "sum")],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "rows", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "rows", outputs])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10), file)


def write_bert(file: Path, **sizes: int) -> None:
    """A classifier in the shape of BERT-base (or of ``sizes``), as its configuration initializes it."""
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes))
    folder = file.with_suffix("")
    with quiet_transformers():
        model.save_pretrained(folder)
    graph.write(graph.trace(load(folder), OPSET), file)


def for_deepsparse(file: Path) -> Path:
    """What :func:`write_bert` wrote, in opset 13 by torch's old exporter.

    DeepSparse 1.8 reads no newer files than opset 17's, and runs no LayerNormalization by itself: of the new exporter's
    operators it ran 83 %, of the old one's 95 %, and those 1.25 times as fast.
    """
    older = file.with_name(f"{file.stem}-13.onnx")
    if not older.exists():
        model = load(file.with_suffix(""))
        dynamic = {name: {0: "batch", 1: "sequence"} for name in model.inputs}
        arguments = tuple(model.example(1, 8).values())
        with quiet():
            torch.onnx.export(
                model.module,
                arguments,
                older,
                dynamo=False,
                opset_version=13,
                input_names=list(model.inputs),
                output_names=list(model.outputs),
                dynamic_axes=dynamic,
            )
    return older


def prune(model: onnx.ModelProto, pattern: str, sparsity: float) -> None:
    """Write 0, in place, into that share of blocks whose weights are smallest, of each product's weight [K, N]."""
    outputs, inputs = BLOCKS[pattern]
    names = pruned_weights(model)
    for tensor in model.graph.initializer:
        if tensor.name in names:
            weight = numpy_helper.to_array(tensor)
            shape = (weight.shape[0] // inputs, inputs, weight.shape[1] // outputs, outputs)
            blocks = weight.reshape(shape).transpose(0, 2, 1, 3)
            score = np.abs(blocks).sum((2, 3))
            dead = np.argpartition(score, round(sparsity * score.size), axis=None)[: round(sparsity * score.size)]
            alive = np.ones(score.size, bool)
            alive[dead] = False
            alive = alive.reshape(score.shape).repeat(inputs, 0).repeat(outputs, 1)
            tensor.CopyFrom(numpy_helper.from_array(np.where(alive, weight, np.float32(0)), tensor.name))


def pruned_weights(model: onnx.ModelProto) -> set[str]:
    """The weights of all products with many rows; a pooler and a classifier (each a Gemm) take one row a text."""
    return {linear.weight for linear in find_linears(model) if linear.nodes[0].op_type == "MatMul"}
