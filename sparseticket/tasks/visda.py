"""VisDA-2017's classification: renderings to train on, photographs to evaluate on (ai.bu.edu/visda-2017)."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import torch

from sparseticket.errors import UserError
from sparseticket.models.vision import VisionModel
from sparseticket.tasks import register
from sparseticket.tasks.base import TaskOptions
from sparseticket.tasks.class_folders import LabelledFiles
from sparseticket.tasks.data_identity import check_apart, digests, identity
from sparseticket.tasks.image_files import DataFiles, open_files
from sparseticket.tasks.image_folder import FileImages
from sparseticket.tasks.image_pixels import resize_to

LIST = "image_list.txt"
SPLITS = ("train", "validation")
CLASSES = 12
FETCH = (
    "Fetch train.tar and validation.tar as ai.bu.edu/visda-2017 says, and pass --data their folder: it takes them "
    f"packed (.tar or .zip) or unpacked, as train/{LIST}, train/<class>/*.png, validation/{LIST} and so on."
)


@register("visda17", kind="vision", recipe="cvpr21/visda17")
class VisDA(FileImages):
    """152,397 renderings of 12 classes to train on, 55,388 photographs to evaluate on.

    As in the released code, training crops cover 0.75 to 1.33 of an image (larger than it, torchvision takes all of it
    that has the shape), and evaluation squeezes the whole image to the model's size.
    """

    scale = (0.75, 1.33)
    large_view = staticmethod(resize_to)

    def __init__(self, spec: VisionModel, options: TaskOptions) -> None:
        if options.data is None:
            raise UserError(f"task visda17 needs --data. {FETCH}")
        files = _open(options.data)
        names: dict[int, str] = {}
        train, validation = (_listed(files, split, names) for split in SPLITS)
        if sorted(names) != list(range(CLASSES)):
            raise UserError(
                f"--data {options.data}: the lists have classes {sorted(names)}, not 0 to {CLASSES - 1}. {FETCH}"
            )
        class_names = tuple(names[number] for number in range(CLASSES))
        lists = (f"{split}/{LIST}" for split in SPLITS)
        found = digests(files, (*train.names, *validation.names, *lists))
        self.notes = check_apart(files, *([found[name] for name in split.names] for split in (train, validation)))
        data_id = identity(found)
        super().__init__("visda17", spec, files, train, validation, class_names, data_id, options.batch_size)


def _open(data: Path) -> DataFiles:
    """Both splits by the names ``train/…`` and ``validation/…``, out of one folder or archive, or of one for each."""
    packed = {split: _archive(data, split) for split in SPLITS}
    if not all(packed.values()):
        files = open_files(data)
        root = files.around(*SPLITS)
        if root is None:
            raise UserError(f"--data {data}: there is no train beside validation. {FETCH}")
        return files.below(root)
    parts: dict[str, DataFiles] = {}
    for split, path in packed.items():
        assert path is not None
        files = open_files(path)
        root = files.around(LIST)
        if root is None:
            raise UserError(f"--data {path}: there is no {LIST} in it. {FETCH}")
        parts[split] = files.below(root)
    sizes = {f"{split}/{name}": size for split, files in parts.items() for name, size in files.sizes.items()}

    def get(name: str) -> bytes:
        split, _, inside = name.partition("/")
        return parts[split].get(inside)

    return DataFiles(data, sizes, get)


def _archive(data: Path, split: str) -> Path | None:
    candidates = (data / f"{split}{suffix}" for suffix in (".tar", ".zip"))
    return next((path for path in candidates if path.is_file()), None)


def _listed(files: DataFiles, split: str, names: dict[int, str]) -> LabelledFiles:
    """The files of a split as its list has them, in its order; ``names`` learns what each class's folder is called."""
    place = f"{split}/{LIST}"
    lines = files.read(place).decode(errors="replace").split("\n") if place in files.sizes else []
    listed: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        path, _, label = line.strip().rpartition(" ")
        name, folder = f"{split}/{path.strip()}", PurePosixPath(path.strip()).parent.name
        if not label.isdecimal() or int(label) >= CLASSES or names.setdefault(int(label), folder) != folder:
            raise UserError(
                f"--data {files.source}: line {number} of {place} is {line.strip()[:80]!r}, where a file and its "
                f"class, 0 to {CLASSES - 1}, are expected (a class is one folder). {FETCH}"
            )
        if name in listed or [*names.values()].count(folder) > 1:
            raise UserError(
                f"--data {files.source}: line {number} of {place} gives {name if name in listed else folder} another "
                f"class than a line before: a file is listed once, and a folder is one class. {FETCH}"
            )
        if name not in files.sizes:
            raise UserError(f"--data {files.source}: {name}, line {number} of {place}, is not there. {FETCH}")
        listed[name] = int(label)
    if not listed:
        raise UserError(f"--data {files.source}: {place} is missing or empty. {FETCH}")
    return LabelledFiles(tuple(listed), torch.tensor(list(listed.values())))
