"""Models by name: an alias, a hub name or a folder. A new model is one registered function that returns its spec."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sparseticket.errors import UserError
from sparseticket.models.base import Head, ModelSpec, Network

__all__ = ["Head", "ModelSpec", "Network", "aliases", "image_models", "register", "resolve"]

_REGISTRY: dict[str, Callable[[str], ModelSpec]] = {}


def register(*names: str) -> Callable[[Callable[[str], ModelSpec]], Callable[[str], ModelSpec]]:
    """Register a function ``alias -> ModelSpec`` under each alias."""

    def add(make: Callable[[str], ModelSpec]) -> Callable[[str], ModelSpec]:
        for name in names:
            _REGISTRY[name] = make
        return make

    return add


def _load_families() -> None:
    from sparseticket.models import cifar_resnet, text, torchvision_resnet  # noqa: F401  (they register themselves)


def aliases() -> list[str]:
    """Every registered alias, sorted."""
    _load_families()
    return sorted(_REGISTRY)


def image_models() -> list[str]:
    """The aliases of the models for images, sorted."""
    return [alias for alias in aliases() if "resnet" in alias]


def resolve(name: str) -> ModelSpec:
    """The spec of an alias, a hub name ("google/bert_uncased_L-2_H-128_A-2") or a folder with a ``config.json``.

    Reads no weights. Raises :class:`UserError` with close matches where the name can be none of these.
    """
    _load_families()
    if name in _REGISTRY:
        return _REGISTRY[name](name)
    from torchvision.models import list_models

    if name in list_models() and not Path(name).exists():
        raise UserError(
            f"{name} of torchvision is not taken: what may be pruned, and where a channel ends, is known here of plain "
            f"ResNets only. Models for images: {', '.join(image_models())}."
        )
    from sparseticket.models.text import from_hub_or_folder

    return from_hub_or_folder(name, known=sorted(_REGISTRY))
