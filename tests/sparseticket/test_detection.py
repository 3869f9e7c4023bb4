"""Boxes: Pascal VOC's layout read and refused, targets and mirrors, average precision by hand."""

import importlib.util
import json
import os
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
from miniatures import SHAPES, annotation, boxes_of, one_object, picture, write_voc, write_voc_masks
from PIL import Image
from safetensors.torch import load_file

import sparseticket.imp as imp
from sparseticket.bench.predictions import draw
from sparseticket.errors import UserError
from sparseticket.models import Head, resolve
from sparseticket.models.detector import OUTPUTS, decode, places
from sparseticket.options import find_settings
from sparseticket.progress import Screen
from sparseticket.tasks import TaskOptions, make_task
from sparseticket.tasks.voc import parse_annotation
from sparseticket.ticket import Ticket
from sparseticket.transfer import transfer
from sparseticket.transfer_plan import plan

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("pycocotools") is None, reason="needs pycocotools: pip install 'sparseticket[detection]'"
)
DATA = os.environ.get("SPARSETICKET_DATA")
DRAW = {"seed": 0, "round": 1, "epoch": 2}
RESNET20 = resolve("resnet20-cifar")
SIDE = 128
SCALE = torch.tensor([SIDE / 80, SIDE / 60]).repeat(2)


def task_of(data, batch_size=2):
    from sparseticket.tasks.detection import Detection

    return Detection(RESNET20, TaskOptions(data=data, batch_size=batch_size))


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    return write_voc(tmp_path_factory.mktemp("data") / "VOCdevkit" / "VOC2007")


def test_boxes_are_those_of_the_annotations_in_pixels_of_the_model_s_square(voc):
    task = task_of(voc)
    assert task.class_names == ("cell", "plate") and task.head.classes == 2
    (batch,) = task.batches("eval", **DRAW)
    assert batch["pixels"].shape == (3, 3, SIDE, SIDE)
    for row, number in enumerate(range(6, 9)):
        expected = boxes_of(number)
        real = batch["labels"][row] >= 0
        assert torch.allclose(
            batch["boxes"][row][real], torch.tensor([box for box, _ in expected], dtype=torch.float32) * SCALE
        )
        assert [task.class_names[label] for label in batch["labels"][row][real]] == [name for _, name in expected]


def test_what_is_bright_in_a_training_batch_is_inside_its_boxes_whether_mirrored_or_not(voc):
    task = task_of(voc, batch_size=6)
    (batch,) = task.batches("train", **DRAW)
    mirrored = 0
    for pixels, boxes, labels in zip(batch["pixels"], batch["boxes"], batch["labels"], strict=True):
        bright = pixels.amax(0) > 0.0
        inside = torch.zeros_like(bright)
        for x1, y1, x2, y2 in boxes[labels >= 0].round().long().tolist():
            inside[y1:y2, x1:x2] = True
        assert (bright == inside).float().mean() > 0.95  # the resize and JPEG blur the edges
        mirrored += int(boxes[0, 0] != SHAPES[0][0] * SCALE[0])
    assert 0 < mirrored < 6


def test_a_batch_is_a_function_of_its_names(voc):
    first, again, other = (task_of(voc).batches("train", **DRAW | change)[1] for change in ({}, {}, {"epoch": 3}))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["pixels"], other["pixels"])


@pytest.mark.parametrize("name", DRAW)
def test_the_order_and_the_mirrored_images_are_each_drawn_anew_by_seed_round_and_epoch(voc, name):
    task = task_of(voc)
    several = [task.batches("train", **DRAW | {name: value}) for value in range(4)]
    assert len({tuple(torch.cat(batches.rows).tolist()) for batches in several}) == 4
    boxes = [batches.make(torch.arange(6))["boxes"] for batches in several]
    assert len({tuple(drawn.flatten().tolist()) for drawn in boxes}) > 1  # of six images there are 64 draws


def test_difficult_boxes_are_not_trained_on_and_are_told_apart_in_evaluation(voc, tmp_path):
    root = write_voc(tmp_path / "voc", train=2, evaluation=1)
    for number in range(3):
        objects = [one_object("cell", SHAPES[0]), one_object("plate", SHAPES[1], difficult=1)]
        (root / "Annotations" / f"image_{number}.xml").write_text(annotation(objects))
    task = task_of(root)
    assert task.batches("train", **DRAW)[0]["labels"].tolist() == [[0], [0]]
    batch = task.batches("eval", **DRAW)[0]
    assert batch["labels"].tolist() == [[0, 1]] and batch["difficult"].tolist() == [[False, True]]


def test_a_zip_of_the_folder_is_the_same_data(voc, tmp_path):
    with zipfile.ZipFile(tmp_path / "voc.zip", "w") as archive:
        for file in voc.rglob("*.*"):
            archive.write(file, f"VOC2007/{file.relative_to(voc).as_posix()}")
    packed, plain = task_of(tmp_path / "voc.zip"), task_of(voc.parent.parent)
    assert packed.data_id == plain.data_id
    assert torch.equal(packed.batches("train", **DRAW)[0]["pixels"], plain.batches("train", **DRAW)[0]["pixels"])


def test_trainval_and_test_are_taken_where_test_has_annotations(tmp_path):
    root = write_voc(tmp_path / "voc")
    lists = root / "ImageSets" / "Main"
    (lists / "trainval.txt").write_text("".join(f"image_{n}\n" for n in range(7)))
    (lists / "test.txt").write_text("image_100\n")
    assert len(task_of(root).batches("eval", **DRAW)[0]["labels"]) == 3  # val
    (lists / "test.txt").write_text("image_7\nimage_8\n")
    assert len(task_of(root).batches("eval", **DRAW)[0]["labels"]) == 2


BOMB = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "boom">]><annotation>&b;</annotation>'
WRONG = {
    "document type": BOMB,
    "no annotation": "<annotation>",
    "should be a number": annotation([one_object("cell", SHAPES[0]).replace("<xmin>11", "<xmin>left")]),
    "is nan": annotation([one_object("cell", SHAPES[0]).replace("<xmin>11", "<xmin>nan")]),
    "reaches out of its image": annotation([one_object("cell", (60, 10, 90, 20))]),
    "has no name": annotation([one_object("", SHAPES[0])]),
    "0 x 60 pixels": annotation([], width=0),
    "difficult should be 0 or 1": annotation([one_object("cell", SHAPES[0], difficult="perhaps")]),
}


@pytest.mark.parametrize("words", WRONG)
def test_an_annotation_that_is_none_is_refused_with_its_file_and_reason(words):
    with pytest.raises(UserError, match=f"some.xml.*{words}"):
        parse_annotation(WRONG[words].encode(), "some.xml")


def test_a_box_that_reaches_out_by_a_pixel_is_cut_and_one_of_no_size_is_left_out_and_counted():
    found = parse_annotation(
        annotation([one_object("cell", (-1, 5, 81, 60)), one_object("cell", (5, 5, 5, 9))]).encode(), "some.xml"
    )
    assert found.boxes.tolist() == [[0, 5, 80, 60]] and found.torn == 1


def test_a_box_of_one_pixel_across_is_a_box_and_a_single_pixel_is_a_slip():
    thin, point = one_object("cell", (9, 9, 10, 30)), one_object("cell", (9, 9, 10, 10))  # xmin = xmax = 10
    found = parse_annotation(annotation([thin, point]).encode(), "some.xml")
    assert found.boxes.tolist() == [[9, 9, 10, 30]] and found.torn == 1


@pytest.mark.parametrize(
    ("text", "said"), [("true", True), (" True ", True), ("false", False), ("", False), ("Unspecified", False)]
)
def test_a_box_may_be_said_to_be_difficult_in_words(text, said):
    found = parse_annotation(annotation([one_object("cell", SHAPES[0], difficult=text)]).encode(), "some.xml")
    assert found.difficult.tolist() == [said]


def make_difficult(root, numbers):
    for number in numbers:
        objects = [one_object(kind, box, difficult=1) for box, kind in boxes_of(number)]
        (root / "Annotations" / f"image_{number}.xml").write_text(annotation(objects))


def teach_cells_alone(root):
    """Every plate to train on is difficult."""
    for number in range(6):
        objects = [one_object(kind, box, difficult=int(kind == "plate")) for box, kind in boxes_of(number)]
        (root / "Annotations" / f"image_{number}.xml").write_text(annotation(objects))


def resize(root, number, size):
    path = root / "JPEGImages" / f"image_{number}.jpg"
    Image.open(path).resize(size).save(path)


def train_on_what_is_evaluated(root):
    for number in range(6, 9):
        (root / "JPEGImages" / f"image_{number}.jpg").write_bytes((root / "JPEGImages/image_0.jpg").read_bytes())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda root: make_difficult(root, range(6, 9)),
            "images to evaluate on have no boxes, or difficult ones alone",
        ),
        (teach_cells_alone, "not trained on: plate"),
        (lambda root: make_difficult(root, range(6)), "images to train on have no boxes, or difficult ones alone"),
        (
            lambda root: resize(root, 7, (40, 30)),
            r"image_7.jpg is 40 x 30 pixels.*annotation is of an image of 80 x 60",
        ),
        (lambda root: resize(root, 7, (60, 80)), r"image_7.jpg is 60 x 80 pixels.*upright \(EXIF may turn it"),
        (train_on_what_is_evaluated, "every image to evaluate on is one to train on"),
        (lambda root: (root / "JPEGImages" / "image_2.jpg").unlink(), "image_2.jpg is missing"),
        (lambda root: (root / "Annotations" / "image_2.xml").unlink(), "image_2.xml is missing"),
        (lambda root: (root / "ImageSets" / "Main" / "val.txt").write_text("image_2\n"), "both have image_2"),
        (lambda root: (root / "ImageSets" / "Main" / "val.txt").unlink(), "neither trainval.txt"),
        (lambda root: (root / "ImageSets" / "Main" / "train.txt").write_text("../x\n"), "is missing"),
        (lambda root: (root / "JPEGImages" / "image_2.jpg").write_bytes(b"no image"), "image_2.jpg cannot be read"),
        (
            lambda root: (root / "Annotations" / "image_8.xml").write_text(annotation([one_object("dog", SHAPES[0])])),
            "not trained on: dog",
        ),
        (
            lambda root: (root / "Annotations" / "image_0.xml").write_text(annotation([one_object("a", (5, 5, 5, 9))])),
            "have no size or are a single pixel, the first in Annotations/image_0.xml",
        ),
    ],
)
def test_data_that_cannot_be_used_is_refused(tmp_path, change, words):
    root = write_voc(tmp_path / "voc")
    change(root)
    with pytest.raises(UserError, match=words):
        task_of(root)


def test_a_folder_of_another_layout_is_refused_with_what_is_expected(tmp_path):
    with pytest.raises(UserError, match=r"expected a folder.*Annotations"):
        task_of(tmp_path)


class Says(torch.nn.Module):
    """A detector that finds given boxes: those of a list of ((x1, y1, x2, y2), label, score) for each image."""

    def __init__(self, found, strides, classes):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(()))
        self.found, self.strides, self.classes = iter(found), strides, classes

    def forward(self, pixels):
        points, steps = places(SIDE, self.strides)
        raw = [torch.full((len(pixels), len(points), width), -20.0) for width in (self.classes, 4, 1)]
        for row in range(len(pixels)):
            for number, ((x1, y1, x2, y2), label, score) in enumerate(next(self.found)):
                x, y = points[number]
                raw[0][row, number, label] = torch.logit(torch.tensor(score**2))
                raw[1][row, number] = torch.tensor([x - x1, y - y1, x2 - x, y2 - y]) / steps[number]
                raw[2][row, number] = 20.0
        return dict(zip(OUTPUTS, raw, strict=True))


def evaluated(root, found):
    task = task_of(root)
    return task.evaluate(Says(found, task.strides, task.head.classes).train())


def shrunk(box, share):
    """The left ``share`` of a box: its IoU with the box is ``share``."""
    x1, y1, x2, y2 = box
    return (x1, y1, x1 + share * (x2 - x1), y2)


@pytest.fixture(scope="module")
def two_cells(tmp_path_factory):
    """Evaluation: an image with two cells, and one with a plate."""
    root = write_voc(tmp_path_factory.mktemp("data") / "voc", train=2, evaluation=2)
    for number, objects in ((2, [("cell", SHAPES[0]), ("cell", SHAPES[1])]), (3, [("plate", SHAPES[2])])):
        (root / "Annotations" / f"image_{number}.xml").write_text(annotation([one_object(*one) for one in objects]))
    return root


A, B, C = (tuple((torch.tensor(box) * SCALE).tolist()) for box in SHAPES)
FALSE = (100.0, 100.0, 120.0, 120.0)
CASES = {
    "all found": ([[(A, 0, 0.9), (B, 0, 0.8)], [(C, 1, 0.9)]], 1.0, 1.0, 1.0),
    "nothing found": ([[], []], 0.0, 0.0, 0.0),
    # of two cells one: precision 1 up to recall 0.5, which is 51 of the 101 points; the plate is found
    "one of two": ([[(A, 0, 0.9)], [(C, 1, 0.9)]], (51 / 101 + 1) / 2, (51 / 101 + 1) / 2, (51 / 101 + 1) / 2),
    # a false one scored above both: precision 1/2 at recall 0.5, 2/3 at recall 1, which is the envelope everywhere
    "a false one first": ([[(FALSE, 0, 0.95), (A, 0, 0.9), (B, 0, 0.8)], [(C, 1, 0.9)]], 5 / 6, 5 / 6, 5 / 6),
    # a false one scored last costs nothing
    "a false one last": ([[(A, 0, 0.9), (B, 0, 0.8), (FALSE, 0, 0.3)], [(C, 1, 0.9)]], 1.0, 1.0, 1.0),
    # IoU 0.72 for the plate: right at 0.5, 0.55, ... 0.7, five of ten thresholds
    "a loose box": ([[(A, 0, 0.9), (B, 0, 0.8)], [(shrunk(C, 0.72), 1, 0.9)]], 0.75, 1.0, 0.5),
    # the right box under the wrong name
    "another class": ([[(A, 0, 0.9), (B, 0, 0.8)], [(C, 0, 0.5)]], 0.5, 0.5, 0.5),
}


@pytest.mark.parametrize("case", CASES)
def test_average_precision_is_what_it_is_by_hand(two_cells, case):
    found, ap, ap50, ap75 = CASES[case]
    result = evaluated(two_cells, found)
    assert result == pytest.approx({"AP": ap, "AP50": ap50, "AP75": ap75}, abs=1e-6)


def test_a_difficult_box_counts_neither_where_it_is_found_nor_where_it_is_not(two_cells, tmp_path):
    root = write_voc(tmp_path / "voc", train=2, evaluation=2)
    for number, objects in ((2, [("cell", SHAPES[0]), ("cell", SHAPES[1], 1)]), (3, [("plate", SHAPES[2])])):
        (root / "Annotations" / f"image_{number}.xml").write_text(annotation([one_object(*one) for one in objects]))
    for first in ([(B, 0, 0.95), (A, 0, 0.9)], [(A, 0, 0.9)]):
        assert evaluated(root, [first, [(C, 1, 0.9)]])["AP"] == pytest.approx(1.0)


def test_evaluation_leaves_the_mode_as_it_was(two_cells):
    task = task_of(two_cells)
    model = Says([[], []], task.strides, 2).train()
    task.evaluate(model)
    assert model.training


def test_raw_outputs_become_boxes_best_first_and_without_what_overlaps_a_better_one():
    found = [[(A, 0, 0.5), (shrunk(A, 0.9), 0, 0.7), (A, 1, 0.6), (FALSE, 0, 0.01)]]
    (result,) = decode(Says(found, (4, 8, 16), 2)(torch.zeros(1, 3, SIDE, SIDE)), SIDE, (4, 8, 16))
    assert result["labels"].tolist() == [0, 1]
    assert result["scores"].tolist() == pytest.approx([0.7, 0.6], abs=1e-5)
    assert torch.allclose(result["boxes"], torch.tensor([shrunk(A, 0.9), A]), atol=1e-3)


def test_places_are_the_centres_of_torchvision_s_anchors():
    from torchvision.models.detection.image_list import ImageList

    module = RESNET20.for_images(SIDE).build(Head("detection", 2), seed=0).module
    pixels = torch.zeros(1, 3, SIDE, SIDE)
    levels = list(module.backbone(pixels).values())
    (anchors,) = module.anchor_generator(ImageList(pixels, [(SIDE, SIDE)]), levels)
    points, steps = places(SIDE, RESNET20.scene.strides)
    assert torch.equal((anchors[:, :2] + anchors[:, 2:]) / 2, points)
    assert torch.equal(anchors[:, 2:] - anchors[:, :2], steps.expand(-1, 2))


@pytest.mark.skipif(not DATA, reason="SPARSETICKET_DATA is not set")
def test_bccd_is_read_whole():
    task = task_of(Path(DATA) / "bccd", batch_size=8)
    assert task.class_names == ("Platelets", "RBC", "WBC")
    assert len(task.batches("train", **DRAW)) == 37 and len(task.batches("eval", **DRAW)) == 9  # 292 and 72 images
    assert sum(len(boxes) for part in (task._train, task._eval) for boxes in part.boxes) == 4886  # of 4888, two torn


class Killed(BaseException):
    pass


def detector_run(root, out, killed_at=None, **options):
    settings = find_settings(
        "resnet20-cifar",
        task="detection",
        data=root,
        protocol={"sparsity": 0.36, "schedule": "geometric:0.2"},
        training={"round_length": "3it", "batch_size": 2, "optimizer": "adamw", "lr": 1e-3},
    )
    original = imp.train

    def train(network, task, masks, training, place, *, on_step, **rest):
        def on_step_or_die(step, total, loss):
            on_step(step, total, loss)
            if (place.number, step) == killed_at:
                raise Killed

        return original(network, task, masks, training, place, on_step=on_step_or_die, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imp, "train", train)
        return imp.find(settings, out, screen=Screen(quiet=True), **options)


@pytest.fixture(scope="module")
def run(voc, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "detector"
    detector_run(voc, out)
    return out


def test_a_detector_s_ticket_masks_the_backbone_alone_and_what_it_masks_is_zero_after_training(run):
    ticket = Ticket.load(run / "round-02" / "ticket.ticket")
    weights = load_file(run / "round-02" / "model" / "model.safetensors")
    assert len(ticket.masks) == 18 and ticket.sparsity == pytest.approx(0.36, abs=1e-5)
    for name, mask in ticket.masks.items():
        assert not weights[f"backbone.body.{name}"][~mask].any() and weights[f"backbone.body.{name}"][mask].all()
    others = {name: tensor for name, tensor in weights.items() if not name.startswith("backbone.body.")}
    assert others and all(tensor.all() for name, tensor in others.items() if name.endswith("conv.0.weight"))
    assert json.loads((run / "summary.json").read_text())["metric"] == "AP"


def test_a_search_that_is_killed_inside_a_round_ends_with_the_same_bits(voc, run, tmp_path):
    out = tmp_path / "killed"
    with pytest.raises(Killed):
        detector_run(voc, out, killed_at=(1, 2), checkpoint_every=0)
    assert (out / "round-01" / "checkpoint.safetensors").exists()
    detector_run(voc, out)
    for file in ("round-02/ticket.ticket", "round-02/model/model.safetensors", "round-02/model/model.json"):
        assert (out / file).read_bytes() == (run / file).read_bytes()


def test_a_ticket_of_a_detector_moves_to_classification_and_back(run, voc, tmp_path):
    found = run / "round-02" / "ticket.ticket"
    training = {"round_length": "2it", "batch_size": 16}
    loaded, settings, _ = plan(found, task="digits", seeds=1, training=training)
    there = transfer(loaded, settings, tmp_path / "digits", screen=Screen(quiet=True))
    assert there["metric"] == "accuracy" and there["sparsity"] == loaded.sparsity
    loaded, settings, _ = plan(
        tmp_path / "digits" / "ticket-seed0" / "ticket.ticket",
        task="detection",
        data=voc,
        weights=run / "theta.safetensors",
        seeds=1,
        controls=("random-weights",),
        training={"round_length": "2it", "batch_size": 2},
    )
    back = transfer(loaded, settings, tmp_path / "back", screen=Screen(quiet=True))
    assert back["metric"] == "AP" and set(back["arms"]) == {"dense", "ticket", "random-weights"}
    arm = back["arms"]["ticket"]
    assert set(arm["metrics"]) == {"AP", "AP50", "AP75"} and arm["metrics"]["AP"] == arm["values"]
    assert "metrics" not in there["arms"]["ticket"], "a task's only metric is said twice"


SCENES = """
title = "A ticket's columns of scenes"
source = "mine"
model = "resnet20-cifar"

[training]
round_length = "1it"

[[step]]
name = "imagenet"
find = "cvpr21/imagenet"
protocol = { schedule = "steps:0.5", sparsity = 0.5 }

[[step]]
name = "transfers"
matrix = ["imagenet"]
tasks = ["detection", "segmentation"]
seeds = 1
"""


def test_a_matrix_has_columns_of_detection_and_segmentation_with_their_own_data_and_recipes(cli, tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    for split in ("train", "val"):
        for kind in range(2):
            (data / "imagenet" / split / str(kind)).mkdir(parents=True)
            for number in range(2):
                shown = picture(kind + 2 * number + 4 * (split == "val"))
                Image.fromarray(shown).save(data / f"imagenet/{split}/{kind}/{number}.jpg")
    write_voc(data / "VOC2007")
    write_voc_masks(write_voc(data / "VOC2012", train=4))
    (tmp_path / "mine.toml").write_text(SCENES)
    code, text = cli("run", tmp_path / "mine.toml", "--data", data, "--out", out)
    assert code == 0, text
    result = json.loads((out / "study.json").read_text())["steps"]["transfers"]["result"]
    assert {task: target["metric"] for task, target in result["targets"].items()} == {
        "detection": "AP",
        "segmentation": "mIoU",
    }
    for task, year, recipe in (
        ("detection", 2007, {"batch_size": 8, "lr": 1e-4, "decay": "cosine"}),
        ("segmentation", 2012, {"batch_size": 4, "lr": 0.01, "decay": "steps"}),
    ):
        cell = out / "transfers" / result["cells"]["imagenet"][task]["folder"]
        settings = tomllib.loads((cell / "transfer.toml").read_text())
        assert Path(settings["data"]) == data / f"VOC{year}" and result["cells"]["imagenet"][task]["sparsity"] == 0.5
        assert {name: settings["training"][name] for name in recipe} == recipe


def test_without_pycocotools_a_study_and_a_matrix_say_what_to_install_before_anything_is_trained(
    cli, run, voc, tmp_path, monkeypatch
):
    original = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "pycocotools" else original(name, *rest)
    )
    (tmp_path / "mine.toml").write_text(SCENES)
    ticket = run / "round-02" / "ticket.ticket"
    for verb in (["run", tmp_path / "mine.toml"], ["matrix", ticket, "--task", "digits", "--task", "detection"]):
        code, text = cli(*verb, "--out", tmp_path / "out")
        assert code == 2 and "pip install 'sparseticket[detection]'" in text, text
        assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="task detection needs pycocotools"):
        make_task("detection", RESNET20, TaskOptions(data=voc))


def test_what_a_detector_finds_is_drawn_beside_what_is_annotated(run, voc, tmp_path):
    draw(tmp_path / "one.png", voc, [run / "round-00" / "model"])
    draw(tmp_path / "two.png", voc, [run / "round-00" / "model", run / "round-02" / "model"])
    one, two = (Image.open(tmp_path / name).size for name in ("one.png", "two.png"))
    assert one[0] == two[0] and two[1] == pytest.approx(1.5 * one[1], abs=2)
    RESNET20.build(Head("image-classification", 2), seed=0).save(tmp_path / "classifier")
    with pytest.raises(UserError, match="holds no detector of cell, plate"):
        draw(tmp_path / "none.png", voc, [tmp_path / "classifier"])


def test_training_lowers_the_loss(voc):
    task = task_of(voc, batch_size=6)
    module = RESNET20.for_images(SIDE).build(task.head, seed=0).module.train()
    (batch,) = task.batches("train", **DRAW)
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3)
    losses = []
    for step in range(5):
        loss = task.loss(module, batch, step=step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_images_without_a_box_can_be_trained_on():
    module = RESNET20.for_images(SIDE).build(Head("detection", 2), seed=0).module.train()
    nothing = [torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2
    loss = module.loss(torch.zeros(2, 3, SIDE, SIDE), *nothing)
    loss.backward()
    assert loss.isfinite()
