"""What pre-training without labels shares, SimCLR's and MoCo's: images, views, and retrieval as the metric."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sparseticket.errors import UserError
from sparseticket.models import Head
from sparseticket.models.vision import VisionModel
from sparseticket.seeds import derive, generator
from sparseticket.tasks.base import Batch, Stateless, TaskOptions
from sparseticket.tasks.class_folders import LAYOUT, identify, open_class_folders, split_by_folders
from sparseticket.tasks.contrast import nearest_of_same_class, processes, retrieved
from sparseticket.tasks.evaluating import evaluating
from sparseticket.tasks.image_pixels import DecodedPixels, hold_if_it_fits, normalised, resize_and_crop_to, resize_to
from sparseticket.tasks.image_task import SMALL_SIDE
from sparseticket.tasks.prefetch import made_ahead
from sparseticket.tasks.two_views import TwoViews, View

DIMENSIONS = 128  # of the projection, in both papers and both released codes
POOL = 256  # evaluation images among which a view is to find its other one: the paper's batch


class PreTraining(Stateless):
    """A subclass says which view, and what its loss is. ``--data``: as for ``image-folder``.

    Classes are not trained on; where images of several are evaluated, they give the second metric.
    """

    name: str
    metric = "retrieval"
    view: View

    def __init__(self, spec: VisionModel, options: TaskOptions) -> None:
        if options.data is None:
            raise UserError(f"task {self.name} needs --data: a folder, zip or tar with {LAYOUT}.")
        files = open_class_folders(options.data)
        train, evaluation, _ = split_by_folders(files, least=1)
        if len(evaluation.names) < 2:
            raise UserError(f"task {self.name} needs two images to evaluate on: one has no other to be told from.")
        self.data_id, self.notes = identify(files, train, evaluation)
        self.head = Head("projection", DIMENSIONS)
        self.head_name, self.format, self.options = spec.head_name, spec.format, options
        small, size = spec.format.size <= SMALL_SIDE, spec.format.size
        shape = resize_to(size) if small else _unchanged
        self._train, self._eval = (DecodedPixels(files, part.names, shape) for part in (train, evaluation))
        if small:
            self._train, self._eval = (hold_if_it_fits(pixels, size) for pixels in (self._train, self._eval))
        self._eval_whole = self._eval if small else DecodedPixels(files, evaluation.names, resize_and_crop_to(size))
        self._eval_labels = evaluation.labels
        self._evaluation = _Evaluation(self)

    def batches(self, split: str, *, seed: int, round: int, epoch: int) -> Sequence[Batch]:
        """See :class:`sparseticket.tasks.base.Task` and :class:`TwoViews`; training leaves an incomplete batch out."""
        if split == "eval":
            return self._evaluation
        if split != "train":
            raise ValueError(f"no split {split!r}: train or eval")
        count = len(self._train)
        if count < self.options.batch_size:
            raise UserError(
                f"task {self.name} trains on whole batches, and {self.options.batch_size} is more than the {count} "
                "images of train: give a smaller --batch-size."
            )
        shuffled = self.options.order == "shuffled"
        order = torch.randperm(count, generator=generator(seed, "order", round, epoch)) if shuffled else None
        rows = (torch.arange(count) if order is None else order).split(self.options.batch_size)
        whole = [part for part in rows if len(part) == self.options.batch_size]
        return TwoViews(self._train, whole, self.view, self.format, derive(seed, "views", round, epoch))

    def begin(self, model: nn.Module, *, seed: int, round: int) -> Sequence[nn.Module]:
        """See :meth:`sparseticket.tasks.base.Task.begin`; refuses a batch size that processes cannot share equally."""
        if self.options.batch_size % processes():
            raise UserError(
                f"task {self.name} gathers whole batches: --batch-size {self.options.batch_size} must be a multiple of "
                f"the {processes()} processes."
            )
        return ()

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Retrieval by pooled features, without the projection head, as fractions of the evaluation images.

        ``retrieval``: the share of views whose nearest among the views of about :data:`POOL` images is the other view
        of the same image. ``class_retrieval``: the share of images, as they are, whose nearest other image of the whole
        split is of the same class.
        """
        found, features = [], []
        with evaluating(model) as device, without_head(self.head_name, model):
            for batch in made_ahead(self.batches("eval", seed=0, round=0, epoch=0), device):
                first, second = (model(batch[name].to(device)) for name in ("first", "second"))
                found.append(retrieved(first, second))
                features.append(model(batch["pixels"].to(device)))
            metrics = {"retrieval": torch.cat(found).float().mean().item()}
            if len(self._eval_labels.unique()) > 1:
                same = nearest_of_same_class(torch.cat(features), self._eval_labels.to(device))
                metrics["class_retrieval"] = same.float().mean().item()
        return metrics


class _Evaluation(Sequence[Batch]):
    """``{"pixels", "first", "second": float32 [B, 3, S, S]}``: images as they are, and two views, always the same.

    Views of small images are drawn once: they take longer than the network does (10,000 on a busy core: 30 s).
    """

    def __init__(self, task: PreTraining) -> None:
        self.task = task
        count = len(task._eval_labels)
        self.rows = torch.arange(count).chunk(-(-count // POOL))  # nearly alike, so that no pool is small and easy
        self.in_workers = task.format.size > SMALL_SIDE  # or what a worker draws would not be held here
        self._held: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        task = self.task
        first, second = self._held.get(index) or self._drawn(index)
        pixels = {"pixels": task._eval_whole[self.rows[index]], "first": first, "second": second}
        return {name: normalised(images, task.format) for name, images in pixels.items()}

    def _drawn(self, index: int) -> tuple[Tensor, Tensor]:
        task = self.task
        views = TwoViews(task._eval, self.rows, task.view, task.format, derive(0, "evaluation views")).drawn(index)
        if task.format.size <= SMALL_SIDE:
            self._held[index] = views
        return views


@contextmanager
def without_head(head: str, model: nn.Module) -> Iterator[None]:
    """Let ``model`` end in its pooled features for a while; an exported file has no head to take off."""
    kept = getattr(model, head, None)
    if kept is not None:
        setattr(model, head, nn.Identity())
    try:
        yield
    finally:
        if kept is not None:
            setattr(model, head, kept)


def _unchanged(image: Tensor) -> Tensor:
    return image
