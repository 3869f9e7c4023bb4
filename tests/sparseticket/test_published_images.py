"""CIFAR-10 and CIFAR-100, SVHN, Fashion-MNIST and VisDA-2017 out of miniatures of the files they are published in."""

import dataclasses
import gzip
import hashlib
import os
import pickle
import shutil
import tarfile
import zipfile

import numpy as np
import onnxruntime
import pytest
import torch
from miniatures import PUBLISHED, VISDA, random_bytes, write_each
from PIL import Image
from scipy.io import savemat
from torchvision.transforms.v2 import functional as VF

from sparseticket.errors import UserError
from sparseticket.export.exporter import export_model
from sparseticket.imp import find
from sparseticket.models import resolve
from sparseticket.models.vision import IMAGENET_MEAN, IMAGENET_STD
from sparseticket.options import find_settings
from sparseticket.progress import Screen
from sparseticket.recipes import task_defaults
from sparseticket.tasks import TaskOptions, entries, make_task

DRAW = {"seed": 0, "round": 1, "epoch": 2}
RESNET20, RESNET18 = resolve("resnet20-cifar"), resolve("resnet18")
EXECUTED = []


SIDES = {"cifar10": 32, "cifar100": 32, "svhn": 32, "fashion-mnist": 28, "visda17": 32}
CLASSES = {"cifar10": 10, "cifar100": 100, "svhn": 10, "fashion-mnist": 10, "visda17": 12}
AUGMENTED = ("cifar10", "cifar100", "visda17")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return write_each(tmp_path_factory.mktemp("published"), PUBLISHED)


def made(task, data, spec=RESNET20, batch_size=8):
    return make_task(task, spec, TaskOptions(data=data, batch_size=batch_size))


def as_bytes(pixels):
    """Undo the normalisation."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((pixels * std + mean) * 255).round().to(torch.uint8)


def evaluated(task):
    (batch,) = task.batches("eval", **DRAW)
    return as_bytes(batch["pixels"]), batch["labels"]


def packed(folder, path, around=""):
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in files:
                archive.write(file, around + file.relative_to(folder).as_posix())
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w:") as archive:
            for file in files:
                archive.add(file, around + file.relative_to(folder).as_posix())
    return path


@pytest.mark.parametrize("task", PUBLISHED)
@pytest.mark.parametrize("form", ["around", "zip", "tar", "tar.gz"])
def test_the_files_may_lie_deeper_or_be_packed_and_are_the_same_data(published, tmp_path, task, form):
    if form == "around":
        shutil.copytree(published / task, tmp_path / "data" / "published")
        data = tmp_path / "data"
    else:
        data = packed(published / task, tmp_path / f"data.{form}", around="published/")
    ours, theirs = made(task, data), made(task, published / task)
    assert ours.data_id == theirs.data_id and ours.class_names == theirs.class_names
    for split in ("train", "eval"):
        for one, other in zip(ours.batches(split, **DRAW), theirs.batches(split, **DRAW), strict=True):
            assert torch.equal(one["pixels"], other["pixels"]) and torch.equal(one["labels"], other["labels"])


@pytest.mark.parametrize("task", PUBLISHED)
def test_every_task_has_its_images_classes_recipe_and_augmentation(published, task):
    one, side = made(task, published / task), SIDES[task]
    assert one.head.classes == CLASSES[task] == len(one.class_names)
    batches = one.batches("train", **DRAW)
    assert [tuple(batch["pixels"].shape) for batch in batches] == [(n, 3, side, side) for n in (8, 8, 4)]
    adapted = one.adapt(RESNET18)
    assert (adapted.format.size, adapted.small_stem) == ((side, True) if task != "visda17" else (224, False))
    other = one.batches("train", **{**DRAW, "epoch": 3})
    in_order = [torch.cat([batch["pixels"] for batch in many]).flatten(1).sort(dim=0)[0] for many in (batches, other)]
    assert torch.equal(*in_order) == (task not in AUGMENTED)
    assert entries()[task].recipe == f"cvpr21/{task}" and task_defaults(task).task == task


def test_cifar10_reads_labels_and_colour_planes_of_the_binary_layout(published):
    task = made("cifar10", published / "cifar10")
    records = np.fromfile(published / "cifar10/test_batch.bin", dtype=np.uint8).reshape(4, 3073)
    pixels, labels = evaluated(task)
    assert labels.tolist() == records[:, 0].tolist() and labels.dtype == torch.int64
    assert pixels[2, 1, 5, 7] == records[2, 1 + 1024 + 5 * 32 + 7]
    assert np.array_equal(pixels.numpy().reshape(4, -1), records[:, 1:])
    assert task.class_names[3] == "cat"


def test_cifar100_takes_the_fine_labels(published):
    records = np.fromfile(published / "cifar100/test.bin", dtype=np.uint8).reshape(4, 3074)
    task = made("cifar100", published / "cifar100")
    pixels, labels = evaluated(task)
    assert labels.tolist() == records[:, 1].tolist() == [0, 5, 10, 15]
    assert np.array_equal(pixels.numpy().reshape(4, -1), records[:, 2:])
    assert task.class_names[15] == "name_15"


def test_svhn_has_its_pixels_upright_and_the_digit_0_as_class_0(tmp_path):
    images = random_bytes(32, 32, 3, 3)
    for name in ("train_32x32.mat", "test_32x32.mat"):
        savemat(tmp_path / name, {"X": images, "y": np.array([[10], [1], [9]], dtype=np.uint8)})
    pixels, labels = evaluated(made("svhn", tmp_path))
    assert labels.tolist() == [0, 1, 9]
    assert np.array_equal(pixels.numpy(), images.transpose(3, 2, 0, 1))


@pytest.mark.parametrize("gzipped", [True, False])
def test_fashion_mnist_is_its_grey_value_in_all_three_channels(published, tmp_path, gzipped):
    data = published / "fashion-mnist"
    content = gzip.decompress((data / "t10k-images-idx3-ubyte.gz").read_bytes())
    if not gzipped:
        raw = tmp_path / "FashionMNIST" / "raw"  # as torchvision leaves it
        raw.mkdir(parents=True)
        for file in data.iterdir():
            (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
        data = tmp_path
    task = made("fashion-mnist", data)
    pixels, labels = evaluated(task)
    grey = np.frombuffer(content, np.uint8, offset=16).reshape(4, 28, 28)
    assert all(np.array_equal(pixels[:, channel], grey) for channel in range(3))
    assert labels.tolist() == [0, 1, 2, 3] and task.class_names[9] == "Ankle boot"


def test_visda_follows_its_lists_and_squeezes_whole_photographs(published):
    task = made("visda17", published / "visda17")
    pixels, labels = evaluated(task)
    assert task.class_names == VISDA
    assert labels.tolist() == [number * 7 % 12 for number in range(12)]
    name = f"{VISDA[labels[3]]}/003.png"
    image = torch.from_numpy(np.array(Image.open(published / "visda17/validation" / name))).permute(2, 0, 1)
    assert torch.equal(pixels[3], VF.resize(image, [32, 32]))


def test_visda_may_be_a_folder_with_an_archive_for_each_split_and_feeds_large_models(published, tmp_path):
    for split, form in (("train", "tar"), ("validation", "zip")):
        packed(published / "visda17" / split, tmp_path / f"{split}.{form}", around=f"{split}/")
    task, whole = (made("visda17", data, RESNET18, 2) for data in (tmp_path, published / "visda17"))
    assert task.data_id == whole.data_id
    ours, theirs = (one.batches("train", **DRAW)[1] for one in (task, whole))
    assert ours["pixels"].shape == (2, 3, 224, 224) and torch.equal(ours["pixels"], theirs["pixels"])


def lists(folder, change):
    file = folder / "train" / "image_list.txt"
    file.write_text("\n".join(change(file.read_text().splitlines())) + "\n")


def two_classes_of_a_folder(lines):
    return [line for line in lines if not line.endswith(" 11")] + [lines[0].replace("000.png 0", "012.png 11")]


def train_on_what_is_evaluated(folder):
    shutil.rmtree(folder / "validation")
    shutil.copytree(folder / "train", folder / "validation")


DAMAGES = [
    ("cifar10", lambda folder: (folder / "data_batch_4.bin").unlink(), "data_batch_4.bin missing"),
    ("cifar10", lambda folder: os.truncate(folder / "test_batch.bin", 3073 * 3 + 5), "9224 bytes"),
    ("cifar10", lambda folder: os.truncate(folder / "test_batch.bin", 0), "0 bytes"),
    ("cifar10", lambda folder: (folder / "data_batch_2.bin").write_bytes(b"\x0a" * 3073), "the label 10"),
    ("cifar10", lambda folder: (folder / "data_batch_1.bin").unlink(), "no data_batch_1.bin"),
    ("cifar10", lambda folder: (folder / "batches.meta.txt").write_text("cat\n"), "has 1 names"),
    ("cifar10", shutil.rmtree, "no such folder"),
    ("cifar100", lambda folder: (folder / "test.bin").unlink(), "test.bin missing"),
    ("cifar100", lambda folder: (folder / "train.bin").write_bytes(b"\x64" * 3074), "the label 100"),
    ("svhn", lambda folder: (folder / "test_32x32.mat").unlink(), "not there together"),
    ("svhn", lambda folder: os.truncate(folder / "train_32x32.mat", 5000), "not SVHN's file, or damaged"),
    (
        "svhn",
        lambda folder: savemat(folder / "train_32x32.mat", {"X": np.zeros((32, 32, 3, 2)), "y": [[1], [2]]}),
        "X of",
    ),
    ("svhn", lambda folder: (folder / "train_32x32.mat").write_bytes(b"no matlab"), "not SVHN's file, or damaged"),
    ("fashion-mnist", lambda folder: (folder / "t10k-labels-idx1-ubyte.gz").unlink(), "not there together"),
    ("fashion-mnist", lambda f: os.truncate(f / "train-images-idx3-ubyte.gz", 4000), "cannot be unpacked"),
    (
        "fashion-mnist",
        lambda f: shutil.copy(f / "t10k-labels-idx1-ubyte.gz", f / "t10k-images-idx3-ubyte.gz"),
        "does not begin as an idx file",
    ),
    (
        "fashion-mnist",
        lambda f: shutil.copy(f / "t10k-labels-idx1-ubyte.gz", f / "train-labels-idx1-ubyte.gz"),
        "4 labels",
    ),
    ("visda17", lambda folder: (folder / "validation/image_list.txt").unlink(), "missing or empty"),
    ("visda17", lambda folder: lists(folder, lambda lines: [*lines, lines[0]]), "a file is listed once"),
    ("visda17", lambda folder: lists(folder, two_classes_of_a_folder), "a folder is one class"),
    ("visda17", train_on_what_is_evaluated, "every image to evaluate on is one to train on"),
    ("visda17", lambda folder: shutil.rmtree(folder / "validation"), "no train beside validation"),
    ("visda17", lambda folder: (folder / "train/aeroplane/000.png").unlink(), "aeroplane/000.png, line 1"),
    ("visda17", lambda folder: (folder / "train/image_list.txt").write_text("bus/1.png bus\n"), "line 1 of train"),
    ("visda17", lambda folder: (folder / "train/image_list.txt").write_text("\n \nbus/1.png bus\n"), "line 3 of train"),
    (
        "visda17",
        lambda folder: (folder / "train/image_list.txt").write_text("../../secret.png 3\n"),
        "line 1 of train/image_list.txt, is not there",
    ),
    ("visda17", lambda folder: (folder / "train/aeroplane/000.png").write_bytes(b"no image"), "000.png cannot be read"),
]


@pytest.mark.parametrize(("task", "damage", "said"), DAMAGES)
def test_files_that_are_not_as_published_are_refused_with_what_to_fetch(published, tmp_path, task, damage, said):
    data = tmp_path / "data"
    shutil.copytree(published / task, data)
    damage(data)
    with pytest.raises(UserError) as refused:
        made(task, data)
    assert said in str(refused.value)
    assert any(hint in str(refused.value) for hint in ("etch", "cannot be read", "evaluate on others"))


class Bomb:
    def __reduce__(self):
        return EXECUTED.append, ("ran",)


@pytest.mark.parametrize(("task", "name"), [("cifar10", "data_batch_1"), ("cifar100", "train")])
def test_the_pickled_cifar_is_refused_and_never_loaded(tmp_path, task, name):
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match=f"pickled files of {task}.*binary version.*image-folder"):
        made(task, tmp_path)
    assert not EXECUTED


def serve(monkeypatch, contents):
    """Let torchvision's downloads find these files by their URL's last part, and nothing else."""
    import torchvision.datasets.utils as utils

    def retrieve(url, place):
        if (name := url.rsplit("/", 1)[1]) not in contents:
            raise OSError("no network")
        with open(place, "wb") as file:
            file.write(contents[name])

    monkeypatch.setattr(utils, "_urlretrieve", retrieve)
    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, max_hops: url)


@pytest.mark.parametrize("task", [task for task in PUBLISHED if task != "visda17"])
def test_without_data_or_a_network_it_is_said_what_to_fetch(monkeypatch, tmp_path, task):
    monkeypatch.setenv("SPARSETICKET_CACHE", str(tmp_path))
    serve(monkeypatch, {})
    with pytest.raises(UserError, match=r"could not be fetched \(no network\)[\s\S]*pass --data"):
        made(task, None)


def test_a_download_that_is_not_the_published_file_is_refused_and_the_right_one_is_kept(
    monkeypatch, tmp_path, published
):
    from sparseticket.tasks import cifar_binary
    from sparseticket.tasks.cifar_binary import CIFAR10, Published

    monkeypatch.setenv("SPARSETICKET_CACHE", str(tmp_path / "cache"))
    archive = packed(published / "cifar10", tmp_path / "cifar.tar.gz", around="cifar-10-batches-bin/").read_bytes()
    serve(monkeypatch, {"cifar-10-binary.tar.gz": archive})
    with pytest.raises(UserError, match="could not be fetched"):
        made("cifar10", None)
    ours = Published(CIFAR10.archive.url, hashlib.md5(archive).hexdigest())
    monkeypatch.setattr(cifar_binary, "CIFAR10", dataclasses.replace(CIFAR10, archive=ours))
    expected = made("cifar10", published / "cifar10").data_id
    assert made("cifar10", None).data_id == expected
    serve(monkeypatch, {})
    assert made("cifar10", None).data_id == expected


def test_visda_has_no_download():
    with pytest.raises(UserError, match=r"visda17 needs --data.*train\.tar and validation\.tar"):
        made("visda17", None)


@pytest.mark.parametrize("task", PUBLISHED)
def test_a_ticket_of_every_task_exports_with_its_accuracy(published, tmp_path, task):
    settings = find_settings(
        "resnet20-cifar",
        task=task,
        data=published / task,
        protocol={"schedule": "one-shot", "sparsity": 0.5},
        dense=False,
        training={"round_length": "1it", "batch_size": 8},
    )
    find(settings, tmp_path / "run", screen=Screen(quiet=True))
    report = export_model(tmp_path / "run", tmp_path / "onnx", data=published / task)
    assert report["task"]["name"] == task and report["task"]["onnx"] == report["task"]["pytorch"]
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    (pixels,) = session.get_inputs()
    assert list(pixels.shape[1:]) == [3, SIDES[task], SIDES[task]]
    (logits,) = session.run(None, {pixels.name: np.zeros((2, 3, SIDES[task], SIDES[task]), dtype=np.float32)})
    assert logits.shape == (2, CLASSES[task])
