"""Pascal VOC's layout: which images each split has, and the boxes in them (host.robots.ox.ac.uk/pascal/VOC)."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sparseticket.errors import UserError
from sparseticket.tasks.image_files import DataFiles, open_files

LAYOUT = (
    "Annotations/*.xml, JPEGImages/*.jpg and ImageSets/Main/ with trainval.txt and test.txt, or train.txt and val.txt"
)
SPLITS = (("trainval", "test"), ("train", "val"))  # to train on, to evaluate on: the first pair that is there
TORN = 0.01  # of all boxes may be of no size (BCCD has two): they are left out
DIFFICULT = {"": False, "0": False, "1": True, "false": False, "true": True, "unspecified": False}
SLACK = 1.0  # pixels that a box may reach out of its image; it is cut there


@dataclass(frozen=True)
class Annotation:
    """The objects of one image.

    Attributes:
        size: height and width of the image in pixels.
        boxes: fp32 [K, 4]: x1, y1, x2, y2 in pixels from the image's corner; x2 and y2 are exclusive.
        names: the class of each.
        difficult: bool [K]: not trained on, and neither right nor wrong in evaluation, as VOC has it.
        torn: how many boxes of no size, or of a single pixel, were left out.
    """

    size: tuple[int, int]
    boxes: Tensor
    names: tuple[str, ...]
    difficult: Tensor
    torn: int = 0


def open_layout(data: Path, *wanted: str) -> DataFiles | None:
    """The files of ``data``, a folder, zip or tar, below the folder in it that has all of ``wanted``; None without."""
    files = open_files(data)
    root = files.around(*wanted)
    return None if root is None else files.below(root)


def read_splits(files: DataFiles, lists: str, needed: str) -> tuple[list[str], list[str]]:
    """Image ids to train and to evaluate on, from the lists in the folder ``lists``.

    A pair of lists counts where the first image to evaluate on has its file, ``needed`` with its id for the braces
    (VOC2012's test has no annotations).

    Raises:
        UserError: there are no such lists, one is empty, or names what the other has too.
    """
    for pair in SPLITS:
        names = [f"{lists}/{name}.txt" for name in pair]
        if all(name in files.sizes for name in names):
            train, evaluation = (_read_ids(files, name) for name in names)
            if needed.format(evaluation[0]) in files.sizes:
                break
    else:
        raise UserError(
            f"--data {files.source}: {lists} has neither trainval.txt and test.txt nor train.txt and val.txt, or their "
            "files are missing."
        )
    if both := sorted(set(train) & set(evaluation)):
        raise UserError(f"--data {files.source}: {' and '.join(names)} both have {both[0]}: evaluate on others.")
    return train, evaluation


def _read_ids(files: DataFiles, name: str) -> list[str]:
    try:
        lines = files.read(name).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"--data {files.source}: {name} is no text ({error}).") from error
    ids = [line.split()[0] for line in lines if line.strip()]
    if not ids:
        raise UserError(f"--data {files.source}: {name} is empty: one image's name a line belongs there.")
    return list(dict.fromkeys(ids))


def sizes_of(files: DataFiles, names: Iterable[str]) -> dict[str, int]:
    """The sizes of these files in bytes; :class:`UserError` names one that is missing."""
    wanted = list(names)
    missing = [name for name in wanted if name not in files.sizes]
    if missing:
        raise UserError(
            f"--data {files.source}: {missing[0]} is missing, of {len(wanted)} files {len(missing)} in all. Put them "
            "back, or take them out of the lists."
        )
    return {name: files.sizes[name] for name in wanted}


class _NoDoctype(ET.TreeBuilder):
    """A document type could define entities that blow up or read files; annotations have none."""

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise ET.ParseError("it has a document type, which annotations have not")


def parse_annotation(content: bytes, where: str) -> Annotation:
    """One annotation file, checked; a box that reaches out of the image by a pixel is cut.

    Raises:
        UserError: names ``where`` and what is wrong: no XML, a document type, a field that is missing or no number, a
            box outside the image.
    """
    try:
        root = ET.fromstring(content, parser=ET.XMLParser(target=_NoDoctype()))
    except (ET.ParseError, ValueError, LookupError) as error:  # ValueError, LookupError: encodings
        raise UserError(f"{where} is no annotation: {error}.") from error
    height, width = (int(_number(root, f"size/{side}", where)) for side in ("height", "width"))
    if height < 1 or width < 1:
        raise UserError(f"{where}: an image of {width} x {height} pixels.")
    boxes, names, difficult, torn = [], [], [], 0
    for entry in root.iter("object"):
        x1, y1, x2, y2 = (_number(entry, f"bndbox/{end}", where) for end in ("xmin", "ymin", "xmax", "ymax"))
        name = (entry.findtext("name") or "").strip()
        if not name:
            raise UserError(f"{where}: an object has no name.")
        if x1 > x2 or y1 > y2 or (x1, y1) == (x2, y2):  # a single pixel is a slip of whoever drew it
            torn += 1
            continue
        box = torch.tensor([x1 - 1, y1 - 1, x2, y2])  # VOC counts pixels from 1, and the last one is inside
        limits = torch.tensor([width, height, width, height])
        if (box < -SLACK).any() or (box > limits + SLACK).any():
            raise UserError(f"{where}: the box of a {name} reaches out of its image of {width} x {height} pixels.")
        boxes.append(torch.minimum(box.clamp(min=0), limits))
        names.append(name)
        difficult.append(_is_difficult(entry, where))
    return Annotation(
        size=(height, width),
        boxes=torch.stack(boxes).float() if boxes else torch.zeros(0, 4),
        names=tuple(names),
        difficult=torch.tensor(difficult, dtype=torch.bool),
        torn=torn,
    )


def _is_difficult(entry: ET.Element, where: str) -> bool:
    text = (entry.findtext("difficult") or "").strip().lower()
    if text not in DIFFICULT:
        raise UserError(f"{where}: difficult should be 0 or 1, and is {text!r}.")
    return DIFFICULT[text]


def _number(entry: ET.Element, path: str, where: str) -> float:
    text = entry.findtext(path)
    try:
        value = float(text or "")
    except ValueError as error:
        raise UserError(f"{where}: {path} should be a number, and is {text!r}.") from error
    if not abs(value) < 1e6:  # NaN too
        raise UserError(f"{where}: {path} is {value}.")
    return value


def read_annotations(files: DataFiles, ids: Iterable[str]) -> list[Annotation]:
    """The annotations of these images, in order.

    Raises:
        UserError: one is missing or wrong, or more than 1 % of all boxes are of no size or a single pixel.
    """
    names = sizes_of(files, (f"Annotations/{name}.xml" for name in ids))
    found = [parse_annotation(files.read(name), f"{files.source}: {name}") for name in names]
    torn, boxes = sum(one.torn for one in found), sum(len(one.boxes) for one in found)
    if torn > TORN * (boxes + torn):
        first = next(name for name, one in zip(names, found, strict=True) if one.torn)
        raise UserError(
            f"--data {files.source}: {torn} of {boxes + torn} boxes have no size or are a single pixel, the first in "
            f"{first}."
        )
    return found
