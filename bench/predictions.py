"""Draw what detectors find on images of their evaluation split, beside what is annotated: pictures for documents.

python -m sparseticket.bench.predictions OUT.jpg DATA MODEL …     (DATA in Pascal VOC's layout, model folders)
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from sparseticket.bench.messages import errors_as_messages
from sparseticket.errors import UserError
from sparseticket.export.loaded_model import load
from sparseticket.files import write_whole
from sparseticket.models import resolve
from sparseticket.models.detector import Detector, decode
from sparseticket.models.vision_saved import describe_saved
from sparseticket.tasks import TaskOptions, make_task
from sparseticket.tasks.detection import NO_BOX, Detection

IMAGES = 4
SHOWN_FROM = 0.4  # score: what is less sure counts in average precision, and would hide the picture
COLOURS = ("#ffd400", "#00c8ff", "#ff3df5", "#38e54d", "#ff6a3d")


def draw(out: Path, data: Path, models: list[Path]) -> None:
    """One row of images a model, named by the folder that holds it; above them the annotations.

    Raises:
        UserError: the data cannot be read, or a folder holds no detector of their classes.
    """
    described = describe_saved(models[0])
    task = make_task("detection", resolve(described.architecture), TaskOptions(data=data))
    assert isinstance(task, Detection)
    batch = task.batches("eval", seed=0, round=0, epoch=0)[0]
    batch = {name: tensor[:IMAGES] for name, tensor in batch.items()}
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (task.format.mean, task.format.std))
    images = (batch["pixels"] * std + mean).clamp(0, 1).permute(0, 2, 3, 1)
    annotated = zip(batch["boxes"], batch["labels"], strict=True)
    rows = {"annotated": [(boxes[labels != NO_BOX], labels[labels != NO_BOX]) for boxes, labels in annotated]}
    rows |= {folder.absolute().parent.name: _found(folder, task, batch["pixels"]) for folder in models}
    figure, panels = plt.subplots(len(rows), len(images), figsize=(2.4 * len(images), 1.9 * len(rows)), squeeze=False)
    for line, (name, boxes) in zip(panels, rows.items(), strict=True):
        for panel, image, (corners, labels) in zip(line, images, boxes, strict=True):
            _panel(panel, image, corners, labels)
        line[0].set_ylabel(name, fontsize=7)
    legend = [Patch(color=COLOURS[i % len(COLOURS)], label=name) for i, name in enumerate(task.class_names)]
    figure.legend(handles=legend, loc="lower center", ncols=len(legend), fontsize=7, frameon=False)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    write_whole(out, lambda path: figure.savefig(path, format=out.suffix[1:], dpi=110))


def _found(folder: Path, task: Detection, pixels: Tensor) -> list[tuple[Tensor, Tensor]]:
    model = load(folder)
    if not isinstance(model.module, Detector) or model.module.classes != task.head.classes:
        raise UserError(f"{folder} holds no detector of {', '.join(task.class_names)}.")
    with torch.inference_mode():
        found = decode(model.module(pixels), task.format.size, task.strides)
    sure = [one["scores"] >= SHOWN_FROM for one in found]
    return [(one["boxes"][keep], one["labels"][keep]) for one, keep in zip(found, sure, strict=True)]


def _panel(panel: plt.Axes, image: Tensor, boxes: Tensor, labels: Tensor) -> None:
    panel.imshow(image.numpy(), aspect="auto", interpolation="bilinear")
    for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels.tolist(), strict=True):
        colour = COLOURS[label % len(COLOURS)]
        panel.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, lw=1.2))
    panel.set_xticks([])
    panel.set_yticks([])


@errors_as_messages()
def main() -> None:
    """Draw what the arguments name."""
    if len(sys.argv) < 4:
        raise UserError(
            "name the picture to write, the data and the models: "
            "python -m sparseticket.bench.predictions OUT.jpg DATA MODEL …"
        )
    out, data, *models = (Path(argument) for argument in sys.argv[1:])
    draw(out, data, models)


if __name__ == "__main__":
    main()
