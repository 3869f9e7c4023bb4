"""A saved vision network: weights beside ``model.json``, which says what they are of; described and loaded again."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load as safetensors_load
from torch import nn

from sparseticket.errors import UserError
from sparseticket.models.base import Head
from sparseticket.models.scene import MODULES
from sparseticket.models.vision_weights import check_fit

if TYPE_CHECKING:
    from sparseticket.models.vision import VisionModel

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
HEADLESS = 0  # classes of a saved backbone


@dataclass(frozen=True)
class SavedModel:
    """The ``model.json`` beside a saved network's weights. 0 classes: no head, the network ends in pooled features."""

    architecture: str
    classes: int
    class_names: tuple[str, ...] | None
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    small_stem: bool
    head: str = "image-classification"

    def spec(self) -> VisionModel:
        """The registry's entry of the architecture, for images of this format."""
        from sparseticket.models import resolve
        from sparseticket.models.vision import ImageFormat, VisionModel

        spec = resolve(self.architecture)
        assert isinstance(spec, VisionModel)  # as describe_saved checked
        format = ImageFormat(self.size, self.mean, self.std)
        return replace(spec.for_images(self.size), format=format, small_stem=self.small_stem)

    def random_module(self) -> nn.Module:
        """The network, with random weights."""
        spec = self.spec()
        module = spec.random_module(Head(self.head, self.classes), seed=0)
        if self.classes == HEADLESS:
            setattr(module, spec.head_name, nn.Identity())
        return module


def describe_saved(folder: Path) -> SavedModel:
    """Read and check ``model.json``; :class:`UserError` where it is not one that :meth:`VisionModel.save` wrote."""
    from sparseticket.models import image_models

    path = folder / DESCRIPTION
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder} holds no saved vision model: {path.name} cannot be read ({error}).") from error
    if isinstance(found, dict):
        found = {"head": "image-classification", **found}  # not said by files from before there were others
    if not isinstance(found, dict) or set(found) != set(SavedModel.__dataclass_fields__):
        raise UserError(f"{path} does not describe a saved vision model.")
    names = found["class_names"]
    sound = (
        isinstance(found["architecture"], str)
        and _is_count(found["classes"], least=HEADLESS)
        and _is_count(found["size"])
        and _are_three_numbers(found["mean"])
        and _are_three_numbers(found["std"])
        and min(found["std"]) > 0
        and isinstance(found["small_stem"], bool)
        and found["head"] in ("image-classification", *MODULES)
        and (names is None or (isinstance(names, list) and all(isinstance(name, str) for name in names)))
        and (names is None or len(names) == found["classes"])
    )
    if not sound:
        raise UserError(f"{path} does not describe a saved vision model: a field has a value that it cannot have.")
    for field in ("mean", "std"):
        found[field] = tuple(float(value) for value in found[field])
    if found["architecture"] not in image_models():  # never resolved unchecked: it may name this very folder
        raise UserError(f"{path}: {found['architecture']!r} is not a vision model.")
    return SavedModel(**{**found, "class_names": None if names is None else tuple(names)})


def _is_count(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= 1_000_000


def _are_three_numbers(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(part, int | float) and not isinstance(part, bool) and math.isfinite(part) for part in value)
    )


def load_saved(folder: Path) -> nn.Module:
    """The network that :meth:`VisionModel.save` wrote into ``folder``, on the CPU, in eval mode.

    Raises:
        UserError: no saved vision model there, a damaged file, or weights that are not those of the architecture.
    """
    saved = describe_saved(folder)
    module = saved.random_module()
    path = folder / WEIGHTS
    try:
        stored = safetensors_load(path.read_bytes())
    except Exception as error:  # safetensors' own error type is not an OSError or ValueError
        raise UserError(f"{path} cannot be read as safetensors: {error}.") from error
    live = module.state_dict()
    check_fit(stored, live, missing_allowed=frozenset(), source=str(path), model=saved.architecture)
    module.load_state_dict(stored, strict=False)  # check_fit allows absent BatchNorm counters only
    return module.eval()
