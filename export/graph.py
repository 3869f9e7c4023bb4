"""Trace a model into an ONNX graph with dynamic dimensions, and write it without this machine's paths in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import torch
from torch.onnx import ONNXProgram

from sparseticket.errors import RunFailure, UserError, reason
from sparseticket.export.graph_index import opset_of
from sparseticket.export.loaded_model import LoadedModel
from sparseticket.export.quiet import quiet

TRACED_BATCH = 2  # a batch of 1 would be burnt into the graph as a constant
TRACED_LENGTH = 8


def trace(model: LoadedModel, opset: int) -> ONNXProgram:
    """The ONNX program of ``model``: batch is dynamic and named "batch", the sequence "sequence".

    Raises:
        RunFailure: the exporter of torch cannot express this model.
    """
    length = min(TRACED_LENGTH, model.max_length)
    example = model.example(TRACED_BATCH, length)
    dimensions = {0: "batch"} if model.kind == "vision" else {0: "batch", 1: "sequence"}
    by_name = model.kind == "text"
    try:
        with quiet():
            return torch.onnx.export(
                model.module,
                () if by_name else tuple(example.values()),
                kwargs=example if by_name else None,
                dynamo=True,
                opset_version=opset,
                input_names=list(model.inputs),
                output_names=list(model.outputs),
                dynamic_shapes={name: dimensions for name in model.inputs} if by_name else (dimensions,),
                verbose=False,
            )
    except Exception as error:
        raise RunFailure(
            f"torch could not export {type(model.module).__name__} to ONNX: {reason(error.__cause__ or error)}\n"
            "For PyTorch it can be written with --format hf or safetensors."
        ) from error


def fuse(program: ONNXProgram) -> dict[str, int]:
    """Put ONNX Runtime's own operators where they fit; how often each pattern was found, by onnxscript's name of it.

    Raises:
        UserError: no attention was fused, so that the file would be no faster and no longer be plain ONNX.
    """
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    with quiet():
        program.model, counts = optimize_for_ort(program.model)
    if not counts.get("attention"):
        raise UserError("--optimize ort found no attention in this model that it can fuse: leave it out.")
    return {pattern: count for pattern, count in counts.items() if count}


def fold_transposed_weights(program: ONNXProgram) -> None:
    """Store a weight that the graph transposes (a tied MLM decoder) transposed: the quantizer skips it otherwise."""
    graph = program.model.graph
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Transpose" else None
        if source is None or source.const_value is None or not source.is_initializer():
            continue
        axes = node.attributes["perm"].as_ints() if "perm" in node.attributes else None
        folded = node.outputs[0]
        array = np.ascontiguousarray(source.const_value.numpy().transpose(axes))
        stored = onnx_ir.Value(name=f"{folded.name}_stored", const_value=onnx_ir.tensor(array))
        stored.type, stored.shape = folded.type, onnx_ir.Shape(array.shape)
        graph.register_initializer(stored)
        folded.replace_all_uses_with(stored)
        graph.remove(node, safe=True)


def write(program: ONNXProgram, file: Path) -> None:
    """Write the program to ``file``, weights in ``file``.data beside it where they exceed protobuf's 2 GB.

    Metadata go: each node carries the Python stack that made it, with paths of the machine it was made on.
    """
    for graph in (program.model.graph, *program.model.functions.values()):
        graph.metadata_props.clear()
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
    for value in (*program.model.graph.inputs, *program.model.graph.initializers.values()):
        value.metadata_props.clear()
    program.model.metadata_props.clear()
    program.save(file)


def written_opset(file: Path) -> int:
    """The version of ONNX's own operators that ``file`` says it is written in."""
    return opset_of(onnx.load(file, load_external_data=False))
