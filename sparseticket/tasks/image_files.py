"""Image files in ``<split>/<class>/`` folders, on disk or inside a zip: listed, checked and decoded."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sparseticket.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
THREADED_BYTES = 16 * 1024  # 32x32 JPEGs of 1 KB took 0.26 ms one after another and 0.41 ms on two threads
EVAL_FOLDERS = ("test", "val", "valid", "eval")  # the first of these that is there
LAYOUT = f"train/<class>/*.jpg and {'|'.join(EVAL_FOLDERS)}/<class>/*.jpg (or .png and so on)"


@dataclass(frozen=True)
class ImageFiles:
    """The files of a folder or zip, by name below the folder that holds ``train``: sizes in bytes, and how to read."""

    source: Path
    sizes: dict[str, int]
    read: Callable[[str], bytes]

    def decode(self, name: str) -> Tensor:
        """One image as RGB, uint8 [3, H, W]. :class:`UserError` names an image that is corrupt or gone."""
        try:
            image = Image.open(io.BytesIO(self.read(name))).convert("RGB")
        except Exception as error:  # on damaged files PIL's decoders raise nearly anything
            raise UserError(
                f"{self.source}: the image {name} cannot be read ({error}). Replace it or take it out."
            ) from error
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def open_images(path: Path) -> ImageFiles:
    """List the image files of a folder or a ``.zip``, with or without one folder around ``train``.

    Raises:
        UserError: there is nothing at ``path``, it is no zip, or there is no ``train`` in it.
    """
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise UserError(f"--data {path}: there is no such folder or zip.")
    return _open_zip(path)


def _open_folder(path: Path) -> ImageFiles:
    folders = [path, *sorted(child for child in path.iterdir() if child.is_dir())]
    root = next((folder for folder in folders if (folder / "train").is_dir()), None)
    if root is None:
        raise _no_layout(path)
    sizes = {}
    for split in ("train", *EVAL_FOLDERS):
        for folder, _, names in os.walk(root / split):
            for file in (Path(folder) / name for name in names):
                if _is_image(name := file.relative_to(root).as_posix()):
                    sizes[name] = file.stat().st_size
    return ImageFiles(path, sizes, lambda name: (root / name).read_bytes())


def _open_zip(path: Path) -> ImageFiles:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"--data {path} is neither a folder nor a readable zip ({error}).") from error
    inside = {info.filename: info.file_size for info in archive.infolist() if _is_image(info.filename)}
    around = {parts[0] for name in inside if len(parts := name.split("/", 2)) == 3 and parts[1] == "train"}
    root = f"{min(around)}/" if around and not any(name.startswith("train/") for name in inside) else ""
    sizes = {name.removeprefix(root): size for name, size in inside.items() if name.startswith(root)}
    if not any(name.startswith("train/") for name in sizes):
        raise _no_layout(path)
    return ImageFiles(path, sizes, lambda name: archive.read(root + name))


def _is_image(name: str) -> bool:
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
    return not hidden and PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _no_layout(path: Path) -> UserError:
    return UserError(f"--data {path}: no images in a folder named train there. Expected {LAYOUT}.")


@dataclass(frozen=True)
class LabelledFiles:
    """One split: file names, sorted, and their classes, int64 [N]."""

    names: tuple[str, ...]
    labels: Tensor


def split_by_folders(files: ImageFiles) -> tuple[LabelledFiles, LabelledFiles, tuple[str, ...]]:
    """The train split, the evaluation split, and the class names (train's folders, sorted).

    Raises:
        UserError: a split is missing or empty, there are fewer than two classes, or evaluation has classes of its own.
    """
    by_split: dict[str, dict[str, str]] = {}
    for name in sorted(files.sizes):
        split, *below = name.split("/")
        if len(below) >= 2:
            by_split.setdefault(split, {})[name] = below[0]
    eval_folder = next((folder for folder in EVAL_FOLDERS if folder in by_split), None)
    if "train" not in by_split or eval_folder is None:
        missing = "train" if "train" not in by_split else " or ".join(EVAL_FOLDERS)
        raise UserError(f"--data {files.source}: no images in class folders in {missing}. Expected {LAYOUT}.")
    class_names = tuple(sorted(set(by_split["train"].values())))
    if len(class_names) < 2:
        raise UserError(
            f"--data {files.source}: train has images of one class only ({class_names[0]}); "
            "a classifier needs at least two class folders."
        )
    strangers = sorted(set(by_split[eval_folder].values()) - set(class_names))
    if strangers:
        raise UserError(
            f"--data {files.source}: {eval_folder} has classes that train has not: {', '.join(strangers[:3])}."
        )
    number = {name: index for index, name in enumerate(class_names)}
    train, evaluation = (
        LabelledFiles(tuple(found), torch.tensor([number[name] for name in found.values()]))
        for found in (by_split["train"], by_split[eval_folder])
    )
    return train, evaluation, class_names


def identity(sizes: dict[str, int]) -> str:
    """SHA-256 over sorted (name, size in bytes): the same for a folder and a zip of it."""
    digest = hashlib.sha256()
    for name, size in sorted(sizes.items()):
        digest.update(f"{name}\0{size}\n".encode())
    return digest.hexdigest()


def decode_all(files: ImageFiles, names: Sequence[str], shape: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Decode images, each through ``shape``; large ones on as many threads as there are cores."""

    def decode(name: str) -> Tensor:
        return shape(files.decode(name))

    if max(files.sizes[name] for name in names) < THREADED_BYTES:
        return [decode(name) for name in names]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(decode, names))
