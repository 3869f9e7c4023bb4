"""What tasks on whole scenes share: the model at their size, and how many are evaluated at once."""

from __future__ import annotations

from sparseticket.models.vision import VisionModel

EVAL_BATCH = 8


def for_scenes(spec: VisionModel) -> VisionModel:
    """The model for scenes: at the size that its family sees them in (``models/stages.py``)."""
    return spec.for_images(spec.scene.size)
