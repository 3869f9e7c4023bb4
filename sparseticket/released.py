"""Import masks that the papers' code released: dictionaries of ``*.weight_mask`` tensors, 0 or 1, under live names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sparseticket import masks as mask_algebra
from sparseticket.errors import UserError
from sparseticket.masks import Masks
from sparseticket.models import Head, resolve
from sparseticket.progress import Screen
from sparseticket.provenance import versions
from sparseticket.rewind import Origin
from sparseticket.ticket import Ticket
from sparseticket.weights_file import read_tensors

SUFFIX = "_mask"
ANY_HEAD = {"text": Head("sequence-classification", 2), "vision": Head("image-classification", 10)}


def import_released(file: Path, *, model: str, weights: Path | None, screen: Screen) -> Ticket:
    """A ticket of the masks in ``file``, tied to the θ_p of ``model`` (or of ``weights``).

    Raises:
        UserError: no masks in the file, a value that is not 0 or 1, or a name or shape that the model does not have.
    """
    spec = resolve(model)
    found = read_masks(file)
    network = spec.build(ANY_HEAD[spec.kind], seed=0, weights=weights)
    prunable = {name: network.backbone()[name] for name in network.prunable}
    masks = _by_backbone_name(found, prunable, model)
    missing = [name for name in prunable if name not in masks]
    if missing:
        screen.say(f"Note: {len(missing)} prunable tensors have no mask in {file.name} and stay dense: {missing[0]}, …")
    theta = Origin.of(network).theta(network.pretrained)
    if unknown := [name for name in masks if name not in theta]:
        raise UserError(f"{unknown[0]} is not in the pre-trained weights of {model!r}: give them with --weights FILE.")
    ordered = {name: masks[name] for name in prunable if name in masks}
    return Ticket(
        masks=ordered,
        model=spec.name,
        theta=theta,
        scheduled_sparsity=mask_algebra.sparsity(ordered),
        protocol={"name": "imported"},
        versions=versions(),
    )


def read_masks(file: Path) -> dict[str, Tensor]:
    """The ``*.weight_mask`` tensors in ``file``, by the names of their weights."""
    content = read_tensors(file, what="the mask file")
    masks = {name.removesuffix(SUFFIX): mask for name, mask in content.items() if name.endswith("weight" + SUFFIX)}
    if not masks:
        raise UserError(f"{file} holds no entry named *.weight_mask; its first is {next(iter(content))!r}.")
    for name, mask in masks.items():
        if not ((mask == 0) | (mask == 1)).all():
            raise UserError(f"{file}: the mask of {name} holds values that are neither 0 nor 1.")
    return masks


def _by_backbone_name(found: dict[str, Tensor], prunable: Mapping[str, Tensor], model: str) -> Masks:
    """Strip ``module.``, ``bert.``, ``module.encoder_q.`` and the like: a name is known by its end."""
    masks: Masks = {}
    for name, mask in found.items():
        parts = name.split(".")
        known = next((tail for i in range(len(parts)) if (tail := ".".join(parts[i:])) in prunable), None)
        if known is None:
            raise UserError(f"{model!r} has nothing prunable called {name}: are these the masks of another model?")
        if known in masks:
            raise UserError(f"there are two masks for {known}: keep one encoder's in the file.")
        if mask.shape != prunable[known].shape:
            raise UserError(
                f"the mask of {known} is {tuple(mask.shape)}; {model!r} has {tuple(prunable[known].shape)}."
            )
        masks[known] = mask.bool()
    return masks
