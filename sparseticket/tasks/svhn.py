"""SVHN, cropped house numbers of 32 x 32 pixels (ufldl.stanford.edu/housenumbers), from its published MATLAB files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import SVHN

from sparseticket.errors import UserError
from sparseticket.models.vision import VisionModel
from sparseticket.tasks import register
from sparseticket.tasks.base import TaskOptions
from sparseticket.tasks.data_identity import digests, identity
from sparseticket.tasks.downloads import Published, fetch
from sparseticket.tasks.image_files import DataFiles, open_files
from sparseticket.tasks.image_task import ImageTask, Split

SIDE = 32
TRAIN, TEST = "train_32x32.mat", "test_32x32.mat"
FETCH = f"Fetch {TRAIN} and {TEST} from ufldl.stanford.edu/housenumbers and pass --data their folder."


@register("svhn", kind="vision", recipe="cvpr21/svhn")
class Svhn(ImageTask):
    """73,257 digits to train on, 26,032 to evaluate on; as in the released code neither shifted nor mirrored.

    ``--data``: the folder with ``train_32x32.mat`` and ``test_32x32.mat``; without, they are downloaded.
    """

    side = SIDE

    def __init__(self, spec: VisionModel, options: TaskOptions) -> None:
        files = _open(options.data)
        super().__init__(
            "svhn",
            spec=spec,
            train=_read(files, TRAIN),
            evaluation=_read(files, TEST),
            class_names=[str(digit) for digit in range(10)],
            data_id=identity(digests(files, (TRAIN, TEST))),
            batch_size=options.batch_size,
            shift=False,
            flip=False,
        )


def _open(data: Path | None) -> DataFiles:
    if data is None:
        published = [Published(url, md5) for url, _, md5 in (SVHN.split_list["train"], SVHN.split_list["test"])]
        data = fetch("svhn", published, otherwise=FETCH)
    files = open_files(data)
    root = files.around(TRAIN, TEST)
    if root is None:
        raise UserError(f"--data {data}: {TRAIN} and {TEST} are not there together. {FETCH}")
    return files.below(root)


def _read(files: DataFiles, name: str) -> Split:
    from scipy.io import loadmat  # MATLAB's format 5 holds arrays; nothing in it is run

    content = files.read(name)
    try:
        found = loadmat(io.BytesIO(content), variable_names=("X", "y"))
        images, labels = found["X"], found["y"].reshape(-1)
    except Exception as error:  # scipy raises nearly anything on damaged files
        raise UserError(f"{files.source}: {name} is not SVHN's file, or damaged ({error!r}). {FETCH}") from error
    sound = images.dtype == np.uint8 and images.shape == (SIDE, SIDE, 3, len(labels)) and len(labels)
    if not (sound and labels.dtype.kind in "iu" and labels.min() >= 1 and labels.max() <= 10):
        raise UserError(
            f"{files.source}: {name} holds X of {images.dtype} {images.shape} and y of {labels.dtype} "
            f"({len(labels)}), not SVHN's images and labels from 1 to 10. {FETCH}"
        )
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1)))
    return Split(pixels, torch.from_numpy(labels.astype(np.int64) % 10))  # SVHN writes the digit 0 as 10
