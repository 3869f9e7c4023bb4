"""Pixels: CamVid's and VOC's layouts read and refused, crops of image and mask together, mean IoU by hand."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from miniatures import HEIGHT, WIDTH, scene, write_camvid
from PIL import Image

from sparseticket.checkpoint import Checkpoint
from sparseticket.errors import UserError
from sparseticket.models import Head, resolve
from sparseticket.settings import Training
from sparseticket.tasks import TaskOptions, make_task, mask_files
from sparseticket.tasks.mask_files import MaskedImages
from sparseticket.training import Round, make_accelerator, train

DATA = os.environ.get("SPARSETICKET_DATA")
DRAW = {"seed": 0, "round": 1, "epoch": 2}
RESNET20 = resolve("resnet20-cifar")
SIDE = 128
VOID = 255


def write_voc(root):
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for number in range(4):
        image, mask = scene(number, (0, 1, 20), 255)
        Image.fromarray(image).save(root / "JPEGImages" / f"2007_{number}.jpg")
        coloured = Image.new("P", (WIDTH, HEIGHT))
        coloured.putdata(mask.flatten().tolist())
        coloured.putpalette([value for index in range(256) for value in (255 - index, index, index // 2)])
        coloured.save(root / "SegmentationClass" / f"2007_{number}.png")
    lists = root / "ImageSets" / "Segmentation"
    (lists / "train.txt").write_text("2007_0\n2007_1\n")
    (lists / "val.txt").write_text("2007_2\n2007_3\n")
    return root


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    return write_camvid(tmp_path_factory.mktemp("data") / "camvid")


def task_of(data, batch_size=2, name="segmentation"):
    return make_task(name, RESNET20, TaskOptions(data=data, batch_size=batch_size))


def test_image_and_mask_are_cropped_and_mirrored_together(camvid):
    task = task_of(camvid, batch_size=6)
    (batch,) = task.batches("train", **DRAW)
    assert batch["pixels"].shape == (6, 3, SIDE, SIDE) and batch["masks"].shape == (6, SIDE, SIDE)
    red = ((batch["pixels"][:, 0] * 0.229 + 0.485) * 255 / 20).round()
    real = batch["masks"] != VOID
    assert (red == batch["masks"])[real].float().mean() > 0.97  # edges are blurred in the image alone
    assert set(batch["masks"].unique().tolist()) <= {0, 3, 10, VOID}


def test_a_batch_is_a_function_of_its_names_and_leaves_torch_s_generator_alone(camvid):
    before = torch.get_rng_state()
    first, again, other = (task_of(camvid).batches("train", **DRAW | change)[1] for change in ({}, {}, {"epoch": 3}))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["pixels"], other["pixels"])


@pytest.mark.parametrize("name", DRAW)
def test_the_order_and_the_crop_of_an_image_are_each_drawn_anew_by_seed_round_and_epoch(camvid, name):
    task = task_of(camvid)
    one, other = (task.batches("train", **DRAW | {name: value}) for value in (7, 8))
    assert not torch.equal(torch.cat(one.rows), torch.cat(other.rows))
    crops = (batches.make(torch.arange(6))["masks"] for batches in (one, other))
    assert not any(torch.equal(*pair) for pair in zip(*crops, strict=True))


def test_what_fits_into_memory_is_decoded_before_any_worker_begins_and_the_rest_when_asked_for(camvid, monkeypatch):
    held = task_of(camvid)
    monkeypatch.setattr(mask_files, "HELD_BYTES", 2 * 4 * held._train[0][1].numel())
    two_held = task_of(camvid)
    decoded, decode = [], MaskedImages._decode
    monkeypatch.setattr(MaskedImages, "_decode", lambda images, row: decoded.append(row) or decode(images, row))
    for one, other in zip(held.batches("train", **DRAW), two_held.batches("train", **DRAW), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert sorted(decoded) == [2, 3, 4, 5]


def test_masks_with_a_palette_are_class_indices_and_255_is_void(tmp_path):
    task = task_of(write_voc(tmp_path / "VOCdevkit" / "VOC2012"))
    assert task.head == Head("segmentation", 21) and task.class_names[20] == "tvmonitor"
    _, mask = task._eval[0]
    assert torch.equal(mask, torch.from_numpy(scene(2, (0, 1, 20), 255)[1]))


class Answers(torch.nn.Module):
    """Logits that are largest at the given classes; masks [B, h, w] for the images in order."""

    def __init__(self, masks, classes):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(()))
        self.masks, self.classes = masks, classes

    def forward(self, pixels):
        masks, self.masks = self.masks[: len(pixels)], self.masks[len(pixels) :]
        return torch.nn.functional.one_hot(masks, self.classes).permute(0, 3, 1, 2).float() * 10


def answered(masks, root):
    task = task_of(root)
    model = Answers(masks, 11).train()
    result = task.evaluate(model)
    assert model.training
    return result


def test_mean_iou_is_what_it_is_by_hand_and_void_pixels_do_not_count(tmp_path):
    """One image of 4 x 4: classes 0 (4 pixels), 1 (6), 2 (2), void (4); said 0 for all but the last row, which is 1.

    Row by row, truth / said:  0 0 0 0 / 0 0 0 0 — v v v v / 0 0 0 0 — 1 1 2 2 / 0 0 0 0 — 1 1 1 1 / 1 1 1 1.
    IoU: class 0 4/8 (said 8 times where it counts), class 1 4/6, class 2 0/2; the mean of three is 7/18.
    """
    root = write_camvid(tmp_path / "camvid", train=1, evaluation=1)
    truth = torch.tensor([[0, 0, 0, 0], [11, 11, 11, 11], [1, 1, 2, 2], [1, 1, 1, 1]], dtype=torch.uint8)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(root / "val" / "1.png")
    Image.fromarray(truth.numpy()).save(root / "valannot" / "1.png")
    said = torch.zeros(1, 4, 4, dtype=torch.int64)
    said[:, 3] = 1
    result = answered(said, root)
    assert result["mIoU"] == pytest.approx((4 / 8 + 4 / 6 + 0) / 3)
    assert result["pixel accuracy"] == pytest.approx(8 / 12)


def test_answers_are_measured_in_the_size_of_the_mask(camvid):
    masks = torch.stack([torch.from_numpy(scene(number)[1]).long() for number in range(6, 9)])
    assert (masks[:, 0] == 11).all()
    masks[:, 0] = 0  # the void row: what is said there does not count
    assert answered(masks, camvid)["mIoU"] == 1.0
    twice = masks.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert answered(twice, camvid)["mIoU"] > 0.95  # edges fall between pixels


def test_a_batch_of_nothing_but_void_gives_no_loss_and_no_nan(camvid):
    task = task_of(camvid)
    batch = {"pixels": torch.zeros(2, 3, 4, 4), "masks": torch.full((2, 4, 4), VOID)}
    assert task.loss(Answers(torch.zeros(2, 4, 4, dtype=torch.int64), 11), batch, step=0) == 0


def spoil(root, name, array, mode=None):
    Image.fromarray(array, mode).save(root / name)


def void(root, split, numbers, index=11):
    for number in numbers:
        spoil(root, f"{split}annot/{number}.png", np.full((60, 80), index, np.uint8))


def same_stem(root):
    Image.open(root / "train" / "1.png").save(root / "train" / "0.bmp")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: (root / "trainannot" / "2.png").unlink(), "trainannot/2.png is missing"),
        (lambda root: spoil(root, "trainannot/2.png", np.full((60, 80), 12, np.uint8)), "has the class 12"),
        (lambda root: spoil(root, "trainannot/2.png", np.zeros((60, 81), np.uint8)), r"\(60, 81\) pixels"),
        (lambda root: spoil(root, "trainannot/2.png", np.zeros((60, 80, 3), np.uint8)), "not class indices"),
        (lambda root: shutil.rmtree(root / "valannot"), "expected a folder"),
        (
            lambda root: spoil(root, "valannot/7.png", np.full((60, 80), 77, np.uint8)),
            "valannot/7.png has the class 77",
        ),
        (
            lambda root: void(root, "val", range(6, 9)),
            "val/6.png and 2 others hold no class, and two",
        ),
        (lambda root: void(root, "val", range(6, 9), 3), "hold road alone, and two classes are the least"),
        (same_stem, "two images of train have one mask, trainannot/0.png"),
        (lambda root: void(root, "train", range(6)), "the masks of train/0.png and 5 others hold no class"),
        (
            lambda root: [file.unlink() for file in (root / "val").iterdir()] and (root / "val/a.txt").write_text(""),
            "no images in the folder val",
        ),
        (
            lambda root: [shutil.copy(root / "train/0.png", root / f"val/{n}.png") for n in range(6, 9)],
            "every image to evaluate on is one to train on",
        ),
    ],
)
def test_data_that_cannot_be_used_is_refused(tmp_path, change, words):
    root = write_camvid(tmp_path / "camvid")
    change(root)
    with pytest.raises(UserError, match=words):  # before anything is trained
        task_of(root)


def test_images_in_folders_of_camvid_s_splits_have_their_masks_in_the_same_folders(tmp_path):
    root = write_camvid(tmp_path / "camvid")
    for folder in ("train", "trainannot"):
        (root / folder / "a").mkdir()
        shutil.copy(root / folder / "5.png", root / folder / "a" / "0.png")
    task = task_of(root)
    assert len(task._train) == 7
    rows = {name: row for row, (name, _) in enumerate(task._train.pairs)}
    (image, mask), (same, its_mask) = (task._train[rows[f"train/{name}.png"]] for name in ("a/0", "5"))
    assert torch.equal(image, same) and torch.equal(mask, its_mask)


class Killed(BaseException):
    pass


def trained(task, *, checkpoint=None, stop=None):
    network = RESNET20.for_images(SIDE).build(task.head, seed=0)
    draw = torch.Generator().manual_seed(0)
    masks = {name: torch.rand(network.backbone()[name].shape, generator=draw) < 0.5 for name in network.prunable}

    def on_step(step, total, loss):
        if step == stop:
            raise Killed

    settings = Training(round_length="3it", batch_size=2, optimizer="sgd", lr=0.01, decay="poly")
    rest = {"accelerator": make_accelerator(), "checkpoint": checkpoint, "on_step": on_step}
    train(network, task, masks, settings, Round(0, 0), **rest)
    return network, masks


@pytest.mark.parametrize("name", ["segmentation", "segmentation-v3"])
def test_a_segmenter_trains_under_its_masks_and_a_killed_training_ends_with_the_same_bits(camvid, tmp_path, name):
    whole, masks = trained(task_of(camvid, name=name))
    backbone = whole.backbone()
    assert len(masks) == 18
    assert all(not backbone[at][~mask].any() and backbone[at][mask].all() for at, mask in masks.items())
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors", every=0.0)
    with pytest.raises(Killed):
        trained(task_of(camvid, name=name), checkpoint=checkpoint, stop=2)
    again, _ = trained(task_of(camvid, name=name), checkpoint=checkpoint)
    state = again.module.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in whole.module.state_dict().items())


@pytest.mark.parametrize("name", ["segmentation", "segmentation-v3"])
def test_batches_of_one_image_are_refused_before_anything_is_trained(camvid, name):
    with pytest.raises(UserError, match=f"task {name} needs --batch-size 2 or more"):
        task_of(camvid, batch_size=1, name=name)


def test_a_batch_that_leaves_a_process_one_image_is_refused_also_the_last(camvid, monkeypatch):
    images = len(task_of(camvid)._train)
    monkeypatch.setattr("sparseticket.tasks.segmentation.processes", lambda: 2)
    for size in (3, images - 2):
        with pytest.raises(UserError, match=f"two or more, also of the last batch .there are {images} images"):
            task_of(camvid, batch_size=size).begin(torch.nn.Identity(), seed=0, round=0)
    assert task_of(camvid, batch_size=images).begin(torch.nn.Identity(), seed=0, round=0) == ()


def test_a_single_image_to_train_on_is_refused(tmp_path):
    with pytest.raises(UserError, match="one image to train on"):
        task_of(write_camvid(tmp_path / "camvid", train=1)).batches("train", **DRAW)


@pytest.mark.skipif(not DATA, reason="SPARSETICKET_DATA is not set")
def test_camvid_is_read_whole():
    task = task_of(Path(DATA) / "camvid", batch_size=8)
    assert len(task.batches("train", **DRAW)) == 12 and len(task.batches("eval", **DRAW)) == 5  # 92 and 34 images
    image, mask = task._eval[0]
    assert image.shape == (3, 360, 480) and set(mask.unique().tolist()) <= {*range(11), VOID}
