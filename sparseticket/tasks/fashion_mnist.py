"""Fashion-MNIST, grey images of 28 x 28 pixels (github.com/zalandoresearch/fashion-mnist), from its published files."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import FashionMNIST

from sparseticket.errors import UserError
from sparseticket.models.vision import VisionModel
from sparseticket.tasks import register
from sparseticket.tasks.base import TaskOptions
from sparseticket.tasks.data_identity import identity, sha256
from sparseticket.tasks.downloads import Published, fetch
from sparseticket.tasks.image_files import LARGEST_FILE, DataFiles, open_files
from sparseticket.tasks.image_task import ImageTask, Split

SIDE = 28
FILES = tuple(name.removesuffix(".gz") for name, _ in FashionMNIST.resources)  # images and labels, of train and test
MAGIC = {3: 0x803, 1: 0x801}  # unsigned bytes, of so many dimensions
FETCH = (
    f"Fetch {FILES[0]}.gz, {FILES[1]}.gz, {FILES[2]}.gz and {FILES[3]}.gz from "
    "github.com/zalandoresearch/fashion-mnist and pass --data their folder."
)


@register("fashion-mnist", kind="vision", recipe="cvpr21/fashion-mnist")
class FashionMnist(ImageTask):
    """60,000 images to train on, 10,000 to evaluate on, at their own 28 x 28; neither shifted nor mirrored.

    The grey value is given to all three channels. ``--data``: the folder with the four files, gzipped or not;
    without, they are downloaded.
    """

    side = SIDE

    def __init__(self, spec: VisionModel, options: TaskOptions) -> None:
        files = _open(options.data)
        train, evaluation = (_split(files, *FILES[at : at + 2]) for at in (0, 2))
        super().__init__(
            "fashion-mnist",
            spec=spec,
            train=train,
            evaluation=evaluation,
            class_names=FashionMNIST.classes,
            data_id=identity({name: sha256(_unpacked(files, name)) for name in FILES}),
            batch_size=options.batch_size,
            shift=False,
            flip=False,
        )


def _open(data: Path | None) -> DataFiles:
    if data is None:
        published = [Published(FashionMNIST.mirrors[0] + name, md5) for name, md5 in FashionMNIST.resources]
        data = fetch("fashion-mnist", published, otherwise=FETCH)
    files = open_files(data)
    for names in (FILES, [f"{name}.gz" for name in FILES]):
        root = files.around(*names)
        if root is not None:
            return files.below(root)
    raise UserError(f"--data {data}: the four files are not there together. {FETCH}")


def _split(files: DataFiles, images: str, labels: str) -> Split:
    pixels, classes = _array(files, images, 3), _array(files, labels, 1)
    if pixels.shape[1:] != (SIDE, SIDE) or len(pixels) != len(classes) or not len(classes) or classes.max() > 9:
        raise UserError(
            f"{files.source}: {images} has images {pixels.shape} and {labels} {len(classes)} labels up to "
            f"{classes.max(initial=0)}, not Fashion-MNIST's 28 x 28 images of ten classes. {FETCH}"
        )
    grey = torch.from_numpy(pixels.copy())[:, None]
    return Split(grey.expand(-1, 3, -1, -1), torch.from_numpy(classes.astype(np.int64)))


def _array(files: DataFiles, name: str, dimensions: int) -> np.ndarray:
    """A file in MNIST's idx format: magic number and sizes as big-endian int32, then the bytes."""
    content = _unpacked(files, name)
    header = np.frombuffer(content[: 4 * (1 + dimensions)], dtype=">i4").astype(np.int64)
    if len(header) != 1 + dimensions or header[0] != MAGIC[dimensions] or header[1:].min() < 0:
        raise UserError(f"{files.source}: {name} does not begin as an idx file of bytes does. {FETCH}")
    values = np.frombuffer(content, dtype=np.uint8, offset=4 * (1 + dimensions))
    if len(values) != header[1:].prod():
        raise UserError(f"{files.source}: {name} holds {len(values)} values, and states {header[1:].tolist()}. {FETCH}")
    return values.reshape(header[1:].tolist())


def _unpacked(files: DataFiles, name: str) -> bytes:
    if name in files.sizes:
        return files.read(name)
    packed = files.read(f"{name}.gz")
    try:
        content = gzip.GzipFile(fileobj=io.BytesIO(packed)).read(LARGEST_FILE + 1)
    except Exception as error:  # gzip raises its own, EOFError and zlib.error
        raise UserError(f"{files.source}: {name}.gz cannot be unpacked ({error}). {FETCH}") from error
    if len(content) > LARGEST_FILE:
        raise UserError(f"{files.source}: {name}.gz unpacks to more than {LARGEST_FILE:,} bytes. {FETCH}")
    return content
