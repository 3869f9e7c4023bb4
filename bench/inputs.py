"""The inputs that every candidate gets: the same random tokens or images, in the names and types that each wants."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
from onnx import TensorProto
from torch.export import ExportedProgram

from sparseticket.errors import UserError
from sparseticket.export.loaded_model import LoadedModel
from sparseticket.models.positions import longest_sequence

TOKEN_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
DEFAULT_LENGTH = 128


@dataclass(frozen=True)
class Needs:
    """What a model takes.

    Attributes:
        names: its own name for each of ``input_ids``, ``attention_mask``, ``token_type_ids`` or ``pixel_values``.
        dtypes: numpy's name of the type of each.
        vocabulary: token ids are below it; None where that is not known.
        image: channels, height, width of images; None for text.
        batch: the only batch size it takes; None for any.
        length: the only sequence length it takes; None for any.
        max_length: the longest sequence it takes; None where that is not known.
    """

    names: dict[str, str]
    dtypes: dict[str, str]
    vocabulary: int | None = None
    image: tuple[int, int, int] | None = None
    batch: int | None = None
    length: int | None = None
    max_length: int | None = None


@dataclass(frozen=True)
class Feeds:
    """Inputs by their usual names: int64 [batch, length] tokens or float32 [batch, channels, height, width] images."""

    arrays: dict[str, np.ndarray]
    words: str
    tokens: int | None = None  # of a row; None for images

    def for_model(self, needs: Needs) -> dict[str, np.ndarray]:
        """Only what the model takes, under its own names, in its own types."""
        return {own: self.arrays[usual].astype(needs.dtypes[usual]) for usual, own in needs.names.items()}


def needs_of_model(model: LoadedModel) -> Needs:
    """What a PyTorch model takes."""
    names = {name: name for name in model.inputs}
    if model.image is not None:
        return Needs(names, {"pixel_values": "float32"}, image=model.image)
    return Needs(names, dict.fromkeys(names, "int64"), vocabulary=model.vocabulary, max_length=model.max_length or None)


def needs_of_onnx(file: Path) -> Needs:
    """What an ONNX file takes, read from its inputs; limits from the ``config.json`` beside it or from its tables."""
    graph = onnx.load(file, load_external_data=False).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    shapes = {value.name: [dim.dim_value or None for dim in value.type.tensor_type.shape.dim] for value in inputs}
    dtypes = {
        value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name for value in inputs
    }
    names = {usual: usual for usual in TOKEN_INPUTS if usual in shapes}
    if "input_ids" in names and len(names) == len(inputs):
        batch, length = (next((dims[axis] for dims in shapes.values() if dims[axis]), None) for axis in (0, 1))
        vocabulary, longest = _limits(file, graph, weights)
        return Needs(names, dtypes, vocabulary, batch=batch, length=length, max_length=longest)
    only = inputs[0].name if len(inputs) == 1 else None
    if only and len(shapes[only]) == 4 and dtypes[only] in ("float32", "float16"):
        batch, *image = shapes[only]
        if None in image:
            raise UserError(f"{file} leaves the size of its images open, so bench cannot choose one: fix the size.")
        channels, height, width = image
        return Needs(
            {"pixel_values": only}, {"pixel_values": dtypes[only]}, image=(channels, height, width), batch=batch
        )
    raise UserError(
        f"{file} takes {', '.join(shapes) or 'nothing'}: bench knows token inputs ({', '.join(TOKEN_INPUTS)}) "
        "and one float image input."
    )


def needs_of_program(program: ExportedProgram, folder: Path) -> Needs:
    """What a program in an export's folder takes, read from its inputs; the vocabulary from the ``config.json`` there.

    Raises:
        UserError: its inputs are not those that export gives a program.
    """
    inputs = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    inputs = {name: inputs[name] for name in program.graph_signature.user_inputs}
    names = {name: name for name in inputs}
    dtypes = {name: str(value.dtype).removeprefix("torch.") for name, value in inputs.items()}
    if list(inputs) == ["pixel_values"]:
        channels, height, width = map(int, inputs["pixel_values"].shape[1:])
        return Needs(names, dtypes, image=(channels, height, width))
    if "input_ids" in inputs and set(inputs) <= set(TOKEN_INPUTS):
        vocabulary, _ = _of_config(folder) or (None, None)
        length = inputs["input_ids"].shape[1]
        return Needs(names, dtypes, vocabulary, max_length=int(program.range_constraints[length.node.expr].upper))
    raise UserError(f"the program in {folder} takes {', '.join(inputs) or 'nothing'}: export it again.")


def make_feeds(needs: dict[str, Needs], *, batch: int, length: int | None) -> Feeds:
    """Inputs that every candidate takes (``needs`` by its name); random, never zeros.

    Raises:
        UserError: the candidates do not take the same inputs, or not of this batch and length.
    """
    images = {one.image for one in needs.values()}
    if len(images) > 1:
        raise UserError(
            "these cannot be compared, they take different inputs: "
            + "; ".join(f"{name}: {_words(one.image)}" for name, one in needs.items())
        )
    for name, one in needs.items():
        if one.batch not in (None, batch):
            raise UserError(f"{name} takes a batch of {one.batch} only: give --batch {one.batch}.")
    draw = np.random.default_rng(0)
    image = images.pop()
    if image is not None:
        array = draw.standard_normal((batch, *image), dtype=np.float32)
        return Feeds({"pixel_values": array}, f"batch {batch}, {_words(image)}")
    length = _length(needs, length)
    vocabulary = min((one.vocabulary for one in needs.values() if one.vocabulary), default=None)
    if vocabulary is None:
        raise UserError("the vocabulary of these files is not known: put the model's config.json beside one of them.")
    arrays = {
        "input_ids": draw.integers(1, vocabulary, (batch, length)),
        "attention_mask": np.ones((batch, length), np.int64),
        "token_type_ids": np.zeros((batch, length), np.int64),
    }
    return Feeds(arrays, f"batch {batch}, {length} tokens", length)


def _length(needs: dict[str, Needs], wanted: int | None) -> int:
    fixed = next((one.length for one in needs.values() if one.length), None)
    longest = min((one.max_length for one in needs.values() if one.max_length), default=None)
    length = wanted or fixed or min(DEFAULT_LENGTH, longest or DEFAULT_LENGTH)
    for name, one in needs.items():
        if one.length not in (None, length):
            raise UserError(f"{name} takes {one.length} tokens only: give --seq-length {one.length}.")
        if one.max_length is not None and length > one.max_length:
            raise UserError(f"{name} takes at most {one.max_length} tokens: give a smaller --seq-length.")
    return length


def _limits(file: Path, graph: onnx.GraphProto, weights: dict[str, TensorProto]) -> tuple[int | None, int | None]:
    """Vocabulary and longest sequence: the config's, else the rows of the table that ``input_ids`` looks up."""
    if found := _of_config(file.parent):
        return found
    for node in graph.node:
        if node.op_type == "Gather" and node.input[1] == "input_ids" and node.input[0] in weights:
            return weights[node.input[0]].dims[0], None
    return None, None


def _of_config(folder: Path) -> tuple[int, int] | None:
    """Vocabulary and longest sequence by the ``config.json`` there, if one is."""
    try:
        config = SimpleNamespace(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
        known = all(isinstance(value, int) for value in (config.vocab_size, config.max_position_embeddings))
        return (config.vocab_size, longest_sequence(config)) if known else None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def _words(image: tuple[int, int, int] | None) -> str:
    return "tokens" if image is None else "x".join(map(str, image)) + " images"
