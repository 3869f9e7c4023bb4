"""SimCLR, MoCo and ImageNet as tasks: losses by hand, views, masks in both encoders, resuming, several processes."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from sparseticket import transfer as transfers
from sparseticket.checkpoint import Checkpoint
from sparseticket.data_places import data_of
from sparseticket.errors import RunFailure, UserError
from sparseticket.files import read_json
from sparseticket.imp import Search, find
from sparseticket.lars import Lars
from sparseticket.masking import MaskedParameters
from sparseticket.models import Head, resolve
from sparseticket.options import find_settings
from sparseticket.progress import Screen
from sparseticket.rewind import head_state
from sparseticket.settings import Training
from sparseticket.tasks import TaskOptions, make_task
from sparseticket.tasks.contrast import info_nce, nearest_of_same_class, nt_xent, retrieved
from sparseticket.tasks.moco import ShuffledKeys
from sparseticket.tasks.two_views import moco_view, simclr_view
from sparseticket.ticket import Ticket
from sparseticket.training import Round, make_accelerator, train

ROOT = Path(__file__).parents[2]
RESNET20 = resolve("resnet20-cifar")
DRAW = {"seed": 0, "round": 1, "epoch": 0}
TASKS = ("simclr", "moco")
TINY = {"batch_size": 8, "queue": 24}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three classes of soft blobs, 8 images of 32 x 32 to train on and 4 to evaluate on each."""
    root = tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 8), ("test", 4)):
        for label, name in enumerate(("cat", "dog", "emu")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                small = np.random.default_rng([label, number, count]).integers(0, 256, (4, 4, 3), dtype=np.uint8)
                Image.fromarray(small).resize((32, 32)).save(root / split / name / f"{number}.png")
    return root


def task_of(name, pictures, spec=RESNET20, **options):
    return make_task(name, spec, TaskOptions(pictures, **TINY | options))


def only(root, kept):
    """The pictures without those that ``kept(split, class, number)`` says no to."""
    for file in list(root.rglob("*.png")):
        if not kept(file.parts[-3], file.parts[-2], int(file.stem)):
            file.unlink()
    for folder in root.glob("*/*"):
        if not any(folder.iterdir()):
            folder.rmdir()
    return root


@pytest.mark.parametrize("name", TASKS)
def test_images_without_classes_are_pre_trained_on_and_judged_by_retrieval_alone(name, pictures, tmp_path):
    root = only(shutil.copytree(pictures, tmp_path / "one"), lambda split, kind, number: kind == "cat")
    shutil.copytree(pictures / "train" / "dog", root / "train" / "dog", dirs_exist_ok=True)  # evaluated are cats alone
    task = task_of(name, root)
    metrics = task.evaluate(RESNET20.build(task.head, seed=0).module)
    assert metrics.keys() == {"retrieval"}
    assert task_of(name, pictures).evaluate(RESNET20.build(task.head, seed=0).module).keys() == {
        "retrieval",
        "class_retrieval",
    }


@pytest.mark.parametrize("name", TASKS)
def test_one_image_to_evaluate_on_is_refused(name, pictures, tmp_path):
    def kept(split, kind, number):
        return split == "train" or (kind, number) == ("cat", 0)

    root = only(shutil.copytree(pictures, tmp_path / "one"), kept)
    with pytest.raises(UserError, match="needs two images to evaluate on"):
        task_of(name, root)


def test_simclr_refuses_batches_of_one_image_whose_loss_is_0_whatever_it_learns(pictures):
    with pytest.raises(UserError, match="--batch-size of 2 or more"):
        task_of("simclr", pictures, batch_size=1)


def by_hand_nt_xent(first, second, temperature):
    """-log p of each view, with loops, as equation 1 of SimCLR's paper reads."""
    views = [v / v.norm() for v in torch.cat([first, second]).double()]
    n, losses = len(first), []
    for i, view in enumerate(views):
        others = {k: math.exp(float(view @ other) / temperature) for k, other in enumerate(views) if k != i}
        losses.append(-math.log(others[(i + n) % (2 * n)] / sum(others.values())))
    return losses


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_nt_xent_is_equation_1_of_simclr_and_as_released_the_log_of_the_mean(temperature):
    first, second = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    losses = by_hand_nt_xent(first, second, temperature)
    assert float(nt_xent(first, second, temperature)) == pytest.approx(np.mean(losses), rel=1e-5)
    released = -math.log(np.mean(np.exp(-np.array(losses))))
    assert float(nt_xent(first, second, temperature, "log-of-mean")) == pytest.approx(released, rel=1e-5)
    assert released < np.mean(losses)


def test_mixed_precision_does_not_reach_the_losses():
    first, second = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = nt_xent(first, second, 0.1), info_nce(first, second, first, 0.1)
    assert mixed == (nt_xent(first, second, 0.1), info_nce(first, second, first, 0.1))


def test_info_nce_is_equation_1_of_moco():
    draw = torch.Generator().manual_seed(0)
    queries, keys, queue = (F.normalize(torch.randn(n, 6, generator=draw), dim=1) for n in (3, 3, 4))
    expected = 0.0
    for query, key in zip(queries.double(), keys.double(), strict=True):
        own = math.exp(float(query @ key) / 0.2)
        expected -= math.log(own / (own + sum(math.exp(float(query @ other) / 0.2) for other in queue.double()))) / 3
    assert float(info_nce(queries, keys, queue, 0.2)) == pytest.approx(expected, rel=1e-5)


def test_retrieval_finds_the_other_view_by_angle_alone():
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -0.1]])  # angles 0, 90, 186 degrees
    second = torch.tensor([[5.0, 0.5], [0.1, 9.0], [1.0, 0.3]])  # angles 6, 89, 17 degrees
    # nearest: 0 -> 3, 1 -> 4, 2 -> 1, 3 -> 0, 4 -> 1, 5 -> 3
    assert retrieved(first, second).tolist() == [True, True, False, True, True, False]


@pytest.mark.parametrize("rows", [1, 2, 1024])
def test_class_retrieval_leaves_each_image_itself_out_whatever_is_compared_at_a_time(rows):
    angles = torch.tensor([0.0, 10.0, 15.0, 80.0, 90.0]).deg2rad()
    features = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.arange(1.0, 6.0)[:, None]
    labels = torch.tensor([0, 0, 1, 2, 2])  # nearest: 0 -> 1, 1 -> 2, 2 -> 1, 3 -> 4, 4 -> 3
    assert nearest_of_same_class(features, labels, rows).tolist() == [True, False, False, True, True]


@pytest.mark.parametrize("name", TASKS)
def test_views_are_a_function_of_seed_round_epoch_and_image_and_two_of_one_image_differ(pictures, name):
    task = task_of(name, pictures)
    draws = ({**DRAW}, {**DRAW}, {**DRAW, "round": 2}, {**DRAW, "epoch": 1}, {**DRAW, "seed": 1})
    first, again, *others = (task.batches("train", **draw)[1] for draw in draws)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first["pixels"], other["pixels"]) for other in others)
    assert first["pixels"].shape == first["other"].shape == (8, 3, 32, 32)
    other = first["other"][first["place"]] if "place" in first else first["other"]
    assert not any(torch.equal(a, b) for a, b in zip(first["pixels"], other, strict=True))
    assert len(task.batches("train", **DRAW)) == 3


@pytest.mark.parametrize("name", DRAW)
def test_the_order_the_views_and_mocos_shuffled_keys_are_each_drawn_anew_by_seed_round_and_epoch(pictures, name):
    task = task_of("moco", pictures)

    def drawn(value):
        batches = task.batches("train", **DRAW | {name: value})
        order = torch.cat(batches.batches.rows).tolist()
        views = torch.cat([batch["pixels"] for batch in batches])
        return order, dict(zip(order, views, strict=True)), batches[1]["place"].tolist()

    (order, views, keys), (other_order, other_views, other_keys) = drawn(7), drawn(8)
    assert order != other_order and keys != other_keys
    assert not any(torch.equal(view, other_views[row]) for row, view in views.items())


@pytest.mark.parametrize("name", ["seed", "round"])
def test_the_first_queue_of_a_round_is_drawn_anew_by_seed_and_round(pictures, name):
    moco, queues = task_of("moco", pictures), []
    for value in (0, 1, 0):
        moco.begin(torch.nn.Linear(1, 1), **{"seed": 0, "round": 0} | {name: value})
        queues.append(moco.queue)
    assert torch.equal(queues[0], queues[2]) and not torch.equal(queues[0], queues[1])


@pytest.mark.parametrize(("view", "least"), [(simclr_view, 0.08), (moco_view, 0.2)])
@pytest.mark.parametrize(("size", "blurred"), [(32, False), (224, True)])
def test_views_have_the_papers_transforms(view, least, size, blurred):
    crop, flip, jitter, grey, *blur = view(size, blur=True).transforms
    assert crop.scale == (least, 1.0) and crop.size == (size, size) and flip.p == 0.5
    assert jitter.p == 0.8 and grey.p == 0.2 and bool(blur) is blurred
    strength = 0.4 if view is moco_view or size == 32 else 0.8
    assert jitter.transforms[0].brightness == pytest.approx((1 - strength, 1 + strength))
    assert jitter.transforms[0].hue == pytest.approx((-strength / 4, strength / 4))
    assert not blur or (blur[0].p == 0.5 and blur[0].transforms[0].kernel_size == (23, 23))
    assert len(view(size, blur=False).transforms) == 4


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_every_query_finds_its_own_key_after_keys_were_shuffled_shared_out_and_gathered(processes):
    plain = [{"pixels": torch.arange(8.0)[:, None], "other": torch.arange(8.0)[:, None] + 100}]
    batch = ShuffledKeys(plain, seed=3, processes=processes)[0]
    assert not torch.equal(batch["other"], plain[0]["other"])
    gathered = torch.cat([batch["other"][rank::processes] for rank in range(processes)])
    assert torch.equal(gathered[batch["place"]], plain[0]["other"])


def test_listed_order_is_that_of_the_files(pictures):
    task = task_of("simclr", pictures, order="listed")
    rows = torch.cat(list(task.batches("train", **DRAW).rows))
    assert torch.equal(rows, torch.arange(24))


@pytest.mark.parametrize("name", TASKS)
def test_metrics_are_measured_on_pooled_features_in_eval_mode_and_leave_the_network_as_it_was(pictures, name):
    task = task_of(name, pictures)
    network = RESNET20.build(task.head, seed=0)
    before = {key: value.clone() for key, value in network.module.state_dict().items()}
    head = network.module.linear
    widths = []
    head.register_forward_pre_hook(lambda module, inputs: widths.append(inputs[0].shape[1]))
    metrics = task.evaluate(network.module.train())
    assert metrics == task.evaluate(network.module) and metrics.keys() == {"retrieval", "class_retrieval"}
    assert all(0 <= value <= 1 for value in metrics.values())
    assert not widths and network.module.linear is head and network.module.training
    assert all(torch.equal(before[key], value) for key, value in network.module.state_dict().items())


def half_masks(network):
    draw = torch.Generator().manual_seed(0)
    return {name: torch.rand(network.backbone()[name].shape, generator=draw) < 0.5 for name in network.prunable}


def trained(name, pictures, masks=None, checkpoint=None, task=None, stop=None, **settings):
    task = task or task_of(name, pictures)
    network = RESNET20.build(task.head, seed=0)
    masks = masks or half_masks(network)
    settings = Training(**{"round_length": "3it", "batch_size": 8, "optimizer": "sgd", "lr": 0.05} | settings)

    def stop_there(step, total, loss):
        if step == stop:
            raise KeyboardInterrupt

    train(
        network,
        task,
        masks,
        settings,
        Round(0, 0),
        accelerator=make_accelerator(),
        checkpoint=checkpoint,
        on_step=stop_there,
    )
    return network, task, masks


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_zeros_stay_zero_in_both_encoders_of_moco_and_both_learn(pictures, optimizer):
    network, task, masks = trained("moco", pictures, optimizer=optimizer, lr=0.5, key_momentum=0.5)
    keys = dict(task.encoder.named_parameters())
    fresh = RESNET20.build(task.head, seed=0).backbone()
    for name, mask in masks.items():
        for weight in (network.backbone()[name], keys[name]):
            assert not weight[~mask].any() and not torch.signbit(weight[~mask]).any()
            assert (weight[mask] != fresh[name][mask]).any()
    assert not any(parameter.requires_grad for parameter in keys.values())


def test_a_pruned_weight_that_moves_in_the_momentum_encoder_is_an_error(pictures, monkeypatch):
    monkeypatch.setattr(MaskedParameters, "mask_parameters", lambda self: None)
    task = task_of("moco", pictures)
    network = RESNET20.build(task.head, seed=0)
    with torch.no_grad():  # the network's own are 0 already; the encoder's are not
        masks = half_masks(network)
        for name, mask in masks.items():
            network.backbone()[name].masked_fill_(~mask, 0.0)
    begin = type(task).begin

    def begin_elsewhere(self, model, **draw):
        beside = begin(self, model, **draw)
        with torch.no_grad():
            beside[0].layer1[0].conv1.weight.add_(1.0)
        return beside

    monkeypatch.setattr(type(task), "begin", begin_elsewhere)
    settings = Training(round_length="1it", batch_size=8, optimizer="sgd", lr=0.05)
    with pytest.raises(RunFailure, match=r"layer1\.0\.conv1\.weight"):
        train(network, task, masks, settings, Round(0, 0), accelerator=make_accelerator())


def test_the_momentum_encoder_follows_by_its_momentum_and_the_queue_takes_the_newest_keys(pictures):
    task = task_of("moco", pictures, key_momentum=0.75)
    network = RESNET20.build(task.head, seed=0)
    task.begin(network.module, seed=0, round=0)
    start = network.module.conv1.weight.detach().clone()
    queue = task.queue.clone()
    with torch.no_grad():
        network.module.conv1.weight.add_(1.0)
    for _ in range(4):  # 4 batches of 8 into 24 places: the fourth takes those of the first
        task.loss(network.module, task.batches("train", **DRAW)[0], step=0)
        task.after_step(network.module)
    expected = start + 1 - 0.75**4
    assert torch.allclose(task.encoder.conv1.weight, expected, atol=1e-5)
    assert torch.equal(task.queue[:8], task.keys) and task.oldest == 8
    assert not (task.queue == queue).all(dim=1).any() and torch.allclose(task.queue.norm(dim=1), torch.ones(24))


@pytest.mark.parametrize("name", TASKS)
def test_a_training_that_was_killed_between_steps_ends_bit_equal(pictures, tmp_path, name):
    whole, task, _ = trained(name, pictures)
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors", every=0.0)
    with pytest.raises(KeyboardInterrupt):
        trained(name, pictures, checkpoint=checkpoint, stop=2)
    resumed, other, _ = trained(name, pictures, checkpoint=checkpoint)
    for left, right in (
        (whole.module.state_dict(), resumed.module.state_dict()),
        (task.state_dict(), other.state_dict()),
    ):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)


def test_a_task_trains_a_second_network_as_if_it_were_its_first(pictures):
    network, task, masks = trained("moco", pictures)
    again, _, _ = trained("moco", pictures, masks=masks, task=task)
    assert all(torch.equal(a, b) for a, b in zip(network.module.parameters(), again.module.parameters(), strict=True))


def test_a_checkpoint_of_another_queue_is_refused(pictures, tmp_path):
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors", every=0.0)
    with pytest.raises(KeyboardInterrupt):
        trained("moco", pictures, checkpoint=checkpoint, stop=2)
    with pytest.raises(UserError, match="no state of this MoCo training"):
        trained("moco", pictures, checkpoint=checkpoint, task=task_of("moco", pictures, queue=32))


@pytest.mark.parametrize("name", TASKS)
def test_training_lowers_the_loss_on_the_views_that_it_saw(pictures, name):
    task = task_of(name, pictures, temperature=0.2)
    network = RESNET20.build(task.head, seed=0)
    task.begin(network.module.train(), seed=0, round=0)
    batch = task.batches("train", **DRAW)[0]
    optimizer = torch.optim.SGD(network.module.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for step in range(6):
        loss = task.loss(network.module, batch, step=step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))  # without after_step: the queue would come to hold the answers
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [({"batch_size": 25, "queue": 32}, "smaller --batch-size"), ({"queue": 7}, "larger --queue")],
)
def test_batches_that_cannot_be_are_refused_before_anything_is_written(pictures, tmp_path, options, said):
    with pytest.raises(UserError, match=said):
        find(settings_of("moco", pictures, **options), tmp_path / "run", screen=Screen(quiet=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", [*TASKS, "imagenet"])
def test_without_data_the_error_says_what_is_needed(name):
    with pytest.raises(UserError, match=rf"task {name} needs --data"):
        make_task(name, RESNET20, TaskOptions())


def test_imagenet_is_image_classification_by_folders_under_its_own_name(pictures):
    task = make_task("imagenet", RESNET20, TaskOptions(pictures, batch_size=8))
    assert (task.name, task.metric, task.head.kind, task.head.classes) == (
        "imagenet",
        "accuracy",
        "image-classification",
        3,
    )
    assert task.data_id == make_task("simclr", RESNET20, TaskOptions(pictures, batch_size=8)).data_id


def test_lars_is_sgd_scaled_by_the_ratio_of_norms():
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = Lars([weight], lr=2.0, momentum=0.5, weight_decay=0.1)
    weight.grad = torch.tensor([0.0, 1.0])
    optimizer.step()
    rate = 2.0 * 1e-3 * 5 / (1 + 0.1 * 5)
    first = rate * torch.tensor([0.3, 1.4])
    assert torch.allclose(weight, torch.tensor([3.0, 4.0]) - first)
    expected = weight.detach().clone()
    second_norm = float(expected.norm())
    velocity = 0.5 * first + 2.0 * 1e-3 * second_norm / (1 + 0.1 * second_norm) * (weight.grad + 0.1 * expected)
    optimizer.step()
    assert torch.allclose(weight, expected - velocity)


def settings_of(name, pictures, protocol="paper", **training):
    return find_settings(
        "resnet20-cifar",
        task=name,
        protocol_name=protocol,
        data=pictures,
        dense=False,
        protocol={"sparsity": 0.36},
        training={"round_length": "2it", "batch_size": 8, **({"queue": 24} if name == "moco" else {}), **training},
    )


@pytest.mark.parametrize("name", TASKS)
def test_a_ticket_is_found_and_transfers_to_classification_on_the_same_weights(pictures, tmp_path, cli, name):
    found = find(settings_of(name, pictures), tmp_path / "run", screen=Screen(quiet=True))
    assert [round(100 * entry["sparsity"], 1) for entry in found["rounds"]] == [20.0, 36.0]  # pruned first
    assert found["metric"] == "retrieval"
    ticket = tmp_path / "run" / found["ticket"]
    assert not any("linear" in tensor for tensor in Ticket.load(ticket).masks)
    arguments = ["--task", "image-folder", "--data", pictures, "--round-length", "2it", "--batch-size", "8"]
    code, text = cli("transfer", ticket, *arguments, "--seeds", "1", "--out", tmp_path / "transfer")
    assert code == 0, text
    assert read_json(tmp_path / "transfer" / "transfer.json")["metric"] == "accuracy"


PRE_TRAININGS = """
title = "Pre-trainings in small"
source = "mine"
model = "resnet20-cifar"

[training]
round_length = "1it"
batch_size = 8
queue = 24
"""
ONE = """
[[step]]
name = "{name}"
find = "cvpr21/{name}"
weights = "{name}"
protocol = {{ sparsity = 0.2 }}

[[step]]
name = "{name}-sweep"
sweep = "{name}"
seeds = 1
paper = {{ matching = {highest} }}
"""


def test_each_pre_training_is_swept_on_its_own_task_beside_dense_from_the_weights_that_it_names(
    pictures, tmp_path, cli, monkeypatch
):
    begun, original = {}, transfers.train

    def spy(network, task, *arguments, **options):
        part = options["checkpoint"].path.parent.name
        begun[task.name, part] = network.backbone()["layer1.0.conv1.weight"].detach().clone()
        return original(network, task, *arguments, **options)

    monkeypatch.setattr(transfers, "train", spy)
    theta, files, study = {}, [], PRE_TRAININGS
    for seed, (name, highest) in enumerate({"imagenet": 67.23, "simclr": 59.04, "moco": 95.6}.items()):
        network = RESNET20.build(Head("image-classification", 10), seed=seed)
        theta[name] = network.backbone()["layer1.0.conv1.weight"].detach().clone()
        torch.save(network.module.state_dict(), tmp_path / f"{name}.pth")
        files += ["--weights", f"{name}={tmp_path / name}.pth"]
        study += ONE.format(name=name, highest=highest)
    (tmp_path / "mine.toml").write_text(study)
    code, text = cli("run", tmp_path / "mine.toml", "--data", pictures, *files, "--out", tmp_path / "out")
    assert code == 0 and all(figure in text for figure in ("67.23", "59.04", "95.6")), text
    steps = read_json(tmp_path / "out" / "study.json")["steps"]
    for name, metric in (("imagenet", "accuracy"), ("simclr", "retrieval"), ("moco", "retrieval")):
        result = steps[f"{name}-sweep"]["result"]
        (point,) = result["points"]  # the first 20 % went before any training: round 0 is a ticket as well
        assert result["metric"] == metric and point["sparsity"] == pytest.approx(0.2, abs=1e-4)
        assert set(point["arms"]) == {"dense", "ticket"}
        assert torch.equal(begun[name, "dense-seed0"], theta[name])


def test_as_released_simclr_keeps_its_head_and_optimizer_over_a_rewind_and_zeros_stay_zero(pictures, tmp_path):
    settings = settings_of("simclr", pictures, "released", lr=1.0)
    assert (settings.protocol.head, settings.protocol.optimizer_state) == ("keep", "keep")
    moved = []
    original = Search.rewind

    def spy(self, k):
        optimizer_state = original(self, k)
        head = self.work.origin.head
        moved.append(any(not torch.equal(tensor, head[name]) for name, tensor in head_state(self.work.network).items()))
        assert bool(optimizer_state) is (k > 0)
        return optimizer_state

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Search, "rewind", spy)
        found = find(settings, tmp_path / "run", screen=Screen(quiet=True))
    assert moved == [False, True]
    last = tmp_path / "run" / "round-01"
    weights = load_file(last / "model" / "model.safetensors")
    for name, mask in Ticket.load(tmp_path / "run" / found["ticket"]).masks.items():
        assert not weights[name][~mask].any()


def test_the_tasks_on_class_folders_share_one_folder_or_archive_of_them(pictures, tmp_path):
    (tmp_path / "imagenet").mkdir()
    for task in ("simclr", "moco", "imagenet", "image-folder"):
        assert data_of(task, pictures, alone=False) == pictures
        if task != "image-folder":
            assert data_of(task, tmp_path, alone=False) == tmp_path / "imagenet"
    with pytest.raises(UserError, match="nothing for the task cola"):
        data_of("cola", pictures, alone=False)


GLOO = """
import sys, torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
sys.path.insert(0, {root!r})
from sparseticket.tasks.contrast import gathered, nt_xent
dist.init_process_group("gloo")
torch.manual_seed(0)
network = torch.nn.Linear(6, 4)
first, second = torch.randn(2, 8, 6)
parallel = DistributedDataParallel(network)
mine = slice(dist.get_rank(), None, 2)
outputs = parallel(torch.cat([first[mine], second[mine]])).chunk(2)
loss = nt_xent(*map(gathered, outputs), 0.5)
loss.backward()
alone = nt_xent(network(first), network(second), 0.5)
expected = torch.autograd.grad(alone, list(network.parameters()))
assert torch.allclose(loss, alone, atol=1e-6), (loss, alone)
for parameter, gradient in zip(network.parameters(), expected):
    assert torch.allclose(parameter.grad, gradient, atol=1e-6), (parameter.grad, gradient)
from sparseticket.cli import main
main()
"""


def test_two_processes_have_the_loss_and_gradient_of_the_whole_batch_and_find_a_ticket_of_moco(pictures, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(GLOO.format(root=str(ROOT)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", script]
    arguments = ["find", "--model", "resnet20-cifar", "--task", "moco", "--data", pictures, "--sparsity", "0.2"]
    arguments += [
        "--round-length",
        "2it",
        "--batch-size",
        "8",
        "--queue",
        "24",
        "--no-dense",
        "--out",
        tmp_path / "run",
    ]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*map(str, [*launch, *arguments])], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Ticket:") == 1
    assert read_json(tmp_path / "run" / "summary.json")["rounds"][0]["sparsity"] == pytest.approx(0.2, abs=1e-5)
    assert "linear.0.weight" not in load_file(tmp_path / "run" / "round-00" / "model" / "model.safetensors")


@pytest.mark.parametrize("name", ["simclr", "moco"])
def test_a_step_of_a_resnet_of_imagenet_at_224_pixels_has_a_finite_loss_and_gradients(pictures, name):
    spec = resolve("resnet18").from_scratch()
    task = task_of(name, pictures, spec=spec, batch_size=2)
    network = spec.build(task.head, seed=0)
    task.begin(network.module, seed=0, round=0)
    batch = task.batches("train", seed=0, round=0, epoch=0)[0]
    assert {value.shape[-1] for value in batch.values() if value.ndim == 4} == {224}
    loss = task.loss(network.module, batch, step=0)
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in network.module.parameters())
