"""The tasks on whole scenes: importing this module registers them."""

from sparseticket.tasks.detection import Detection
from sparseticket.tasks.segmentation import Segmentation

__all__ = ["Detection", "Segmentation"]
