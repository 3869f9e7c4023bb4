"""The ONNX files that are measured: random weights, zeros where magnitudes are smallest, as many in every layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
import torchvision
import transformers
from onnx import TensorProto, helper, numpy_helper

from sparseticket.export import graph, quantize, sparse_op, sparse_rewrite
from sparseticket.export.break_even import BLOCKS, Figures
from sparseticket.export.linears import Linear, find_convolutions, find_linears
from sparseticket.export.loaded_model import load
from sparseticket.export.quiet import quiet
from sparseticket.hub import quiet_transformers

LAYERS = ((768, 768), (768, 3072), (3072, 768))  # inputs, outputs: those of BERT-base
OPSET = 20
COLOURS = 3
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
            known = {self._pattern: ALWAYS}
            sparse_rewrite.rewrite(model, known, int8=int8, of_convolutions=known, only=pruned_weights(model))
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


def write_convolution(file: Path, channels: int, outputs: int, kernel: int, stride: int) -> None:
    """One convolution with a bias and a Relu: x [batch, channels, height, width]."""
    draw = np.random.default_rng(0)
    weight = 0.02 * draw.standard_normal((outputs, channels, kernel, kernel), dtype=np.float32)
    moves = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
    made = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["h"], "convolution", **moves),
            helper.make_node("Relu", ["h"], ["y"]),
        ],
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", channels, "height", "width"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", outputs, None, None])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.zeros(outputs, np.float32), "b")],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10), file)


def write_resnet(file: Path) -> None:
    """A ResNet-50 as torchvision initializes it, BatchNorm folded: x [batch, 3, 224, 224]."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None).eval()
    with quiet():
        torch.onnx.export(
            model,
            (torch.zeros(2, 3, 224, 224),),
            file,
            dynamo=True,
            opset_version=OPSET,
            input_names=["x"],
            dynamic_shapes=({0: "batch"},),
            external_data=False,
        )


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
    pruned = pruned_weights(model)
    for tensor in model.graph.initializer:
        if tensor.name in pruned:
            layer, array = pruned[tensor.name], numpy_helper.to_array(tensor)
            weight = layer.matrix(array)
            shape = (weight.shape[0] // inputs, inputs, weight.shape[1] // outputs, outputs)
            blocks = weight.reshape(shape).transpose(0, 2, 1, 3)
            score = np.abs(blocks).sum((2, 3))
            dead = np.argpartition(score, round(sparsity * score.size), axis=None)[: round(sparsity * score.size)]
            alive = np.ones(score.size, bool)
            alive[dead] = False
            alive = alive.reshape(score.shape).repeat(inputs, 0).repeat(outputs, 1)
            zeroed = layer.array(np.where(alive, weight, np.float32(0)), array.shape)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(zeroed), tensor.name))


def pruned_weights(model: onnx.ModelProto) -> dict[str, Linear]:
    """By weight, the products with many rows (poolers and classifiers, each a Gemm, have one a text) and convolutions.

    Not the convolution that sees the colours: neither paper prunes it.
    """
    products = (linear for linear in find_linears(model) if linear.nodes[0].op_type == "MatMul")
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    convolutions = (one for one in find_convolutions(model) if shapes[one.weight][1] > COLOURS)
    return {layer.weight: layer for layer in (*products, *convolutions)}
