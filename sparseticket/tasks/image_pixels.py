"""Where a batch's pixels come from: held in memory or decoded on demand, as they are or augmented; normalising them.

Every source answers ``source[rows]`` with uint8 pixels [B, 3, S, S] for int64 rows [B]; a tensor [N, 3, S, S] is one.
Augmentation is a function of (seed, round, epoch, row) alone, so that a resumed round repeats itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as VF

from sparseticket.models.vision import ImageFormat
from sparseticket.seeds import derive, generator
from sparseticket.tasks.image_files import DataFiles, decode_all

HELD_BYTES = 2 * 2**30  # a split larger than this is decoded batch by batch
PADDING = 4  # pixels, as for CIFAR since He et al. 2015


class Pixels(Protocol):
    """Images by row: uint8 [B, 3, S, S] for int64 rows [B]."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class DecodedPixels:
    """Images decoded when they are asked for; ``shape`` brings each [3, H, W] to [3, S, S]."""

    files: DataFiles
    names: tuple[str, ...]
    shape: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return torch.stack(decode_all(self.files, [self.names[row] for row in rows.tolist()], self.shape))


def normalised(pixels: Tensor, format: ImageFormat) -> Tensor:
    """uint8 [B, 3, S, S] as the model takes it: fp32, (x / 255 - mean) / std, channels last."""
    scaled = VF.to_dtype(pixels, torch.float32, scale=True)
    # ResNet-20 on two CPU threads: 0.66 s a training step channels last, 0.88 s otherwise
    return VF.normalize(scaled, list(format.mean), list(format.std)).contiguous(memory_format=torch.channels_last)


def hold_if_it_fits(pixels: DecodedPixels, size: int) -> Pixels:
    """Decode everything once into a tensor, unless that would take more than :data:`HELD_BYTES`."""
    count = len(pixels)
    if count * 3 * size * size > HELD_BYTES:
        return pixels
    held = torch.empty(count, 3, size, size, dtype=torch.uint8)
    for rows in torch.arange(count).split(1024):
        held[rows] = pixels[rows]
    return held


def resize_to(size: int) -> Callable[[Tensor], Tensor]:
    """Bring an image to [3, size, size]; one that is so already is left as it is."""
    resize = v2.Resize((size, size), antialias=True)
    return lambda image: image if image.shape[-2:] == (size, size) else resize(image)


def resize_and_crop_to(size: int) -> Callable[[Tensor], Tensor]:
    """ImageNet's evaluation view: short side to 256/224 of ``size``, then the centre; as is where the size is right."""
    view = v2.Compose([v2.Resize(round(size * 256 / 224), antialias=True), v2.CenterCrop(size)])
    return lambda image: image if image.shape[-2:] == (size, size) else view(image)


class ShiftedPixels:
    """Small images after padding by 4 black pixels, a random crop of the old size and, if wanted, a random flip."""

    def __init__(self, pixels: Pixels, *, flip: bool, seed: int, round: int, epoch: int) -> None:
        self.pixels = pixels
        draws = generator(seed, "augment", round, epoch)
        self.offsets = torch.randint(2 * PADDING + 1, (len(pixels), 2), generator=draws)
        self.flipped = torch.rand(len(pixels), generator=draws) < (0.5 if flip else 0.0)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: Tensor) -> Tensor:
        images = self.pixels[rows]
        side = torch.arange(images.shape[-1])
        mirrored = torch.where(self.flipped[rows, None], side.flip(0), side)
        down = (self.offsets[rows, :1] + side)[:, :, None]
        across = (self.offsets[rows, 1:] + mirrored)[:, None, :]
        padded = F.pad(images, (PADDING,) * 4)
        picked = padded[torch.arange(len(rows))[:, None, None], :, down, across]  # [B, S, S, 3]
        return picked.permute(0, 3, 1, 2)


class RandomCropPixels:
    """ImageNet's training view: torchvision's random resized crop and flip, drawn from each example's own seed.

    ``scale`` is the least and largest share of the image's area that a crop covers.
    """

    def __init__(
        self, pixels: DecodedPixels, size: int, *, scale: tuple[float, float], seed: int, round: int, epoch: int
    ) -> None:
        self.pixels = pixels
        self.view = v2.Compose([v2.RandomResizedCrop(size, scale=scale, antialias=True), v2.RandomHorizontalFlip()])
        self.seed = derive(seed, "augment", round, epoch)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: Tensor) -> Tensor:
        names = [self.pixels.names[row] for row in rows.tolist()]
        images = decode_all(self.pixels.files, names, self.pixels.shape)
        with torch.random.fork_rng(devices=[]):
            return torch.stack([self._drawn_view(image, row) for image, row in zip(images, rows.tolist(), strict=True)])

    def _drawn_view(self, image: Tensor, row: int) -> Tensor:
        torch.default_generator.manual_seed(derive(self.seed, row))
        return self.view(image)
