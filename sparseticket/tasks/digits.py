"""Scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels that come with the package."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sparseticket.errors import UserError
from sparseticket.models.vision import VisionModel
from sparseticket.tasks import register
from sparseticket.tasks.base import TaskOptions
from sparseticket.tasks.image_task import ImageTask, Split

SIDE = 32  # 8x8 digits, four times as large: a crop padded by 4 moves them by at most one of their own pixels
WHITE = 16  # the data set's largest grey value


@register("digits", kind="vision", recipe="demo/digits")
class Digits(ImageTask):
    """Needs no data: 1,437 digits to train on, 360 to evaluate on, each class in proportion. No flips."""

    side = SIDE

    def __init__(self, spec: VisionModel, options: TaskOptions) -> None:
        if options.data is not None:
            raise UserError("task digits brings its own images: leave --data out, or choose --task image-folder.")
        found = load_digits()
        grey = torch.from_numpy(found.images).to(torch.float32).div(WHITE).mul(255)[:, None]
        large = F.interpolate(grey, size=(SIDE, SIDE), mode="bilinear", antialias=True).round().to(torch.uint8)
        pixels, labels = large.expand(-1, 3, -1, -1), torch.from_numpy(found.target).to(torch.int64)
        train, evaluation = (
            torch.from_numpy(rows)
            for rows in train_test_split(np.arange(len(labels)), test_size=0.2, stratify=found.target, random_state=0)
        )
        digest = hashlib.sha256(found.images.tobytes())
        for part in (labels, train, evaluation):
            digest.update(part.numpy().astype("<i8").tobytes())
        super().__init__(
            "digits",
            spec=spec,
            train=Split(pixels[train], labels[train]),
            evaluation=Split(pixels[evaluation], labels[evaluation]),
            class_names=[str(digit) for digit in found.target_names],
            data_id=digest.hexdigest(),
            batch_size=options.batch_size,
            flip=False,
        )
