"""torchvision's FCOS (Tian et al. 2019, arXiv 1904.01355) on the stages of a ResNet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS, FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms, clip_boxes_to_image
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from sparseticket.models.stages import SceneFormat, stages_of, width_of

OUTPUTS = ("class_logits", "box_distances", "centerness")
SCORE_FROM = 0.05  # as COCO evaluations: average precision wants the tail too (torchvision's 0.2 is for looking at)
CANDIDATES, DETECTIONS, OVERLAP = 1000, 100, 0.6  # torchvision's: before and after suppression, and its IoU


class Pyramid(nn.Module):
    """A ResNet (``body``) under a feature pyramid with two more levels; all levels have ``out_channels``."""

    def __init__(self, body: nn.Module, scene: SceneFormat) -> None:
        super().__init__()
        self.body, self.stages, self.out_channels = body, scene.pyramid, scene.channels
        widths = [width_of(body, stage) for stage in scene.pyramid]
        self.fpn = FeaturePyramidNetwork(
            widths, scene.channels, extra_blocks=LastLevelP6P7(scene.channels, scene.channels)
        )

    def forward(self, pixels: Tensor) -> OrderedDict[str, Tensor]:
        """fp32 [B, 3, S, S] to levels [B, out_channels, S / stride, S / stride], fine to coarse."""
        return self.fpn(stages_of(self.body, pixels, self.stages))


class Detector(FCOS):
    """torchvision's FCOS without its resizing: it takes normalised square images, and gives what its heads say.

    Names of the backbone begin with ``backbone.body.``.
    """

    prefix = "backbone.body."

    def __init__(self, body: nn.Module, classes: int, scene: SceneFormat) -> None:
        super().__init__(
            Pyramid(body, scene),
            classes,
            anchor_generator=AnchorGenerator(
                tuple((stride,) for stride in scene.strides), ((1.0,),) * len(scene.strides)
            ),
            head=FCOSHead(scene.channels, 1, classes, scene.convolutions),
        )
        self.classes = classes

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """The raw outputs of fp32 [B, 3, S, S] for all places of all levels, :func:`places` in order.

        ``class_logits`` [B, N, classes]; ``box_distances`` [B, N, 4], from a place to the box's left, top, right and
        bottom in strides; ``centerness`` [B, N, 1], a logit.
        """
        return dict(zip(OUTPUTS, self.head(list(self.backbone(pixels).values())).values(), strict=True))

    def loss(self, pixels: Tensor, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
        """FCOS's loss, a scalar: focal of the classes, GIoU of the boxes, cross-entropy of the centerness.

        For each image ``boxes`` fp32 [K, 4] as x1, y1, x2, y2 in pixels, and ``labels`` int64 [K] from 0; K may be 0.
        """
        levels = list(self.backbone(pixels).values())
        anchors = self.anchor_generator(ImageList(pixels, [tuple(pixels.shape[-2:])] * len(pixels)), levels)
        targets = [{"boxes": box, "labels": label} for box, label in zip(boxes, labels, strict=True)]
        sizes = [level.shape[-2] * level.shape[-1] for level in levels]
        return sum(self.compute_loss(targets, self.head(levels), anchors, sizes).values())


def places(size: int, strides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Where each raw output is, as torchvision's anchors are: x and y in pixels [N, 2] and its stride [N, 1], fp32."""
    points, steps = [], []
    for stride in strides:
        along = torch.arange(-(-size // stride)) * float(stride)
        y, x = torch.meshgrid(along, along, indexing="ij")
        points.append(torch.stack([x.flatten(), y.flatten()], 1))
        steps.append(torch.full((len(points[-1]), 1), float(stride)))
    return torch.cat(points), torch.cat(steps)


def decode(raw: Mapping[str, Tensor], size: int, strides: Sequence[int]) -> list[dict[str, Tensor]]:
    """Detections of each image from raw outputs, best first: ``boxes`` [K, 4] in pixels, ``scores`` and ``labels`` [K].

    FCOS, section 3.3: a score is the geometric mean of class and centerness; what overlaps a better box of its class
    by an IoU of 0.6 goes.
    """
    points, steps = places(size, strides)
    found = []
    for logits, distances, centerness in zip(*(raw[name].float().cpu() for name in OUTPUTS), strict=True):
        scores = torch.sqrt(logits.sigmoid() * centerness.sigmoid())
        best = scores.flatten().topk(min(CANDIDATES, scores.numel()))
        kept = best.indices[best.values > SCORE_FROM]
        place, label = kept // scores.shape[1], kept % scores.shape[1]
        reach = distances[place] * steps[place]
        boxes = torch.cat([points[place] - reach[:, :2], points[place] + reach[:, 2:]], 1)
        boxes, score = clip_boxes_to_image(boxes, (size, size)), scores.flatten()[kept]
        chosen = batched_nms(boxes, score, label, OVERLAP)[:DETECTIONS]
        found.append({"boxes": boxes[chosen], "scores": score[chosen], "labels": label[chosen]})
    return found
