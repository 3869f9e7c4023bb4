"""Trace a model into an ONNX graph with dynamic dimensions, and write it without this machine's paths in it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from torch.onnx import ONNXProgram

from sparseticket.errors import RunFailure
from sparseticket.export.loaded_model import LoadedModel

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
        with _quiet():
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
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RunFailure(f"torch could not export {type(model.module).__name__} to ONNX: {reason}") from error


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
    model = onnx.load(file, load_external_data=False)
    return next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what torch says about its own internals while it exports."""
    noisy = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)
