"""Load a trained model folder for inference, with what it takes: named inputs, their limits, and deployment files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparseticket.seeds import generator

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode, fp32, on the CPU, and how to feed it.

    Attributes:
        inputs: names of its inputs, in the order that ONNX gets them (``pixel_values`` for vision).
        outputs: names of its outputs.
        vocabulary: token ids are below it; 0 for vision.
        token_types: token types are below it; 0 where the model takes none.
        max_length: longest sequence in tokens; 0 for vision.
        image: channels, height, width; None for text.
        companions: files that are needed beside the model to deploy it, by name.
    """

    kind: Literal["text", "vision"]
    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    vocabulary: int = 0
    token_types: int = 0
    max_length: int = 0
    image: tuple[int, int, int] | None = None
    companions: Mapping[str, bytes] = field(default_factory=dict)

    def example(self, batch: int, length: int = 0, *, padded: bool = False, seed: int = 0) -> dict[str, Tensor]:
        """Random inputs: int64 tokens [batch, length] (rows padded at their end if asked) or float32 images."""
        draw = generator(seed, "example", batch, length)
        if self.image is not None:
            return {"pixel_values": torch.randn(batch, *self.image, generator=draw)}
        shape = (batch, length)
        mask = torch.ones(shape, dtype=torch.int64)
        if padded:
            real = torch.randint(1, length + 1, (batch, 1), generator=draw)
            mask = (torch.arange(length)[None, :] < real).long()
        tensors = {
            "input_ids": torch.randint(0, self.vocabulary, shape, generator=draw),
            "attention_mask": mask,
        }
        if self.token_types:
            tensors["token_type_ids"] = torch.randint(0, self.token_types, shape, generator=draw)
        return tensors

    @torch.inference_mode()
    def answer(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name."""
        result = self.module(**inputs) if self.kind == "text" else self.module(inputs["pixel_values"])
        return (
            {self.outputs[0]: result} if isinstance(result, Tensor) else {name: result[name] for name in self.outputs}
        )


def by_name(names: Sequence[str], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of ``given`` a model takes that takes ``names``; token types are 0 where they are left out."""
    return {name: given[name] if name in given else torch.zeros_like(given["input_ids"]) for name in names}


def load(folder: Path, *, attention: str | None = "eager") -> LoadedModel:
    """Load a model folder written by ``save_pretrained`` (text) or by this project (vision, or shrunk).

    ``attention`` is transformers' name of an implementation: "eager" gives the cleanest graph, None the fastest.

    Raises:
        UserError: it is damaged, incomplete, or of a kind that is not known.
    """
    if kind_of(folder) == "vision":
        return _load_vision(folder)
    from sparseticket.export.text_model import load_text

    return load_text(folder, attention)


def kind_of(folder: Path) -> Literal["text", "vision"]:
    """What a model folder holds, by its description; loads nothing."""
    return "vision" if (folder / "model.json").is_file() else "text"


def _load_vision(folder: Path) -> LoadedModel:
    from sparseticket.export.shrunk_folder import is_shrunk, load_shrunk
    from sparseticket.models.detector import Detector
    from sparseticket.models.vision_saved import describe_saved, load_saved

    described = asdict(describe_saved(folder))
    module = (load_shrunk if is_shrunk(folder) else load_saved)(folder).float()
    stem = next(layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
    preprocessing = {key: described[key] for key in ("size", "mean", "std", "classes", "class_names")}
    if isinstance(module, Detector):
        preprocessing["strides"] = [stride for (stride,) in module.anchor_generator.sizes]
    return LoadedModel(
        kind="vision",
        module=module,
        inputs=("pixel_values",),
        outputs=_outputs(described),
        image=(stem.in_channels, described["size"], described["size"]),
        companions={"preprocessing.json": (json.dumps(preprocessing, indent=2) + "\n").encode()},
    )


def _outputs(described: Mapping[str, Any]) -> tuple[str, ...]:
    from sparseticket.models.detector import OUTPUTS

    if described["head"] == "detection":
        return OUTPUTS
    return ("logits",) if described["classes"] else ("features",)
