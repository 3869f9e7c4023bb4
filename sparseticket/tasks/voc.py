"""Pascal VOC's layout: which images each split has, and the boxes in them (host.robots.ox.ac.uk/pascal/VOC)."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sparseticket.errors import UserError
from sparseticket.tasks.image_files import ImageFiles

LAYOUT = "Annotations/*.xml, JPEGImages/*.jpg and ImageSets/Main/ with trainval.txt and test.txt, or train.txt and val.txt"
SPLITS = (("trainval", "test"), ("train", "val"))  # to train on, to evaluate on: the first pair that is there
TORN = 0.01  # of all boxes may be of no size (BCCD has two): they are left out
SLACK = 1.0  # pixels that a box may reach out of its image; it is cut there


@dataclass(frozen=True)
class Annotation:
    """The objects of one image.

    Attributes:
        size: height and width of the image in pixels.
        boxes: fp32 [K, 4]: x1, y1, x2, y2 in pixels from the image's corner; x2 and y2 are exclusive.
        names: the class of each.
        difficult: bool [K]: not trained on, and neither right nor wrong in evaluation, as VOC has it.
        torn: how many boxes of no size were left out.
    """

    size: tuple[int, int]
    boxes: Tensor
    names: tuple[str, ...]
    difficult: Tensor
    torn: int = 0


def find_root(data: Path, inside: str, layout: str) -> Path:
    """The folder that has ``inside``: ``data``, or one in it (BCCD, VOC2007), or one in a VOCdevkit there."""
    below = sorted(child for child in data.iterdir() if child.is_dir()) if data.is_dir() else []
    deeper = sorted(child for folder in below if folder.name == "VOCdevkit" for child in folder.iterdir())
    for folder in (data, *below, *deeper):
        if (folder / inside).is_dir():
            return folder
    raise UserError(f"--data {data}: there is no folder {inside} in it. Expected {layout}.")


def read_splits(folder: Path, needed: Path, suffix: str) -> tuple[list[str], list[str]]:
    """Image ids to train and to evaluate on, from the lists in ``folder``.

    A pair of lists counts where the first image to evaluate on has its file ``needed/ID.suffix`` (VOC2012's test has
    no annotations).

    Raises:
        UserError: there are no such lists, one is empty, names a path, or names what the other has too.
    """
    for train, evaluation in SPLITS:
        files = [folder / f"{name}.txt" for name in (train, evaluation)]
        if all(file.is_file() for file in files):
            ids = [_read_ids(file) for file in files]
            if (needed / f"{ids[1][0]}{suffix}").is_file():
                break
    else:
        raise UserError(f"{folder} lacks trainval.txt and test.txt, or train.txt and val.txt with their files.")
    if both := sorted(set(ids[0]) & set(ids[1])):
        raise UserError(f"{files[0].name} and {files[1].name} in {folder} both have {both[0]}: evaluate on others.")
    return ids[0], ids[1]


def _read_ids(file: Path) -> list[str]:
    try:
        ids = [line.split()[0] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}).") from error
    if not ids:
        raise UserError(f"{file} is empty: one image's name a line belongs there.")
    for name in ids:
        if "/" in name or "\\" in name or name.startswith("."):
            raise UserError(f"{file}: {name!r} is no name of an image: names have no folder and no leading dot.")
    return list(dict.fromkeys(ids))


def files_of(root: Path, names: Iterable[str]) -> ImageFiles:
    """The files ``names`` below ``root``, to be read when asked for.

    Raises:
        UserError: one is missing.
    """
    sizes = {}
    for name in names:
        file = root / name
        if not file.is_file():
            raise UserError(f"--data {root}: {name} is missing. Put it back, or take it out of the lists.")
        sizes[name] = file.stat().st_size
    return ImageFiles(root, sizes, lambda name: (root / name).read_bytes())


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
        if x1 >= x2 or y1 >= y2:
            torn += 1
            continue
        box = torch.tensor([x1 - 1, y1 - 1, x2, y2])  # VOC counts pixels from 1, and the last one is inside
        limits = torch.tensor([width, height, width, height])
        if (box < -SLACK).any() or (box > limits + SLACK).any():
            raise UserError(f"{where}: the box of a {name} reaches out of its image of {width} x {height} pixels.")
        boxes.append(torch.minimum(box.clamp(min=0), limits))
        names.append(name)
        difficult.append((entry.findtext("difficult") or "0").strip() == "1")
    return Annotation(
        size=(height, width),
        boxes=torch.stack(boxes).float() if boxes else torch.zeros(0, 4),
        names=tuple(names),
        difficult=torch.tensor(difficult, dtype=torch.bool),
        torn=torn,
    )


def _number(entry: ET.Element, path: str, where: str) -> float:
    text = entry.findtext(path)
    try:
        value = float(text or "")
    except ValueError as error:
        raise UserError(f"{where}: {path} should be a number, and is {text!r}.") from error
    if not abs(value) < 1e6:  # NaN too
        raise UserError(f"{where}: {path} is {value}.")
    return value


def read_annotations(root: Path, ids: Iterable[str]) -> list[Annotation]:
    """The annotations of these images, in order.

    Raises:
        UserError: one is missing or wrong, or more than 1 % of all boxes are of no size.
    """
    found = []
    for name in ids:
        file = root / "Annotations" / f"{name}.xml"
        try:
            content = file.read_bytes()
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror or error}).") from error
        found.append(parse_annotation(content, str(file)))
    torn, boxes = sum(one.torn for one in found), sum(len(one.boxes) for one in found)
    if torn > TORN * (boxes + torn):
        worst = next(name for name, one in zip(ids, found, strict=True) if one.torn)
        raise UserError(f"--data {root}: {torn} of {boxes + torn} boxes have no size, the first in {worst}.xml.")
    return found
