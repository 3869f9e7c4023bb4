"""What a ``--data`` names: a task's files, the folder of several tasks' published folders, a corpus of the hub."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sparseticket.errors import UserError

HUB = "hub:"  # hub:OWNER/NAME or hub:OWNER/NAME:CONFIGURATION, for tasks that take any corpus
IMAGE_FOLDERS = ("image-folder", "imagenet", "simclr", "moco")  # tasks whose data are of one and the same layout
FOLDERS = {  # of each task, from the most likely
    "mnli": ("MNLI",),
    "qqp": ("QQP",),
    "stsb": ("STS-B",),
    "wnli": ("WNLI",),
    "qnli": ("QNLI",),
    "mrpc": ("MRPC",),
    "rte": ("RTE",),
    "sst2": ("SST-2",),
    "cola": ("CoLA",),
    "squad": ("squad", "SQuAD", "squad-v1.1"),
    "mlm": ("wikitext-103-raw", "wikitext-103", "wikitext-2-raw", "wikitext-2", "mlm"),
    "cifar10": ("cifar-10-batches-bin", "cifar-10-binary.tar.gz", "cifar-10"),
    "cifar100": ("cifar-100-binary", "cifar-100-binary.tar.gz", "cifar-100"),
    "svhn": ("SVHN", "svhn"),
    "fashion-mnist": ("FashionMNIST", "fashion-mnist"),
    "visda17": ("visda-2017", "visda17", "VisDA-2017"),
    **dict.fromkeys(("imagenet", "simclr", "moco"), ("imagenet", "ImageNet", "imagenet-1k")),
    "detection": ("detection", "VOC2007", "VOCdevkit/VOC2007", "VOCdevkit", "bccd"),
    "segmentation": ("segmentation", "VOC2012", "VOCdevkit/VOC2012", "VOCdevkit", "camvid", "CamVid"),
    "segmentation-v3": ("segmentation", "VOC2012", "VOCdevkit/VOC2012", "VOCdevkit", "camvid", "CamVid"),
}


def is_hub(data: Path) -> bool:
    """True for a data set of the Hugging Face hub, which is no path here."""
    return str(data).startswith(HUB)


def is_there(data: Path) -> bool:
    """False where ``data`` should be a file or folder and is none."""
    return is_hub(data) or data.exists()


def recorded(data: Path) -> str:
    """As settings keep it: a whole path, so that a run can be run again from elsewhere."""
    return str(data if is_hub(data) else data.resolve())


def data_of(task: str, root: Path | None, *, alone: bool, nameable: bool = False) -> Path | None:
    """The data of ``task`` under ``root``: in the task's own folder there, or in that inside ``root/glue``.

    ``root`` itself is taken where it is the only task's (``alone``), and by every task on class folders where it has
    ``train`` or is an archive; without one, a task needs none or fetches its own.
    ``nameable`` says that the verb takes ``TASK=PATH`` too.

    Raises:
        UserError: one of several tasks has no folder under ``root``; says which would be taken.
    """
    if root is None or is_hub(root):
        return root
    if not root.exists():
        raise UserError(f"there is no file or folder {root}: give the data's place with --data.")
    names = FOLDERS.get(task, (task,))
    for folder in (root, root / "glue"):
        for name in names:
            if (folder / name).exists():
                return folder / name
    if alone or (task in IMAGE_FOLDERS and _holds_image_folders(root)):
        return root
    named = f", or name its place with --data {task}=PATH" if nameable else " (a link will do)"
    raise UserError(
        f"--data {root} has nothing for the task {task}: put its data there as {' or '.join(names)}{named}."
    )


def _holds_image_folders(root: Path) -> bool:
    return root.is_file() or (root / "train").is_dir()


def places(
    given: Iterable[str], *, option: str = "--data", example: str = "sst2"
) -> tuple[Path | None, dict[str, Path]]:
    """What several ``--data`` say: ``DIR`` for all tasks, ``TASK=PATH`` for one (or of another ``option``).

    Raises:
        UserError: more than one for all or for a task, or a place of no name.
    """
    root, own = None, {}
    for text in given:
        task, equals, path = text.partition("=")
        if equals and not Path(text).exists():
            if not path or not task:
                raise UserError(f"{option} {text}: say both what it is for and where it is, as {example}=PATH.")
            if task in own:
                raise UserError(f"{option} {text}: {task} has the place {own[task]} already.")
            own[task] = Path(path)
        elif not text:
            raise UserError(f"{option} is empty: give a place.")
        elif root is None:
            root = Path(text)
        else:
            raise UserError(
                f"{option} is given twice without a name, {root} and {text}: say what one is for, as {example}={text}."
            )
    return root, own
