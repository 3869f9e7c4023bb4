"""The layouts in which pre-trained vision backbones are published, brought to a ResNet's own names.

| from | in the file | here |
| --- | --- | --- |
| DataParallel, detection code, other SimCLRs | `module.`, `backbone.`, `encoder.` before every name | the plain name |
| MoCo v2 (facebookresearch/moco) | `module.encoder_q.*`, its head `fc.0`, `fc.2` | the backbone, the projection head |
| | `module.encoder_k.*`; `queue`, `queue_ptr` | left: momentum encoder; queue |
| SimCLR of the vision paper (VITA-Group/CV_LTH_Pre-training) | `fc.fc1`, `fc.fc2` | the projection head |
| SimCLR of TensorFlow, converted | `fc.weight` of a linear classifier | the head, where it has as many classes |
| solo-learn and others | `projector.*`, `momentum_backbone.*`, `classifier.*`, … | left |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from sparseticket.errors import UserError

WRAPPERS = ("module.", "backbone.", "encoder.")
QUERY = "encoder_q."
LEFT = {  # what a file holds beside a backbone and its head, by how names begin once wrappers are gone
    "momentum encoder": ("encoder_k.", "momentum_backbone.", "momentum_projector.", "momentum_encoder."),
    "queue": ("queue",),
    "projection head": ("projection_head.", "projector.", "projection.", "proj_head.", "predictor."),
    "classifier": ("classifier.",),
}
PROJECTION = {"fc.fc1.": "fc.0.", "fc.fc2.": "fc.2."}


@dataclass(frozen=True)
class Stored:
    """What a weights file holds: tensors by the backbone's plain names, and how many of what else were left in it."""

    tensors: dict[str, Tensor]
    left: Mapping[str, int]


def convert(tensors: Mapping[str, Tensor], source: str) -> Stored:
    """Bring the names in a weights file to plain ones.

    Raises:
        UserError: two names become the same one; ``source`` says where they are from.
    """
    of_moco = any(QUERY in name for name in tensors)
    plain: dict[str, Tensor] = {}
    left: Counter[str] = Counter()
    for stored_name, tensor in tensors.items():
        name = _without_wrappers(stored_name)
        if kind := _left_as(name):
            left[kind] += 1
            continue
        if of_moco and not name.startswith(QUERY):
            left["tensors beside the encoders"] += 1
            continue
        name = _without_wrappers(name.removeprefix(QUERY))
        for old, new in PROJECTION.items():
            name = new + name.removeprefix(old) if name.startswith(old) else name
        if name in plain:
            raise UserError(f"{source} holds the same tensor twice: {name}, with and without a prefix before it.")
        plain[name] = tensor
    return Stored(plain, left)


def _without_wrappers(name: str) -> str:
    while name.startswith(WRAPPERS):
        name = name.split(".", 1)[1]
    return name


def _left_as(name: str) -> str | None:
    return next((kind for kind, starts in LEFT.items() if name.startswith(starts)), None)
