import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from miniatures import write_camvid, write_voc
from safetensors.torch import load_file
from torch import nn

from sparseticket import masks as algebra
from sparseticket.checkpoint import Checkpoint
from sparseticket.errors import RunFailure, UserError
from sparseticket.imp import find
from sparseticket.masking import MaskedParameters, refuse_if_zeros_move
from sparseticket.models import resolve
from sparseticket.options import find_settings
from sparseticket.progress import Screen
from sparseticket.rewind import Origin
from sparseticket.runs import read_settings
from sparseticket.settings import Training
from sparseticket.tasks import TaskOptions, make_task
from sparseticket.theta import tensor_hashes
from sparseticket.ticket import Ticket
from sparseticket.training import Round, _finisher, make_accelerator, make_optimizer, train
from sparseticket.transfer import transfer
from sparseticket.transfer_plan import plan
from sparseticket.workbench import Workbench

ROOT = Path(__file__).parents[2]
TEXTS = [
    "the film is good",
    "a very fine plot",
    "it is dull",
    "the plot was bad and dull",
    "not good",
    "very good film",
]


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    lines = [f"{TEXTS[i % 6]} {i},{'bad' if i % 6 in (2, 3, 4) else 'good'}" for i in range(60)]
    path.write_text("text,label\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture
def work(tiny_bert, csv):
    spec = resolve(str(tiny_bert))
    task = make_task("text", spec, TaskOptions(csv, batch_size=8, max_length=16))
    return spec.build(task.head, seed=0), task


def half_masks(network, seed=0):
    draw = torch.Generator().manual_seed(seed)
    backbone = network.backbone()
    return {name: torch.rand(backbone[name].shape, generator=draw) < 0.5 for name in network.prunable}


def run(network, task, masks, place=None, **settings):
    settings = Training(**{"round_length": "12it", "batch_size": 8, "lr": 1e-2, "clip": 1.0} | settings)
    return train(network, task, masks, settings, place or Round(0, 0), accelerator=make_accelerator())


@pytest.mark.parametrize(
    "settings",
    [{"optimizer": "adamw", "weight_decay": 0.1}, {"optimizer": "sgd", "weight_decay": 1e-2}, {"clip": 0.0}],
)
def test_pruned_weights_are_plus_zero_after_training_and_living_ones_moved(work, settings):
    network, task = work
    masks, before = half_masks(network), Origin.of(network)
    run(network, task, masks, **settings)
    for name, mask in masks.items():
        weight = network.backbone()[name]
        dead = weight[~mask]
        assert not dead.any() and not torch.signbit(dead).any()
        assert (weight[mask] != before.backbone[name][mask]).float().mean() > 0.9


def test_state_that_is_kept_over_a_pruning_does_not_move_newly_pruned_weights(work):
    network, task = work
    kept = run(network, task, algebra.ones({n: network.backbone()[n] for n in network.prunable})).optimizer_state
    assert any(tensor.abs().sum() > 0 for tensor in kept.values())
    masks = half_masks(network)
    run(network, task, masks, Round(0, 1, optimizer_state=kept))
    assert not any(network.backbone()[name][~mask].any() for name, mask in masks.items())


def test_without_masked_states_kept_momentum_would_move_pruned_weights(work, monkeypatch):
    network, task = work
    kept = run(network, task, algebra.ones({n: network.backbone()[n] for n in network.prunable})).optimizer_state
    monkeypatch.setattr(MaskedParameters, "mask_optimizer", lambda self, optimizer: None)
    with pytest.raises(RunFailure, match="no longer 0"):
        run(network, task, half_masks(network), Round(0, 1, optimizer_state=kept))


def test_a_pruned_weight_that_moved_is_an_error_that_names_its_parameter(work, monkeypatch):
    network, task = work
    monkeypatch.setattr(MaskedParameters, "mask_gradients", lambda self: None)
    with pytest.raises(RunFailure, match=r"encoder\.layer\.0\.attention\.self\.query\.weight"):
        run(network, task, half_masks(network))


def test_the_masks_do_not_reparametrize_or_rename_anything(work):
    network, task = work
    names = list(network.module.state_dict())
    run(network, task, half_masks(network))
    assert list(network.module.state_dict()) == names
    assert all(type(m) is not nn.utils.parametrize.ParametrizationList for m in network.module.modules())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_dead_gradient_is_zero_whatever_it_was_and_a_living_one_stays_as_it_is(dtype):
    wild = [torch.inf, -torch.inf, torch.nan, -2.5, -0.0]
    weight = nn.Parameter(torch.zeros(2, 5, dtype=dtype))
    weight.grad = torch.tensor([wild, wild], dtype=dtype)
    MaskedParameters({"w": weight}, {"w": torch.tensor([[True] * 5, [False] * 5])}).mask_gradients()
    assert str(weight.grad.tolist()) == str([wild, [0.0] * 5])  # the sign of -0.0 too, and NaN


def test_masking_gradients_then_clipping_is_clipping_the_living_gradients(work):
    network, _ = work
    masks = half_masks(network)
    pruned = MaskedParameters(network.backbone(), masks)
    for parameter in network.module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = make_optimizer(list(network.module.parameters()), Training())
    _finisher(optimizer, pruned, network.module, clip=1.0)()
    living = sum(p.numel() for p in network.module.parameters()) - algebra.size(masks) + algebra.alive(masks)
    gradients = torch.cat([p.grad.flatten() for p in network.module.parameters()])
    assert gradients.count_nonzero() == living
    assert gradients.max().item() == pytest.approx(living**-0.5, rel=1e-4)
    assert not any(network.backbone()[name].grad[~mask].any() for name, mask in masks.items())


class Noisy(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(1e-3)


def test_an_optimizer_that_moves_zeros_is_refused_and_ours_are_not():
    with pytest.raises(UserError, match="Noisy"):
        refuse_if_zeros_move(lambda parameters: Noisy(parameters, lr=0.1))
    for optimizer in ("adamw", "sgd"):
        refuse_if_zeros_move(lambda p, o=optimizer: make_optimizer(p, Training(optimizer=o, lr=0.1, weight_decay=0.1)))


def test_a_training_by_an_optimizer_that_moves_zeros_is_refused_before_its_first_step(work, monkeypatch):
    network, task = work
    monkeypatch.setattr("sparseticket.training.make_optimizer", lambda parameters, _: Noisy(parameters, lr=0.1))
    monkeypatch.setattr(task, "loss", None)  # which a step would call
    with pytest.raises(UserError, match="Noisy moves weights"):
        run(network, task, half_masks(network))


def test_weights_that_overflow_in_the_last_step_end_the_training_with_a_hint(work, monkeypatch):
    network, task = work
    loss = task.loss
    monkeypatch.setattr(task, "loss", lambda model, batch, *, step: 1e20 * loss(model, batch, step=step))
    with pytest.raises(RunFailure, match=r"weights became infinite or NaN in round 0.*lower --lr"):
        run(network, task, half_masks(network), round_length="1it", optimizer="sgd", lr=1e30, clip=0.0)


def test_a_loss_that_is_not_finite_stops_with_the_step_and_a_hint(work, monkeypatch):
    network, task = work
    loss = task.loss
    monkeypatch.setattr(task, "loss", lambda m, b, *, step: loss(m, b, step=step) * (float("nan") if step == 3 else 1))
    with pytest.raises(RunFailure, match=r"nan at step 3.*lower --lr"):
        run(network, task, half_masks(network))


@pytest.mark.parametrize("at", [1, 7, 11])
def test_a_training_continued_from_a_checkpoint_is_bit_equal_to_one_that_was_not_stopped(work, tmp_path, at):
    network, task = work
    origin, masks = Origin.of(network), half_masks(network)
    settings = Training(round_length="12it", batch_size=8, lr=1e-3, clip=1.0)
    accelerator = make_accelerator()

    def go(checkpoint=None, stop=None):
        def on_step(step, total, loss):
            if step == stop:
                raise KeyboardInterrupt

        train(
            network, task, masks, settings, Round(0, 0), accelerator=accelerator, checkpoint=checkpoint, on_step=on_step
        )
        return Origin.of(network).hashes

    whole = go()
    origin.restore(network)
    checkpoint = Checkpoint(tmp_path / "c.safetensors", every=0)
    with pytest.raises(KeyboardInterrupt):
        go(checkpoint, stop=at + 1)
    assert checkpoint.path.exists()
    origin.restore(network)
    assert go(Checkpoint(tmp_path / "c.safetensors", every=1e9)) == whole


def test_pruned_weights_that_live_in_a_checkpoint_are_zero_from_the_first_step_after_it(work, tmp_path, monkeypatch):
    network, task = work
    masks, name, loss, seen = half_masks(network), network.prunable[0], task.loss, []
    place = tuple((~masks[name]).nonzero()[0].tolist())
    with torch.no_grad():
        network.backbone()[name][place] = 1.0
    settings = Training(round_length="12it", batch_size=8, lr=1e-3)
    checkpoint = Checkpoint(tmp_path / "c.safetensors", every=1e9)
    checkpoint.save(10, network.module, make_optimizer(list(network.module.parameters()), settings), task, {})

    def watching(model, batch, *, step):
        seen.append((step, network.backbone()[name][place].item()))
        return loss(model, batch, step=step)

    monkeypatch.setattr(task, "loss", watching)
    train(network, task, masks, settings, Round(0, 0), accelerator=make_accelerator(), checkpoint=checkpoint)
    assert seen == [(10, 0.0), (11, 0.0)] and network.backbone()[name][place] == 0


def test_dropout_is_seeded_by_seed_round_and_step_and_alike_after_a_kill(work, tmp_path, monkeypatch):
    network, task = work
    loss, seeds = task.loss, []
    settings, accelerator = Training(round_length="4it", batch_size=8, lr=1e-3), make_accelerator()

    def watching(model, batch, *, step):
        seeds.append(torch.initial_seed())
        return loss(model, batch, step=step)

    def kill(step, total, loss):
        if step == 3:
            raise KeyboardInterrupt

    def seeded(place, **rest):
        seeds.clear()
        with suppress(KeyboardInterrupt):
            train(network, task, half_masks(network), settings, place, accelerator=accelerator, **rest)
        return list(seeds)

    monkeypatch.setattr(task, "loss", watching)
    first, second, other = (seeded(place) for place in (Round(0, 0), Round(0, 1), Round(1, 0)))
    assert len({*first, *second, *other}) == 12
    path = tmp_path / "c.safetensors"
    assert seeded(Round(0, 1), checkpoint=Checkpoint(path, every=0), on_step=kill) == second[:3]
    assert seeded(Round(0, 1), checkpoint=Checkpoint(path, every=1e9)) == second[2:]


def test_a_training_is_a_function_of_its_names_whatever_was_drawn_before(work):
    network, task = work
    origin, masks = Origin.of(network), half_masks(network)
    results = []
    for place, history in ((Round(0, 0), 1), (Round(0, 0), 2), (Round(0, 1), 1), (Round(1, 0), 1)):
        origin.restore(network)
        torch.manual_seed(history)
        run(network, task, masks, place)
        results.append(str(Origin.of(network).hashes))
    assert results[0] == results[1] and len(set(results)) == 3


def test_the_learning_rate_follows_its_shape():
    linear = Training(decay="linear", warmup=0.1)
    assert [linear.lr_factor(s, 100) for s in (0, 9, 10, 55, 99)] == pytest.approx([0.1, 1, 1, 0.5, 1 / 90])
    steps = Training(decay="steps", milestones=[0.5, 0.747])
    assert [steps.lr_factor(s, 182) for s in (0, 90, 91, 135, 136, 181)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert Training(decay="constant").lr_factor(7, 10) == 1
    cosine = Training(decay="cosine", lr=1e-4, final_lr=1e-6)
    assert [cosine.lr_factor(s, 100) for s in (0, 50, 100)] == pytest.approx([1, 0.505, 0.01])
    assert [Training(decay="poly").lr_factor(s, 100) for s in (0, 50)] == pytest.approx([1, 0.5**0.9])


def rates(monkeypatch, work, place):
    """The learning rate of every step of a training of 8 steps at this place."""
    network, task = work
    seen = []

    def recording(parameters, settings):
        optimizer = make_optimizer(parameters, settings)
        if len(parameters) == len(list(network.module.parameters())):  # not the probe that looks at the optimizer
            optimizer.register_step_pre_hook(lambda *_: seen.append(optimizer.param_groups[0]["lr"]))
        return optimizer

    monkeypatch.setattr("sparseticket.training.make_optimizer", recording)
    run(network, task, half_masks(network), place, round_length="8it", lr=1e-3)
    return seen


def test_a_round_in_a_schedule_over_ten_rounds_goes_on_where_the_one_before_it_ended(work, monkeypatch):
    second = rates(monkeypatch, work, Round(0, 1, schedule_offset=8, schedule_rounds=10))
    assert second == pytest.approx([1e-3 * (80 - step) / 80 for step in range(8, 16)])
    alone = rates(monkeypatch, work, Round(0, 1))
    assert alone == pytest.approx([1e-3 * (8 - step) / 8 for step in range(8)])


def test_a_rewound_round_trains_from_the_step_that_it_was_rewound_to(work, monkeypatch):
    assert rates(monkeypatch, work, Round(0, 1, start=2)) == pytest.approx(
        [1e-3 * (8 - step) / 8 for step in range(2, 8)]
    )


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_sharded_training_is_refused(monkeypatch, variable):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UserError, match="masks do not fit"):
        make_accelerator()


def test_mixed_precision_keeps_zeros_and_learns_much_the_same(work):
    network, task = work
    origin, masks, ends = Origin.of(network), half_masks(network), []
    for precision in ("no", "bf16"):
        origin.restore(network)
        settings = Training(round_length="12it", batch_size=8, lr=1e-3, precision=precision)
        train(network, task, masks, settings, Round(0, 0), accelerator=make_accelerator(precision))
        name = network.prunable[0]
        weight = network.backbone()[name].detach().clone()
        assert weight.dtype == torch.float32 and not weight[~masks[name]].any()
        ends.append(weight - origin.backbone[name].masked_fill(~masks[name], 0))
    cosine = torch.nn.functional.cosine_similarity(ends[0].flatten(), ends[1].flatten(), dim=0)
    assert not torch.equal(*ends) and cosine > 0.8


def test_a_precision_that_cannot_run_here_is_an_error_that_says_so():
    with pytest.raises(UserError, match="--precision fp16 cannot be used here"):
        make_accelerator("fp16")


@pytest.mark.parametrize("same", [True, False])
def test_processes_whose_masks_differ_are_found_out(monkeypatch, same):
    masks = {"w": torch.tensor([True, False])}
    other = sorted(tensor_hashes(masks if same else algebra.complement(masks)).items())
    monkeypatch.setattr("accelerate.utils.gather_object", lambda mine: [*mine, other])
    work = Workbench(*[None] * 4, accelerator=SimpleNamespace(num_processes=2), screen=Screen(quiet=True))
    with nullcontext() if same else pytest.raises(RunFailure, match="different masks"):
        work.same_on_every_process(masks)


def test_a_search_and_a_transfer_compare_their_masks_over_processes(tiny_bert, csv, tmp_path, monkeypatch):
    compared = []
    monkeypatch.setattr(Workbench, "same_on_every_process", lambda work, masks: compared.append(len(masks)))
    training = {"round_length": "1it", "batch_size": 8, "max_length": 16}
    protocol = {"schedule": "one-round", "sparsity": 0.5}
    asked = find_settings(str(tiny_bert), task="text", data=csv, protocol=protocol, training=training)
    find(asked, tmp_path / "run", screen=Screen(quiet=True))
    assert len(compared) == 2 and all(compared), "both tickets"
    loaded, settings, out = plan(tmp_path / "run" / "round-01" / "ticket.ticket", seeds=1, controls=("random-mask",))
    transfer(loaded, settings, out, screen=Screen(quiet=True))
    assert len(compared) == 2 + 3, "dense, ticket and control"


def test_two_processes_prune_to_the_same_masks_and_learn_what_one_does(tiny_bert, csv, tmp_path):
    folder = tmp_path / "tiny"  # without dropout, whose draws differ from process to process
    shutil.copytree(tiny_bert, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    arguments = ["find", "--model", folder, "--task", "text", "--data", csv, "--schedule", "one-round", "--lr", "1e-3"]
    arguments += ["--sparsity", "0.5", "--round-length", "5it", "--batch-size", "7", "--max-length", "16"]
    script = tmp_path / "run.py"
    script.write_text("from sparseticket.cli import main\nmain()\n")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", script]
    done = subprocess.run(
        [*map(str, launch), *map(str, arguments), "--out", str(tmp_path / "two")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Ticket:") == 1, "each took itself for the only one"
    settings = read_settings(tmp_path / "two" / "run.toml")
    find(settings, tmp_path / "one", screen=Screen(quiet=True))
    one, two = (load_file(tmp_path / name / "round-01" / "model" / "model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)
    masks = [Ticket.load(tmp_path / name / "round-01" / "ticket.ticket").masks for name in ("one", "two")]
    assert algebra.overlap(*masks).iou > 0.999  # a last bit of a sum may change a place at the threshold


SCENES = {"segmentation": (write_camvid, "backbone."), "detection": (write_voc, "backbone.body.")}


@pytest.mark.parametrize("task", SCENES)
def test_two_processes_find_one_ticket_on_scenes(task, tmp_path):
    write, inside = SCENES[task]
    arguments = ["find", "--model", "resnet20-cifar", "--task", task, "--data", write(tmp_path / "data")]
    arguments += ["--sparsity", "0.2", "--round-length", "2it", "--batch-size", "6", "--out", tmp_path / "run"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m", "sparseticket"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*map(str, [*launch, *arguments])], env=env, capture_output=True, text=True, timeout=600, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Ticket:") == 1
    ticket = Ticket.load(tmp_path / "run" / "round-01" / "ticket.ticket")
    weights = load_file(tmp_path / "run" / "round-01" / "model" / "model.safetensors")
    weights = {name: weights[inside + name] for name in ticket.masks}
    assert ticket.sparsity == pytest.approx(0.2, abs=1e-4)
    assert all(not weights[name][~mask].any() and weights[name][mask].all() for name, mask in ticket.masks.items())


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE says 2 processes, and 1 have met: each would train by itself"),
        ({"LOCAL_RANK": "0"}, "the processes of this launch do not find each other"),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2", "RANK": "1"}, "the processes of this launch do not find each other"),
    ],
)
def test_processes_that_do_not_find_each_other_are_refused(variables, says):
    script = "from sparseticket.training import make_accelerator\nmake_accelerator()"
    env = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and f"UserError: {says}" in done.stderr


def test_one_process_where_another_program_was_launched_by_mpi_trains_by_itself():
    script = "from sparseticket.training import make_accelerator\nprint(make_accelerator().num_processes)"
    env = os.environ | {"PYTHONPATH": str(ROOT), "PMI_SIZE": "2", "WORLD_SIZE": ""}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "1", done.stderr[-1000:]
