"""Images sorted into ``<split>/<class>/`` folders: which file is of which class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sparseticket.errors import UserError
from sparseticket.tasks.data_identity import check_apart, digests, identity
from sparseticket.tasks.image_files import IMAGE_SUFFIXES, DataFiles, is_image, open_files

EVAL_FOLDERS = ("test", "val", "valid", "validation", "eval")  # the first of these that is there
LAYOUT = f"train/<class>/*.jpg and {'|'.join(EVAL_FOLDERS)}/<class>/*.jpg (or .png and so on)"


@dataclass(frozen=True)
class LabelledFiles:
    """One split: file names, sorted, and their classes, int64 [N]."""

    names: tuple[str, ...]
    labels: Tensor


def open_class_folders(path: Path) -> DataFiles:
    """The image files of a folder, zip or tar, with or without a folder around ``train``.

    Raises:
        UserError: there is no ``train`` in it, a class in it has files and no image, or it cannot be read.
    """
    files = open_files(path)
    images = DataFiles(path, {name: size for name, size in files.sizes.items() if is_image(name)}, files.get)
    root = images.around("train")
    if root is None:
        raise UserError(f"--data {path}: no images in a folder named train there. Expected {LAYOUT}.")
    _check_classes(files.below(root))
    if path.is_dir():
        _check_not_empty(path / root / "train")
    return images.below(root)


def _check_not_empty(train: Path) -> None:
    for folder in sorted(train.iterdir()):
        if folder.is_dir() and not folder.name.startswith(".") and not any(folder.iterdir()):
            raise UserError(
                f"--data: the class folder {folder} is empty. Put its images there, or take the folder out."
            )


def _check_classes(files: DataFiles) -> None:
    """Every class to train on has an image: one of files that nobody can read would vanish without a word."""
    by_class: dict[str, list[str]] = {}
    for name in files.sizes:
        split, *below = name.split("/")
        if split == "train" and len(below) > 1:
            by_class.setdefault(below[0], []).append(below[-1])
    for kind, names in sorted(by_class.items()):
        if not any(is_image(name) for name in names):
            raise UserError(
                f"--data {files.source}: the class folder train/{kind} holds {names[0]} and no image of a known kind "
                f"({', '.join(sorted(IMAGE_SUFFIXES))}). Convert its images, or take the folder out."
            )


def identify(files: DataFiles, train: LabelledFiles, evaluation: LabelledFiles) -> tuple[str, tuple[str, ...]]:
    """The data set's identity, and what is to be said of it.

    Raises:
        UserError: all images to evaluate on are trained on.
    """
    found = digests(files, (*train.names, *evaluation.names))
    splits = [{name: found[name] for name in split.names} for split in (train, evaluation)]
    notes = check_apart(files, *(split.values() for split in splits))
    folders = {name.split("/")[0] for name in found}
    if loose := [name for name in files.sizes if name.count("/") == 1 and name.split("/")[0] in folders]:
        notes += (f"{len(loose)} images are in no class folder and left out, {loose[0]} among them.",)
    return identity(*splits), notes


def split_by_folders(files: DataFiles, *, least: int = 2) -> tuple[LabelledFiles, LabelledFiles, tuple[str, ...]]:
    """The train split, the evaluation split, and the class names (train's folders, sorted).

    Raises:
        UserError: a split is missing or has fewer than ``least`` classes, or evaluation has classes of its own.
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
    if len(class_names) < least:
        raise UserError(
            f"--data {files.source}: train has images of one class only ({class_names[0]}); "
            "a classifier needs at least two class folders."
        )
    if len(set(by_split[eval_folder].values())) < least:
        raise UserError(
            f"--data {files.source}: {eval_folder} has images of one class only, on which an answer that is always the "
            "same is always right. Evaluate on more classes."
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
