"""CIFAR-10 and CIFAR-100 in their published binary layout (www.cs.toronto.edu/~kriz/cifar.html).

The layout for Python is a pickle, which runs what it holds when it is loaded: it is not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sparseticket.errors import UserError
from sparseticket.models.vision import VisionModel
from sparseticket.tasks import register
from sparseticket.tasks.base import TaskOptions
from sparseticket.tasks.data_identity import digests, identity
from sparseticket.tasks.downloads import Published, fetch
from sparseticket.tasks.image_files import DataFiles, open_files
from sparseticket.tasks.image_task import ImageTask, Split

SIDE = 32
PIXELS = 3 * SIDE * SIDE  # bytes of a record, after its labels: the red, green and blue planes row by row


@dataclass(frozen=True)
class Layout:
    """What differs between the two. A record has ``labels`` bytes of labels, of which the last is the class."""

    task: str
    archive: Published
    train: tuple[str, ...]
    test: str
    names: str
    labels: int
    classes: int
    pickled: str

    @property
    def fetch(self) -> str:
        """What to do where the files are not there."""
        return (
            f"Fetch {self.archive.name} from www.cs.toronto.edu/~kriz/cifar.html and pass --data its folder or the "
            "file itself (images in class folders, packed or not, are --task image-folder)."
        )


CIFAR10 = Layout(
    "cifar10",
    Published("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
    train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test="test_batch.bin",
    names="batches.meta.txt",
    labels=1,
    classes=10,
    pickled="data_batch_1",
)
CIFAR100 = Layout(
    "cifar100",
    Published("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
    train=("train.bin",),
    test="test.bin",
    names="fine_label_names.txt",
    labels=2,
    classes=100,
    pickled="train",
)


class CifarTask(ImageTask):
    """``--data``: the unpacked folder, the one that it lies in, or the ``.tar.gz``; without, it is downloaded."""

    side = SIDE

    def __init__(self, layout: Layout, spec: VisionModel, options: TaskOptions) -> None:
        files = _open(layout, options.data)
        wanted = (*layout.train, layout.test)
        if absent := [name for name in (*wanted, layout.names) if name not in files.sizes]:
            raise UserError(f"--data {files.source}: {', '.join(absent)} missing. {layout.fetch}")
        class_names = files.read(layout.names).decode(errors="replace").split()
        if len(class_names) != layout.classes:
            raise UserError(f"{files.source}: {layout.names} has {len(class_names)} names. {layout.fetch}")
        super().__init__(
            layout.task,
            spec=spec,
            train=_read(layout, files, layout.train),
            evaluation=_read(layout, files, (layout.test,)),
            class_names=class_names,
            data_id=identity(digests(files, wanted)),
            batch_size=options.batch_size,
        )


@register("cifar10", kind="vision", recipe="cvpr21/cifar10")
class Cifar10(CifarTask):
    """50,000 images of 10 classes to train on, 10,000 to evaluate on. See :class:`CifarTask`."""

    def __init__(self, spec: VisionModel, options: TaskOptions) -> None:
        super().__init__(CIFAR10, spec, options)


@register("cifar100", kind="vision", recipe="cvpr21/cifar100")
class Cifar100(CifarTask):
    """50,000 images of 100 classes (the fine labels) to train on, 10,000 to evaluate on. See :class:`CifarTask`."""

    def __init__(self, spec: VisionModel, options: TaskOptions) -> None:
        super().__init__(CIFAR100, spec, options)


def _open(layout: Layout, data: Path | None) -> DataFiles:
    if data is None:
        data = fetch(layout.task, [layout.archive], otherwise=layout.fetch)
    if not data.exists():
        raise UserError(f"--data {data}: there is no such folder or file. {layout.fetch}")
    packed = data / layout.archive.name
    files = open_files(packed if packed.is_file() else data)
    root = files.around(layout.train[0])
    if root is not None:
        return files.below(root)
    if any(name.split("/")[-1] == layout.pickled for name in files.sizes):
        raise UserError(
            f"--data {data} holds the pickled files of {layout.task}, which could run code when loaded. "
            f"Take the binary version. {layout.fetch}"
        )
    raise UserError(f"--data {data}: no {layout.train[0]} there. {layout.fetch}")


def _read(layout: Layout, files: DataFiles, names: tuple[str, ...]) -> Split:
    records = np.concatenate([_records(layout, files, name) for name in names])
    pixels = torch.from_numpy(records[:, layout.labels :].reshape(-1, 3, SIDE, SIDE).copy())
    return Split(pixels, torch.from_numpy(records[:, layout.labels - 1].astype(np.int64)))


def _records(layout: Layout, files: DataFiles, name: str) -> np.ndarray:
    content, size = np.frombuffer(files.read(name), dtype=np.uint8), layout.labels + PIXELS
    if not content.size or content.size % size:
        raise UserError(
            f"{files.source}: {name} has {content.size} bytes, not a multiple of {size}: it is not of "
            f"{layout.task}'s binary version, or cut short. {layout.fetch}"
        )
    records = content.reshape(-1, size)
    labels = records[:, layout.labels - 1]
    if labels.max() >= layout.classes:
        row = int((labels >= layout.classes).argmax())
        raise UserError(
            f"{files.source}: {name}: record {row} has the label {labels[row]}, but labels go from 0 to "
            f"{layout.classes - 1} (another data set, or a damaged file). {layout.fetch}"
        )
    return records
