"""CIFAR-10 in its published binary layout (www.cs.toronto.edu/~kriz/cifar.html)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from sparseticket.errors import UserError
from sparseticket.models.vision import VisionModel
from sparseticket.tasks import register
from sparseticket.tasks.base import TaskOptions
from sparseticket.tasks.image_files import identity
from sparseticket.tasks.image_task import ImageTask, Split

FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILES = ("test_batch.bin",)
SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE  # bytes: the label, then the red, green and blue planes row by row
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FETCH = "fetch cifar-10-binary.tar.gz from www.cs.toronto.edu/~kriz/cifar.html, unpack it, and pass --data its folder"


@register("cifar10", kind="vision", recipe="cvpr21/cifar10")
class Cifar10(ImageTask):
    """``--data``: the folder ``cifar-10-batches-bin``, or the one that it lies in."""

    def __init__(self, spec: VisionModel, options: TaskOptions) -> None:
        folder = _find(options.data)
        files = [folder / name for name in (*TRAIN_FILES, *TEST_FILES)]
        absent = [file.name for file in files if not file.is_file()]
        if absent:
            raise UserError(f"--data {folder}: {', '.join(absent)} missing. Please {FETCH}.")
        super().__init__(
            "cifar10",
            spec=spec,
            train=_read([folder / name for name in TRAIN_FILES]),
            evaluation=_read([folder / name for name in TEST_FILES]),
            class_names=CLASS_NAMES,
            data_id=identity({file.name: file.stat().st_size for file in files}),
            batch_size=options.batch_size,
        )

    def adapt(self, spec: VisionModel) -> VisionModel:
        """See :meth:`ImageTask.adapt`: images are 32x32, so torchvision's ResNets get the small stem."""
        return super().adapt(spec if spec.format.size == SIDE else spec.for_images(SIDE))


def _find(data: Path | None) -> Path:
    if data is None:
        raise UserError(f"task cifar10 needs --data: {FETCH}.")
    if not data.is_dir():
        raise UserError(f"--data {data}: there is no such folder. For cifar10, {FETCH}.")
    folders = (data, data / FOLDER)
    for folder in folders:
        if (folder / TRAIN_FILES[0]).is_file():
            return folder
    pickled = (*folders, data / "cifar-10-batches-py")
    if any((folder / TRAIN_FILES[0].removesuffix(".bin")).is_file() for folder in pickled):
        raise UserError(
            f"--data {data} holds the pickled CIFAR-10, which could run code when loaded. "
            f"Take the binary version: {FETCH}."
        )
    raise UserError(f"--data {data}: no {TRAIN_FILES[0]} there, nor in {FOLDER}. Please {FETCH}.")


def _read(files: list[Path]) -> Split:
    records = np.concatenate([_records(file) for file in files])
    pixels = torch.from_numpy(records[:, 1:].reshape(-1, 3, SIDE, SIDE).copy())
    return Split(pixels, torch.from_numpy(records[:, 0].astype(np.int64)))


def _records(file: Path) -> np.ndarray:
    content = np.fromfile(file, dtype=np.uint8)
    if not content.size or content.size % RECORD:
        raise UserError(
            f"{file} has {content.size} bytes, not a multiple of {RECORD}: it is not CIFAR-10's binary file, "
            f"or cut short. Please {FETCH}."
        )
    records = content.reshape(-1, RECORD)
    if records[:, 0].max() >= len(CLASS_NAMES):
        row = int((records[:, 0] >= len(CLASS_NAMES)).argmax())
        raise UserError(
            f"{file}: record {row} has the label {records[row, 0]}, but labels go from 0 to 9 "
            f"(CIFAR-100, or a damaged file). Please {FETCH}."
        )
    return records
