"""A data set that was changed in place, with the same names and sizes, is another."""

import shutil

import numpy as np
import pytest
from miniatures import PUBLISHED, write_camvid, write_class_folders, write_each, write_voc, write_voc_masks
from PIL import Image

from sparseticket.errors import UserError
from sparseticket.models import resolve
from sparseticket.tasks import TaskOptions, data_identity, make_task
from sparseticket.tasks.data_identity import check_apart, digests, identity
from sparseticket.tasks.image_files import open_files

IN_FOLDERS = {
    "image-folder": write_class_folders,
    "simclr": write_class_folders,
    "detection": write_voc,
    "segmentation": write_camvid,
}


def swap_two(root, task):
    """Change a label or an image, and neither a name nor a size."""
    if task in ("cifar10", "cifar100"):
        (file,) = root.glob("test*.bin")
        content = bytearray(file.read_bytes())
        content[3000] ^= 1
        file.write_bytes(content)
    elif task == "detection":
        file = root / "Annotations" / "image_7.xml"
        file.write_text(file.read_text().replace("<xmin>11", "<xmin>12"))
    elif task == "visda17":
        file = root / "train" / "image_list.txt"
        first, second, *rest = file.read_text().splitlines()
        file.write_text("\n".join([second, first, *rest]) + "\n")
    elif task in ("svhn", "fashion-mnist"):
        file = next(file for file in sorted(root.iterdir()) if file.name.startswith("t"))
        content = bytearray(file.read_bytes())
        content[4 if task == "fashion-mnist" else 10] ^= 1  # a time stamp of gzip, a letter of the description
        file.write_bytes(content)
    else:
        folder = next(folder for folder in sorted(root.rglob("*")) if len(list(folder.glob("*.png"))) > 1)
        first, second, *_ = sorted(folder.glob("*.png"))
        here = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(here)


@pytest.mark.parametrize("task", [*IN_FOLDERS, *(name for name in PUBLISHED if name != "fashion-mnist")])
def test_what_was_changed_in_place_is_another_data_set(tmp_path, task):
    writers = IN_FOLDERS | PUBLISHED
    (tmp_path / task).mkdir(exist_ok=True) if task in IN_FOLDERS else write_each(tmp_path, {task: writers[task]})
    if task in IN_FOLDERS:
        writers[task](tmp_path / task)

    def now():
        return make_task(task, resolve("resnet20-cifar"), TaskOptions(tmp_path / task, batch_size=2)).data_id

    before = now()
    assert now() == before
    swap_two(tmp_path / task, task)
    assert now() != before


def test_fashion_mnist_is_told_by_what_is_packed_and_not_by_the_packing(tmp_path):
    write_each(tmp_path, {"fashion-mnist": PUBLISHED["fashion-mnist"]})

    def now():
        spec = resolve("resnet20-cifar")
        return make_task("fashion-mnist", spec, TaskOptions(tmp_path / "fashion-mnist", batch_size=2)).data_id

    before = now()
    swap_two(tmp_path / "fashion-mnist", "fashion-mnist")
    assert now() == before


def test_images_of_a_large_data_set_are_told_by_name_and_size_and_its_annotations_by_content(tmp_path, monkeypatch):
    monkeypatch.setattr(data_identity, "HASHED_BYTES", 10)

    def now():
        files = open_files(tmp_path)
        return identity(digests(files, sorted(files.sizes)))

    (tmp_path / "a.jpg").write_bytes(b"a" * 20)
    (tmp_path / "a.xml").write_bytes(b"a" * 20)
    before = now()
    (tmp_path / "a.jpg").write_bytes(b"b" * 20)
    assert now() == before
    (tmp_path / "a.xml").write_bytes(b"b" * 20)
    assert now() != before
    (tmp_path / "a.jpg").write_bytes(b"a" * 21)
    (tmp_path / "a.xml").write_bytes(b"a" * 20)
    assert now() != before


def test_some_images_in_both_splits_are_said_and_all_are_refused(tmp_path):
    files = open_files(tmp_path)
    assert check_apart(files, ["a", "b"], ["d", "c"]) == ()
    assert check_apart(files, ["10", "20"], ["10", "10"]) == ()  # sizes, which tell nothing
    (note,) = check_apart(files, ["a", "b"], ["a", "a", "c"])
    assert note == "2 of the 3 images to evaluate on are trained on, too."
    with pytest.raises(UserError, match="every image to evaluate on is one to train on"):
        check_apart(files, ["a", "b"], ["a", "a"])


def exchange_splits(root, folder):
    lists = root / "ImageSets" / folder
    train, evaluation = ((lists / name).read_text().splitlines() for name in ("train.txt", "val.txt"))
    train[0], evaluation[0] = evaluation[0], train[0]
    for name, ids in (("train.txt", train), ("val.txt", evaluation)):
        (lists / name).write_text("\n".join(ids) + "\n")


@pytest.mark.parametrize(("task", "lists"), [("detection", "Main"), ("segmentation", "Segmentation")])
def test_an_image_that_changes_to_the_other_split_makes_it_another_data_set(tmp_path, task, lists):
    root = write_voc_masks(write_voc(tmp_path / "voc"))

    def now():
        return make_task(task, resolve("resnet20-cifar"), TaskOptions(root, batch_size=2)).data_id

    before = now()
    exchange_splits(root, lists)
    assert now() != before
    exchange_splits(root, lists)
    assert now() == before


def test_masks_count_by_content_also_in_a_large_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(data_identity, "HASHED_BYTES", 10)
    data, mask = write_camvid(tmp_path / "camvid"), tmp_path / "camvid" / "valannot" / "7.png"

    def now(label):
        Image.fromarray(np.full((60, 80), label, np.uint8)).save(mask)
        task = make_task("segmentation", resolve("resnet20-cifar"), TaskOptions(data, batch_size=2))
        return mask.stat().st_size, task.data_id

    (size, three), (same, four) = now(3), now(4)
    assert size == same and three != four


def test_a_run_that_continues_on_data_changed_in_place_is_refused(cli, tmp_path):
    write_class_folders(tmp_path / "data")
    arguments = ("--task", "image-folder", "--data", tmp_path / "data", "--batch-size", 4, "--round-length", "1it")
    find = ("find", "--model", "resnet20-cifar", *arguments, "--sparsity", 0.2, "--out", tmp_path / "run")
    code, said = cli(*find)
    assert code == 0, said
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / "round-01" / "done").unlink()
    swap_two(tmp_path / "data", "image-folder")
    code, said = cli(*find)
    assert code == 2 and "was begun with other data" in said


def test_what_is_to_know_of_the_data_is_said_once(cli, tmp_path):
    write_class_folders(tmp_path / "data")
    shutil.copy(tmp_path / "data/train/cat/1.png", tmp_path / "data/test/cat/copy.png")
    shutil.copy(tmp_path / "data/train/cat/1.png", tmp_path / "data/train/stray.png")
    arguments = ("--task", "image-folder", "--data", tmp_path / "data", "--batch-size", 4, "--round-length", "1it")
    code, said = cli("find", "--model", "resnet20-cifar", *arguments, "--sparsity", 0.2, "--out", tmp_path / "run")
    assert code == 0, said
    assert said.count("Note: 1 of the 5 images to evaluate on are trained on, too.") == 1
    assert said.count("Note: 1 images are in no class folder and left out, train/stray.png among them.") == 1
