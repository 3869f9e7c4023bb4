"""Controls keep what they must keep of a ticket, change only what they are named after, and train as arms."""

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file

from sparseticket import masks as algebra
from sparseticket.controls import CONTROLS, control_of
from sparseticket.errors import UserError
from sparseticket.imp import find
from sparseticket.models import Head, resolve
from sparseticket.options import find_settings
from sparseticket.progress import Screen
from sparseticket.pruning import Pruner, magnitude_prune
from sparseticket.recipes.study_report import markdown
from sparseticket.rewind import Origin
from sparseticket.runs import RunFolder
from sparseticket.settings import Training
from sparseticket.show import show_transfer
from sparseticket.theta import tensor_hashes
from sparseticket.ticket import Ticket
from sparseticket.transfer import transfer
from sparseticket.transfer_plan import TransferSettings

KINDS = [*CONTROLS, "flip:0.1"]
PATTERNS = {
    "unstructured": 0.7,
    "2:4": 0.5,
    "1:4": 0.75,
    "block:12x8": 0.6,
    "heads+neurons": 0.3,
}  # 12 does not divide 32


@pytest.fixture(scope="module")
def network(tiny_bert):
    return resolve(str(tiny_bert)).build(Head("sequence-classification", classes=2), seed=0)


def ticket_of(network, pattern="unstructured"):
    backbone = network.backbone()
    weights = {name: backbone[name] for name in network.prunable if not name.startswith("pooler.")}
    pruner = Pruner.of(pattern, network.backbone_module, weights)
    masks = magnitude_prune(weights, pruner.dense(), PATTERNS[pattern], pruner)
    theta = Origin.of(network).theta(network.pretrained)
    return Ticket(masks, network.spec.name, theta, PATTERNS[pattern], pattern=pattern), pruner


def masks_of(kind, network, pattern, seed=0):
    ticket, pruner = ticket_of(network, pattern)
    return ticket, pruner, control_of(kind).masks(ticket.masks, pruner, network.backbone(), seed)


@pytest.mark.parametrize("kind", ["random-mask", "random-mask-per-layer", "one-shot"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_control_mask_is_as_sparse_as_the_ticket_and_of_its_pattern(network, pattern, kind):
    ticket, pruner, masks = masks_of(kind, network, pattern)
    pruner.check(masks)
    one = max(pruner.groups.sizes) if pruner.groups is not None else 1
    assert abs(algebra.alive(masks) - algebra.alive(ticket.masks)) <= one
    assert Ticket(masks, "m", {}, 0.5, pattern=pattern).sparsity == pytest.approx(ticket.sparsity, abs=0.02)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_mask_per_layer_has_the_tickets_count_in_each_layer_and_another_place(network, pattern):
    ticket, pruner, masks = masks_of("random-mask-per-layer", network, pattern)
    assert {n: int(m.sum()) for n, m in masks.items()} == {n: int(m.sum()) for n, m in ticket.masks.items()}
    assert any(not torch.equal(masks[name], ticket.masks[name]) for name in masks)
    again, other = (control_of("random-mask-per-layer").masks(ticket.masks, pruner, {}, seed) for seed in (0, 1))
    assert all(torch.equal(masks[name], again[name]) for name in masks)
    assert any(not torch.equal(masks[name], other[name]) for name in masks)


def test_one_shot_keeps_the_largest_weights_of_theta(network):
    ticket, _, masks = masks_of("one-shot", network, "unstructured")
    assert all(torch.equal(masks[name], ticket.masks[name]) for name in masks)  # this ticket is just that


def test_a_complement_is_alive_where_the_ticket_is_not_in_whole_groups(network):
    ticket, _, masks = masks_of("complement", network, "unstructured")
    assert all(torch.equal(masks[name], ~ticket.masks[name]) for name in masks)
    ticket, pruner, masks = masks_of("complement", network, "block:12x8")
    pruner.check(masks)
    assert torch.equal(pruner.kept(masks), ~pruner.kept(ticket.masks))


def test_a_flip_moves_a_tenth_of_the_living(network):
    ticket, _, masks = masks_of("flip:0.1", network, "unstructured")
    moved = sum(int((ticket.masks[name] & ~masks[name]).sum()) for name in masks)
    assert moved == round(0.1 * algebra.alive(ticket.masks)) and algebra.alive(masks) == algebra.alive(ticket.masks)


@pytest.mark.parametrize(
    ("kind", "pattern", "says"),
    [
        ("flip:0.1", "2:4", "flip draws single weights"),
        ("flip:0.1", "heads+neurons", "flip draws single weights"),
        ("complement", "1:4", "3 of 4"),
    ],
)
def test_a_control_that_would_break_the_pattern_is_refused(network, kind, pattern, says):
    ticket, pruner = ticket_of(network, pattern)
    with pytest.raises(UserError, match=says):
        control_of(kind).check(ticket.masks, pruner, network)


@pytest.mark.parametrize("kind", ["flip:", "flip:1.5", "flip:none", "random", 3])
def test_a_control_that_is_none_is_refused(kind):
    with pytest.raises(UserError, match="flip"):
        control_of(kind)


def test_random_weights_are_as_the_architecture_initialises_them(network):
    names = sorted(network.pretrained)
    fresh = control_of("random-weights").weights(network, names, 0)
    backbone = network.backbone()
    matrix = "encoder.layer.0.intermediate.dense.weight"
    assert sorted(fresh) == names and not torch.equal(fresh[matrix], backbone[matrix])
    assert float(fresh[matrix].std()) == pytest.approx(network.module.config.initializer_range, rel=0.1)
    assert (fresh["encoder.layer.0.output.LayerNorm.weight"] == 1).all()
    assert torch.equal(fresh[matrix], control_of("random-weights").weights(network, names, 0)[matrix])
    assert not torch.equal(fresh[matrix], control_of("random-weights").weights(network, names, 1)[matrix])


def test_shuffled_weights_are_each_tensors_own_in_another_order(network):
    shuffled = control_of("shuffled-weights").weights(network, sorted(network.pretrained), 0)
    for name, original in network.backbone().items():
        assert torch.equal(shuffled[name].flatten().sort().values, original.detach().flatten().sort().values)
    matrix = "encoder.layer.1.attention.self.query.weight"
    assert not torch.equal(shuffled[matrix], network.backbone()[matrix])


def test_shuffled_layers_are_whole_layers_in_another_order(network):
    moved, backbone = control_of("shuffled-layers").weights(network, sorted(network.pretrained), 0), network.backbone()
    for name in network.pretrained:
        other = name.translate(str.maketrans("01", "10")) if name.startswith("encoder.layer.") else name  # two layers
        assert torch.equal(moved[name], backbone[other])


def test_a_resnet_has_no_layers_to_shuffle():
    network = resolve("resnet20-cifar").build(Head("image-classification", classes=10), seed=0)
    with pytest.raises(UserError, match="use shuffled-weights"):
        control_of("shuffled-layers").check({}, None, network)
    fresh = control_of("random-weights").weights(network, sorted(network.backbone()), 5)
    assert not torch.equal(fresh["conv1.weight"], network.backbone()["conv1.weight"])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    lines = [f"the film {n} is {('good', 'bad')[n % 2]},{('good', 'bad')[n % 2]}" for n in range(40)]
    path.write_text("text,label\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def found(tiny_bert, data, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "a"
    training = {"round_length": "2it", "batch_size": 8, "max_length": 16}
    protocol = {"schedule": "one-round", "sparsity": 0.5}
    find(
        find_settings(str(tiny_bert), task="text", data=data, protocol=protocol, training=training),
        run,
        screen=Screen(quiet=True),
    )
    return run / "round-01" / "ticket.ticket"


def test_a_control_trains_alike_as_an_arm_and_as_a_ticket_of_its_own(cli, found, tmp_path):
    controls = [word for kind in KINDS for word in ("--control", kind)]
    code, text = cli("transfer", found, "--seeds", 1, *controls, "--out", tmp_path / "arms")
    assert code == 0, text
    arms = json.loads((tmp_path / "arms" / "transfer.json").read_text())["arms"]
    assert list(arms) == ["dense", "ticket", *KINDS]
    for kind in ("random-weights", "shuffled-layers", "random-mask-per-layer"):
        made = found.parent.parent / kind / "a.ticket"
        code, text = cli("control", found, "--kind", kind, "--out", made)
        assert code == 0 and "Ticket:" in text, text
        code, text = cli("transfer", made, "--seeds", 1, "--out", tmp_path / kind)
        assert code == 0, text
        alone = load_file(tmp_path / kind / "ticket-seed0" / "model" / "model.safetensors")
        as_arm = load_file(tmp_path / "arms" / f"{kind}-seed0" / "model" / "model.safetensors")
        assert all(torch.equal(alone[name], as_arm[name]) for name in as_arm)
        # what it is compared with is the dense network at θ_p, whatever the control's own weights
        dense = load_file(tmp_path / kind / "dense-seed0" / "model" / "model.safetensors")
        as_arm = load_file(tmp_path / "arms" / "dense-seed0" / "model" / "model.safetensors")
        assert all(torch.equal(dense[name], as_arm[name]) for name in as_arm)


def test_a_control_of_other_weights_keeps_them_beside_it_and_names_them(cli, found, tmp_path):
    made = tmp_path / "shuffled" / "a.ticket"
    assert cli("control", found, "--kind", "shuffled-weights", "--seed", 3, "--out", made)[0] == 0
    original, ticket = Ticket.load(found), Ticket.load(made)
    theta = load_file(made.parent / "theta.safetensors")
    assert tensor_hashes(theta) == ticket.theta != original.theta and theta.keys() == original.theta.keys()
    assert ticket.metrics["control"]["kind"] == "shuffled-weights" and ticket.metrics["control"]["seed"] == 3
    assert ticket.metrics["control"]["from"] == original.identity
    report = json.loads((made.parent / "a.ticket.json").read_text())
    assert report["ticket"] == ticket.identity and report["overlap"] == 1
    code, text = cli("control", found, "--kind", "random-weights", "--out", made.parent / "b.ticket")
    assert code == 2 and "belongs to another ticket" in text and not (made.parent / "b.ticket").exists()
    code, text = cli("control", found, "--kind", "random-mask", "--seed", -1, "--out", made.parent / "c.ticket")
    assert code == 2 and "--seed is a number from 0, not -1" in text and not (made.parent / "c.ticket").exists()
    code, text = cli("control", found, "--kind", "one-shot", "--out", found.parent.parent / "b.ticket")
    assert code == 2 and "/controls/FILE" in text


def test_a_mask_control_of_a_regrouped_ticket_is_written_with_its_theta_as_it_was(cli, tmp_path):
    """Its θ lies in no published file, so that it is written beside the control: unpermuted, as the ticket names it."""
    run = tmp_path / "run"
    protocol, training = {"schedule": "one-round", "sparsity": 0.6}, {"round_length": "1it", "batch_size": 16}
    settings = find_settings("resnet20-cifar", task="digits", protocol=protocol, training=training)
    find(settings, run, screen=Screen(quiet=True))
    shaped, made = run / "shaped" / "a.ticket", tmp_path / "elsewhere" / "c.ticket"
    found = run / "round-01" / "ticket.ticket"
    code, text = cli("convert", found, "--to", "block:4x4", "--by", "regroup", "--out", shaped)
    assert code == 0 and Ticket.load(shaped).permutations, text
    assert cli("control", shaped, "--kind", "random-mask", "--out", made)[0] == 0
    assert tensor_hashes(load_file(made.parent / "theta.safetensors")) == Ticket.load(shaped).theta
    code, text = cli("transfer", made, "--seeds", 1, "--out", tmp_path / "t")
    assert code == 0, text


def test_a_transfer_finished_before_gets_the_tickets_differences_to_its_controls_seed_by_seed_without_training(
    tmp_path, capsys
):
    """0.50 − 0.40, 0.60 − 0.54, 0.58 − 0.44: 0.10, 0.06, 0.14, so 0.10 with a deviation of 0.04 (ddof 1)."""
    values = {"dense": [0.7, 0.7, 0.7], "ticket": [0.50, 0.60, 0.58], "random-mask": [0.40, 0.54, 0.44]}
    ticket = Ticket({"layer.weight": torch.tensor([[True, False]])}, "no-such-model", {}, 0.5)
    settings = TransferSettings(
        ticket.identity, "no-such-model", "digits", "", "", "", "", 3, ["random-mask"], False, Training()
    )
    run = RunFolder.open(tmp_path, asdict(settings), what="transfer.toml")
    for arm, of_arm in values.items():
        for seed, value in enumerate(of_arm):
            run.finish(
                f"{arm}-seed{seed}",
                {"value": value, "metric": "accuracy", "metrics": {"accuracy": value}, "sparsity": 0.5},
            )
    done = transfer(ticket, settings, tmp_path, screen=Screen(quiet=True))
    assert done == json.loads((tmp_path / "transfer.json").read_text())
    assert list(done["differences"]) == ["random-mask"]
    difference = done["differences"]["random-mask"]
    assert difference["values"] == pytest.approx([0.10, 0.06, 0.14]) and difference["n"] == 3
    assert (difference["mean"], difference["std"]) == pytest.approx((0.10, 0.04))

    def shown(summary):
        step = {"verb": "transfer", "of": ["x"], "result": summary, "paper": None}
        report = markdown({"title": "t", "recipe": "r", "steps": {"arms": step}})
        show_transfer(Screen(), summary, tmp_path)
        return report, "".join(capsys.readouterr())

    for text in shown(done):
        assert "ticket − arm" in text and text.count("+10.00 ± 4.00") == 1
    for text in shown({key: value for key, value in done.items() if key != "differences"}):
        assert "random-mask" in text and "±" not in text


def test_random_weights_are_a_control_and_no_weights_of_a_ticket(cli, found, tmp_path):
    for verb in ("transfer", "control", "matrix"):
        more = {"control": ("--kind", "one-shot"), "matrix": ("--task", "text")}.get(verb, ())
        code, text = cli(verb, found, *more, "--weights", "random", "--out", tmp_path / verb)
        assert code == 2 and "The control random-weights" in " ".join(text.split()), text
        assert not (tmp_path / verb).exists()
