import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms.v2 import functional as VF

from sparseticket.errors import UserError
from sparseticket.models import resolve
from sparseticket.tasks import TaskOptions, image_pixels
from sparseticket.tasks.digits import Digits
from sparseticket.tasks.image_folder import ImageFolder

DATA = os.environ.get("SPARSETICKET_DATA")
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
CLASSES = ("cat", "dog", "emu")
DRAW = {"seed": 0, "round": 1, "epoch": 2}
RESNET20 = resolve("resnet20-cifar")
RESNET18 = resolve("resnet18")


def picture(label, number, height=32, width=32):
    return np.random.default_rng([label, number]).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_pictures(root, *, train=7, evaluation=3, eval_name="test", height=32, width=32):
    for split, count in (("train", train), (eval_name, evaluation)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                image = picture(label, number + 100 * (split != "train"), height, width)
                Image.fromarray(image).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def zipped(folder, path, around=""):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{around}README.txt", "not an image")
        archive.writestr("__MACOSX/train/cat/._0.png", "not an image either")
        for file in sorted(folder.rglob("*.[pj]*")):
            archive.write(file, around + file.relative_to(folder).as_posix())
    return path


def folder_task(data, batch_size=4, spec=RESNET20):
    return ImageFolder(spec, TaskOptions(data=data, batch_size=batch_size))


def together(batches):
    batches = list(batches)
    return torch.cat([b["pixels"] for b in batches]), torch.cat([b["labels"] for b in batches])


def as_bytes(pixels):
    """Undo the normalisation."""
    return ((pixels * STD + MEAN) * 255).round().to(torch.uint8)


def test_evaluation_sees_every_image_in_order_normalised_for_the_model_and_nothing_else(pictures):
    task = folder_task(pictures)
    pixels, labels = together(task.batches("eval", **DRAW))
    expected = torch.stack(
        [torch.from_numpy(picture(label, 100 + n)).permute(2, 0, 1) for label in range(3) for n in range(3)]
    )
    assert task.class_names == CLASSES and task.head.classes == 3
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and labels.dtype == torch.int64
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, (expected / 255 - MEAN) / STD)


@pytest.mark.parametrize("around", ["", "pets/"])
def test_a_zip_is_the_same_data_as_its_folder(pictures, tmp_path, around):
    from_folder, from_zip = folder_task(pictures), folder_task(zipped(pictures, tmp_path / "p.zip", around))
    assert from_zip.data_id == from_folder.data_id
    for split in ("train", "eval"):
        for ours, theirs in zip(from_zip.batches(split, **DRAW), from_folder.batches(split, **DRAW), strict=True):
            assert torch.equal(ours["pixels"], theirs["pixels"]) and torch.equal(ours["labels"], theirs["labels"])


def test_data_with_another_file_has_another_identity(pictures, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(pictures, copy)
    assert folder_task(copy).data_id == folder_task(pictures).data_id
    Image.fromarray(picture(9, 9)).save(copy / "train/cat/more.png")
    assert folder_task(copy).data_id != folder_task(pictures).data_id


@pytest.mark.parametrize("eval_name", ["test", "val", "valid", "eval"])
def test_the_evaluation_folder_may_have_any_of_its_usual_names(tmp_path, eval_name):
    task = folder_task(write_pictures(tmp_path / "around" / "it", eval_name=eval_name).parent)
    assert sum(len(batch["labels"]) for batch in task.batches("eval", **DRAW)) == 9


def test_training_batches_are_a_function_of_seed_round_epoch_and_index_alone(pictures):
    batches = folder_task(pictures, 6).batches("train", **DRAW)
    again = folder_task(pictures, 6).batches("train", **DRAW)
    torch.manual_seed(99)
    for index in (3, 0, 3):
        assert torch.equal(batches[index]["pixels"], again[index]["pixels"])
    pixels, labels = together(batches)
    assert sorted(labels.tolist()) == [0] * 7 + [1] * 7 + [2] * 7
    for name in DRAW:
        other_pixels, _ = together(folder_task(pictures, 6).batches("train", **{**DRAW, name: 5}))
        assert not torch.equal(pixels, other_pixels), name


@pytest.mark.parametrize("name", DRAW)
@pytest.mark.parametrize("spec", [RESNET20, RESNET18], ids=["shifted", "cropped"])
def test_the_order_and_the_view_of_an_image_are_each_drawn_anew_by_seed_round_and_epoch(pictures, spec, name):
    task = folder_task(pictures, spec=spec)
    one, other = (DRAW | {name: value} for value in (7, 8))
    assert not torch.equal(*(torch.cat(task.batches("train", **draw).rows) for draw in (one, other)))
    rows = torch.arange(6)
    views = zip(*(task.augmented(**draw)[rows] for draw in (one, other)), strict=True)
    assert sum(torch.equal(*pair) for pair in views) <= 1


def test_what_an_example_looks_like_does_not_depend_on_the_batch_it_is_in(pictures):
    by_four, by_five = (together(folder_task(pictures, size).batches("train", **DRAW)) for size in (4, 5))
    assert torch.equal(by_four[0][:20], by_five[0][:20])


def test_every_training_image_is_a_shifted_and_perhaps_flipped_original(pictures):
    pixels, labels = together(folder_task(pictures, 6).batches("train", **DRAW))
    seen = set()
    for image, label in zip(as_bytes(pixels), labels.tolist(), strict=True):
        views = {}
        for number in range(7):
            original = torch.from_numpy(picture(label, number)).permute(2, 0, 1)
            padded = F.pad(original, (4, 4, 4, 4))
            for down in range(9):
                for across in range(9):
                    crop = VF.crop(padded, down, across, 32, 32)
                    views[crop.numpy().tobytes()] = (label, number, down, across, False)
                    views[crop.flip(-1).numpy().tobytes()] = (label, number, down, across, True)
        seen.add(views[image.numpy().tobytes()])
    assert len({view[:2] for view in seen}) == 21
    assert len({view[2] for view in seen}) > 4 and len({view[3] for view in seen}) > 4
    assert any(view[2] != view[3] for view in seen)
    assert {view[4] for view in seen} == {True, False}


@pytest.mark.parametrize(("batch_size", "sizes"), [(4, [4] * 5), (5, [5] * 4), (6, [6, 6, 6, 3]), (1, [1] * 21)])
def test_a_last_batch_of_one_example_is_left_out_of_training_only(pictures, batch_size, sizes):
    batches = folder_task(pictures, batch_size).batches("train", **DRAW)
    assert [len(batch["labels"]) for batch in batches] == sizes and len(batches) == len(sizes)


def test_images_that_do_not_fit_in_memory_are_decoded_on_demand_to_the_same_batches(pictures, monkeypatch):
    held = folder_task(pictures)
    monkeypatch.setattr(image_pixels, "HELD_BYTES", 100)
    lazy = folder_task(pictures)
    assert isinstance(held._train.pixels, torch.Tensor) and not isinstance(lazy._train.pixels, torch.Tensor)
    for split in ("train", "eval"):
        assert torch.equal(together(held.batches(split, **DRAW))[0], together(lazy.batches(split, **DRAW))[0])


def test_images_of_another_size_are_brought_to_the_models(tmp_path):
    task = folder_task(write_pictures(tmp_path, train=2, height=40, width=48))
    original = torch.from_numpy(picture(0, 100, 40, 48)).permute(2, 0, 1)
    assert torch.equal(as_bytes(task.batches("eval", **DRAW)[0]["pixels"])[0], VF.resize(original, [32, 32]))
    assert task.batches("train", **DRAW)[0]["pixels"].shape == (4, 3, 32, 32)


def test_a_model_of_large_images_sees_imagenets_views_drawn_from_each_examples_seed(tmp_path):
    write_pictures(tmp_path, train=2, evaluation=1, height=300, width=400)
    shutil.copy(tmp_path / "train/cat/0.png", tmp_path / "train/cat/1.png")
    small_batches, large_batches = (folder_task(tmp_path, size, RESNET18) for size in (2, 3))
    original = torch.from_numpy(picture(0, 100, 300, 400)).permute(2, 0, 1)
    centre = VF.center_crop(VF.resize(original, [256]), [224])
    assert torch.equal(as_bytes(small_batches.batches("eval", **DRAW)[0]["pixels"])[0], centre)
    before = torch.get_rng_state()
    pixels, labels = together(small_batches.batches("train", **DRAW))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(*pixels[labels == 0])  # two copies of one image, each with its own draw
    assert pixels.shape == (6, 3, 224, 224)
    assert torch.equal(pixels, together(large_batches.batches("train", **DRAW))[0])
    assert not torch.equal(pixels, together(small_batches.batches("train", seed=0, round=1, epoch=3))[0])
    assert small_batches.adapt(RESNET18).format.size == 224


def unknown_suffix(root):
    (root / "train" / "fox").mkdir()
    Image.fromarray(picture(9, 9)).save(root / "train" / "fox" / "0.jfif", format="jpeg")


def no_images(root):
    for file in root.rglob("*.png"):
        file.unlink()


def test_a_class_folder_without_a_file_is_refused_and_a_hidden_one_passed_over(tmp_path):
    root = write_pictures(tmp_path / "data")
    (root / "train" / ".checkpoints").mkdir()
    classes = folder_task(root).head.classes
    (root / "train" / "fox").mkdir()
    with pytest.raises(UserError, match=r"class folder .*fox is empty"):
        folder_task(root)
    assert classes == 3


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda root: shutil.rmtree(root / "train"), "folder named train"),
        (lambda root: shutil.rmtree(root / "test"), "in test or val"),
        (no_images, "no images in class folders in train"),
        (lambda root: [shutil.rmtree(root / "train" / name) for name in ("cat", "dog")], "one class only (emu)"),
        (lambda root: shutil.rmtree(root / "train/emu"), "classes that train has not: emu"),
        (lambda root: [shutil.rmtree(root / "test" / name) for name in ("cat", "dog")], "test has images of one class"),
        (unknown_suffix, "train/fox holds 0.jfif and no image of a known kind (.bmp, .gif, .jpeg"),
        (lambda root: (root / "train/cat/3.png").write_bytes(b"no picture"), "train/cat/3.png cannot be read"),
        (lambda root: os.truncate(root / "test/dog/1.png", 900), "test/dog/1.png cannot be read"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_data_that_is_not_as_expected_is_refused_with_what_is_wrong(tmp_path, damage, said, kind):
    root = write_pictures(tmp_path / "data")
    damage(root)
    data = root if kind == "folder" else zipped(root, tmp_path / "data.zip")
    with pytest.raises(UserError) as refused:
        folder_task(data)
    assert said in str(refused.value) or (damage is no_images and "folder named train" in str(refused.value))


def test_no_data_an_absent_folder_and_a_file_that_is_no_zip_are_refused(tmp_path):
    (tmp_path / "notes.zip").write_text("no zip")
    for data in (None, tmp_path / "absent", tmp_path / "notes.zip"):
        with pytest.raises(UserError, match="--data"):
            folder_task(data)


def test_small_image_tasks_give_torchvisions_resnets_the_small_stem_and_leave_cifar_resnets():
    task = Digits(RESNET18, TaskOptions())
    adapted = task.adapt(RESNET18)
    assert adapted.small_stem and adapted.format.size == 32
    assert task.batches("eval", **DRAW)[0]["pixels"].shape[-1] == 32
    kept = task.adapt(RESNET20)
    assert not kept.small_stem and kept.format == RESNET20.format
    assert kept.class_names == tuple("0123456789")


def test_a_saved_model_knows_its_tasks_class_names(pictures, tmp_path):
    from sparseticket.models.vision_saved import describe_saved

    task = folder_task(pictures)
    task.adapt(RESNET20).build(task.head, seed=0).save(tmp_path / "model")
    assert describe_saved(tmp_path / "model").class_names == CLASSES


def test_digits_are_split_once_and_for_all_with_every_class_in_proportion():
    task, again = Digits(RESNET20, TaskOptions(batch_size=64)), Digits(RESNET20, TaskOptions(batch_size=32))
    assert task.data_id == again.data_id
    assert len(task._train.labels) == 1437 and len(task._eval.labels) == 360
    assert task._eval.labels.bincount().min() >= 34 and task._eval.labels.bincount().max() <= 37
    everything = torch.cat([task._train.pixels[:], task._eval.pixels[:]])
    assert len(everything.flatten(1).unique(dim=0)) == 1797
    assert everything.max() == 255 and everything.min() == 0


def test_digits_are_never_mirrored():
    task = Digits(RESNET20, TaskOptions())
    assert not task.augmented(**DRAW).flipped.any()


def test_digits_refuse_data_of_the_users():
    with pytest.raises(UserError, match="image-folder"):
        Digits(RESNET20, TaskOptions(data=Path(".")))


class Oracle(torch.nn.Module):
    """Says the class of each evaluation image in turn, except for the first ``wrong`` of them."""

    def __init__(self, labels, wrong):
        super().__init__()
        self.bn = torch.nn.BatchNorm2d(3)
        self.frozen = torch.nn.BatchNorm2d(3).eval()
        self.answers = labels.clone()
        self.answers[:wrong] = (self.answers[:wrong] + 1) % 10
        self.at = 0

    def forward(self, pixels):
        assert not self.training and not self.bn.training and torch.is_inference_mode_enabled()
        answers = self.answers[self.at : self.at + len(pixels)]
        self.at += len(pixels)
        return F.one_hot(answers, 10).float()


def test_accuracy_is_the_share_of_right_answers_and_every_mode_is_restored():
    task = Digits(RESNET20, TaskOptions())
    model = Oracle(task._eval.labels, wrong=90).train()
    model.frozen.eval()
    assert task.evaluate(model) == {task.metric: 0.75}
    assert model.training and model.bn.training and not model.frozen.training


def test_a_linear_classifier_learns_digits_from_the_tasks_batches_and_loss():
    task = Digits(RESNET20, TaskOptions(batch_size=64))
    model = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten(), torch.nn.LazyLinear(10))
    model(task.batches("eval", **DRAW)[0]["pixels"])
    torch.nn.init.zeros_(model[-1].weight)
    torch.nn.init.zeros_(model[-1].bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for epoch in range(3):
        for step, batch in enumerate(task.batches("train", seed=0, round=0, epoch=epoch)):
            loss = task.loss(model, batch, step=step)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[0] == pytest.approx(np.log(10), abs=1e-3)  # mean over the batch
    assert task.evaluate(model)["accuracy"] > 0.8


@pytest.mark.skipif(DATA is None, reason="SPARSETICKET_DATA is not set")
def test_the_published_resnet20_reads_81_percent_on_the_jpeg_test_images():
    task = folder_task(Path(DATA) / "cifar-10/cifar10-subset.zip", 256)
    weights = Path(DATA) / "resnet-cifar/resnet20-12fca82f.th"
    network = task.adapt(RESNET20).build(task.head, seed=0, weights=weights)
    assert network.head_pretrained
    assert task.evaluate(network.module)["accuracy"] == pytest.approx(0.810, abs=0.003)
    assert len(task.batches("train", seed=0, round=0, epoch=0)) == 79
