"""Two random views of every image, for pre-training without labels: the transforms of SimCLR and MoCo v2."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.transforms import v2

from sparseticket.models.vision import ImageFormat
from sparseticket.seeds import derive
from sparseticket.tasks.base import Batch
from sparseticket.tasks.image_files import decode_all
from sparseticket.tasks.image_pixels import DecodedPixels, Pixels, normalised
from sparseticket.tasks.image_task import SMALL_SIDE

View = Callable[[Tensor], Tensor]


def simclr_view(size: int, *, blur: bool) -> View:
    """SimCLR's (arXiv 2002.05709, appendix A), uint8 [3, H, W] to [3, size, size].

    Images up to 64 pixels have half the colour distortion and no blur, as its appendix B.9 has CIFAR-10.
    """
    strength = 0.5 if size <= SMALL_SIDE else 1.0
    jitter = v2.ColorJitter(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
    return _view(size, scale=(0.08, 1.0), jitter=jitter, blur=blur)


def moco_view(size: int, *, blur: bool) -> View:
    """MoCo v2's (arXiv 2003.04297, table 1, aug+), uint8 [3, H, W] to [3, size, size]. No blur up to 64 pixels."""
    return _view(size, scale=(0.2, 1.0), jitter=v2.ColorJitter(0.4, 0.4, 0.4, 0.1), blur=blur)


def _view(size: int, *, scale: tuple[float, float], jitter: v2.Transform, blur: bool) -> View:
    steps = [
        v2.RandomResizedCrop(size, scale=scale, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([jitter], p=0.8),
        v2.RandomGrayscale(p=0.2),
    ]
    if blur and size > SMALL_SIDE:
        kernel = size // 10 // 2 * 2 + 1  # a tenth of the side, made odd: 23 of 224
        steps.append(v2.RandomApply([v2.GaussianBlur(kernel, sigma=(0.1, 2.0))], p=0.5))
    return v2.Compose(steps)


class TwoViews(Sequence[Batch]):
    """Batches of ``{"pixels", "other": float32 [B, 3, S, S]}``: two views of the same images, made when asked for.

    A view is a function of ``seed`` and of the image's row alone.
    """

    in_workers = True

    def __init__(self, pixels: Pixels, rows: Sequence[Tensor], view: View, format: ImageFormat, seed: int) -> None:
        self.pixels, self.rows, self.view, self.format, self.seed = pixels, rows, view, format, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        first, second = (normalised(views, self.format) for views in self.drawn(index))
        return {"pixels": first, "other": second}

    def drawn(self, index: int) -> tuple[Tensor, Tensor]:
        """Both views of a batch as they were drawn, uint8 [B, 3, S, S] each."""
        rows = self.rows[index]
        pairs = []
        with torch.random.fork_rng(devices=[]):
            for image, row in zip(_whole(self.pixels, rows), rows.tolist(), strict=True):
                torch.default_generator.manual_seed(derive(self.seed, row))
                pairs.append((self.view(image), self.view(image)))
        first, second = (torch.stack(views) for views in zip(*pairs, strict=True))
        return first, second


def _whole(pixels: Pixels, rows: Tensor) -> Sequence[Tensor]:
    """Images before any crop: of their own size where they are decoded, uint8 [3, H, W] each."""
    if isinstance(pixels, DecodedPixels):
        return decode_all(pixels.files, [pixels.names[row] for row in rows.tolist()], pixels.shape)
    return list(pixels[rows])
