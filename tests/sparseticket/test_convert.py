"""From an unstructured ticket to a shaped one: what survives, what is revived, what is permuted, and that it trains."""

import json
import struct
from dataclasses import replace
from functools import cache

import onnx
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from sparseticket import masks as algebra
from sparseticket.convert import coarsen
from sparseticket.errors import UserError
from sparseticket.models import Head, resolve
from sparseticket.models.families import families
from sparseticket.pattern import Block, NOfM, parse
from sparseticket.permute import axes, permuted
from sparseticket.pruning import Pruner, magnitude_prune
from sparseticket.pruning.arrange import BestOf, Blocks, arrange
from sparseticket.pruning.purity import check_masks
from sparseticket.rewind import Origin
from sparseticket.ticket import Ticket, _canonical, _identity

HEAD = Head("sequence-classification", 2)


def one_shot(network, model, sparsity=0.7):
    """An unstructured ticket by the magnitude of θ; what IMP finds looks alike to a conversion."""
    weights = {name: network.backbone()[name] for name in network.prunable if not name.startswith("pooler.")}
    masks = magnitude_prune(weights, algebra.ones(weights), sparsity)
    theta = Origin.of(network).theta(network.pretrained)
    return Ticket(
        masks=masks,
        model=model,
        theta=theta,
        scheduled_sparsity=sparsity,
        task={"name": "mlm", "metric": "masked_accuracy"},
        training={"max_length": 32},
        round=1,
        protocol={"rewind": "theta_p"},
    )


@pytest.fixture(scope="module")
def tiny(tiny_bert):
    network = resolve(str(tiny_bert)).build(HEAD, seed=0)
    return network, one_shot(network, str(tiny_bert))


@pytest.fixture(scope="module")
def minilm():
    network = resolve("minilm").build(HEAD, seed=0)
    return network, one_shot(network, "minilm")


@pytest.fixture(scope="module")
def refilled(tiny, minilm):
    """The ticket of one of them by refilling, made once."""
    return cache(
        lambda model, pattern, wanted: coarsen(
            *reversed({"tiny": tiny, "minilm": minilm}[model]), parse(pattern), "refill", wanted
        )
    )


@pytest.mark.parametrize("by", ["score", "refill"])
@pytest.mark.parametrize("pattern", ["block:8x8", "block:4x1", "block:1x4", "2:4", "heads", "neurons", "heads+neurons"])
def test_a_shaped_ticket_is_of_whole_groups_and_as_sparse_as_asked(tiny, pattern, by):
    network, ticket = tiny
    wanted = 0.5 if pattern in ("2:4", "heads") else 0.3 if pattern == "neurons" else 0.6
    if pattern == "heads":
        wanted = 0.15  # one of two heads survives in each of two layers
    made = coarsen(ticket, network, parse(pattern), by, wanted)
    check_masks(parse(pattern), made.ticket.masks)
    weights = {name: network.backbone()[name] for name in ticket.masks}
    pruner = Pruner.of(pattern, network.backbone_module, weights)
    pruner.check(made.ticket.masks)
    group = int(pruner.groups.sizes.max()) if pruner.groups else 0
    assert abs(made.ticket.sparsity - wanted) * algebra.size(ticket.masks) <= max(1, group)
    report = made.report
    assert report["survived"] + report["died"] == algebra.alive(ticket.masks)
    assert report["survived"] + report["revived"] == algebra.alive(made.ticket.masks)
    assert made.ticket.metrics["conversion"] == {"from": ticket.identity, "by": by, "sparsity": wanted}


def test_score_keeps_the_blocks_of_the_largest_living_magnitude_of_all_layers(tiny):
    network, ticket = tiny
    made = coarsen(ticket, network, Block(8, 8), "score", 0.7).ticket
    worth = {}
    for name, mask in ticket.masks.items():
        living = network.backbone()[name].detach().abs() * mask
        worth[name] = living.unflatten(0, (-1, 8)).unflatten(2, (-1, 8)).sum((1, 3))
    lives = {name: mask[::8, ::8] for name, mask in made.masks.items()}
    kept = torch.cat([worth[name][alive] for name, alive in lives.items()])
    dropped = torch.cat([worth[name][~alive] for name, alive in lives.items()])
    assert len(kept) == round(0.3 * (len(kept) + len(dropped))) and kept.min() >= dropped.max()


def test_refill_keeps_in_each_layer_the_share_of_groups_that_is_its_density(minilm, refilled):
    _, ticket = minilm
    made = refilled("minilm", "block:64x64", ticket.sparsity)
    for name, layer in made.report["layers"].items():
        blocks = ticket.masks[name].numel() / 64**2
        assert abs(layer["sparsity"] - layer["sparsity_before"]) * blocks <= 0.51 + 0.02 * blocks, name
    spread = [layer["sparsity_before"] for layer in made.report["layers"].values()]
    assert max(spread) - min(spread) > 0.3


def test_refill_keeps_as_many_neurons_of_each_layer_as_it_has_density(minilm):
    network, ticket = minilm
    made = coarsen(ticket, network, parse("neurons"), "refill", 0.45).ticket
    kept, dense = [], []
    for family in families(network.backbone_module, "neurons"):
        ends = [end.name for end in family.slices if end.name in ticket.masks]
        alive = sum(int(ticket.masks[name].sum()) for name in ends)
        dense.append(alive / sum(ticket.masks[name].numel() for name in ends))
        kept.append(int(made.masks[ends[0]].any(1).sum()) / family.count)
    assert all(0 < share < 1 for share in kept)
    for share, density in zip(kept, dense, strict=True):
        assert share / density == pytest.approx(kept[0] / dense[0], rel=0.01)


def test_two_of_four_keeps_the_largest_living_ones_and_revives_where_too_few_live(tiny):
    network, ticket = tiny
    made = coarsen(ticket, network, NOfM(2, 4), "refill", 0.5).ticket
    for name, was in ticket.masks.items():
        now = made.masks[name].unflatten(1, (-1, 4))
        assert (now.sum(2) == 2).all()
        few = was.unflatten(1, (-1, 4)).sum(2) <= 2
        assert (now | ~was.unflatten(1, (-1, 4)))[few].all()  # with two alive or fewer, all of these stay


@pytest.mark.parametrize("pattern", ["block:64x64", "2:4"])
def test_regrouped_blocks_hold_more_of_a_real_tickets_magnitude_than_unpermuted_ones(
    minilm, refilled, monkeypatch, pattern
):
    monkeypatch.setattr("sparseticket.pruning.arrange.ROUNDS", 8)
    monkeypatch.setattr("sparseticket.pruning.regroup.PASSES", 1)
    network, ticket = minilm
    weights = {name: tensor.detach().clone() for name, tensor in network.backbone().items()}
    wanted = 0.5 if pattern == "2:4" else ticket.sparsity
    unpermuted = refilled("minilm", pattern, wanted).report["magnitude_kept"]
    made = coarsen(ticket, network, parse(pattern), "regroup", wanted)
    assert made.report["magnitude_kept_unpermuted"] == unpermuted
    assert made.report["magnitude_kept"] > unpermuted + (0.003 if pattern == "2:4" else 0.08)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.backbone().items())
    # by hand: the share of the ticket's magnitude under the masks, all in permuted coordinates
    known, orders = axes(network.backbone_module), made.ticket.permutations
    living = {name: weights[name].abs() * mask for name, mask in ticket.masks.items()}
    moved = permuted(living, orders, known)
    kept = sum(float(moved[name][mask].double().sum()) for name, mask in made.ticket.masks.items())
    whole = sum(float(tensor.double().sum()) for tensor in living.values())
    assert made.report["magnitude_kept"] == pytest.approx(kept / whole, abs=1e-6)
    assert {"residual", "neurons/encoder.layer.3"} <= set(orders)


@pytest.mark.parametrize("pattern", ["block:8x8", "block:4x1", "block:4x4", "block:16x4", "2:4", "block:5x3"])
def test_regrouping_keeps_more_of_what_the_network_absorbs_and_always_the_same(tiny, refilled, pattern):
    network, ticket = tiny
    made = coarsen(ticket, network, parse(pattern), "regroup", 0.5)
    plain = refilled("tiny", pattern, 0.5)
    assert made.ticket.permutations and made.report["magnitude_kept"] > plain.report["magnitude_kept"]
    assert made.ticket.sparsity == pytest.approx(plain.ticket.sparsity, abs=16 / algebra.size(ticket.masks))
    assert made.ticket.identity == coarsen(ticket, network, parse(pattern), "regroup", 0.5).ticket.identity


def test_permutations_of_one_end_alone_which_a_network_does_not_absorb_are_refused(tiny, monkeypatch):
    network, ticket = tiny

    def one_end(backbone):
        neurons = {name: axis for name, axis in axes(backbone).items() if name.startswith("neurons/")}
        return {name: replace(axis, ends=axis.ends[:1]) for name, axis in neurons.items()}

    monkeypatch.setattr("sparseticket.convert.axes", one_end)
    monkeypatch.setattr("sparseticket.permute.axes", one_end)
    with pytest.raises(UserError, match="does not absorb the permutations that regrouping found"):
        coarsen(ticket, network, Block(4, 4), "regroup", 0.5)


@settings(max_examples=15, deadline=None)
@given(data=st.data(), size=st.integers(2, 17), runs=st.integers(1, 3), bins=st.integers(1, 5), left=st.integers(0, 1))
def test_an_arrangement_reorders_inside_runs_and_is_worth_no_less_once_it_swaps(data, size, runs, bins, left):
    torch.manual_seed(data.draw(st.integers(0, 999)))
    per, places = size * bins + left, data.draw(st.integers(1, 6))
    features = torch.rand(runs * per, places)
    threshold = torch.rand(places) * size
    measures = [Blocks(threshold, torch.full((places,), 0.3)), BestOf(data.draw(st.integers(1, size - 1)))]
    for measure in measures:
        order = arrange(features, size, runs, measure).reshape(runs, per)
        assert torch.equal(order.sort(1).values, torch.arange(runs * per).reshape(runs, per))
        if left:
            assert torch.equal(order[:, size * bins :], torch.arange(runs * per).reshape(runs, per)[:, size * bins :])

    def worth(order):
        return float(measures[1].worth(features[order.reshape(runs, per)[:, : size * bins].reshape(-1, size)]).sum())

    assert worth(order) >= worth(torch.arange(runs * per)) - 1e-4  # N:M begins from what is there


def test_vision_tickets_regroup_their_inner_channels(tmp_path):
    network = resolve("resnet20-cifar").build(Head("image-classification", 10), seed=0)
    weights = {name: network.backbone()[name] for name in network.prunable}
    masks = magnitude_prune(weights, algebra.ones(weights), 0.6)
    theta = Origin.of(network).hashes["backbone"]
    ticket = Ticket(masks=masks, model="resnet20-cifar", theta=theta, scheduled_sparsity=0.6)
    made = coarsen(ticket, network, Block(4, 4), "regroup", 0.6)
    assert made.report["magnitude_kept"] > made.report["magnitude_kept_unpermuted"] + 0.01
    assert all(name.startswith("channels/") for name in made.ticket.permutations)
    made.ticket.save(tmp_path / "a.ticket")
    assert Ticket.load(tmp_path / "a.ticket").identity == made.ticket.identity


def test_a_run_from_random_weights_converts_and_transfers_beside_its_theta(cli, tmp_path):
    run, short = tmp_path / "run", ["--round-length", "2it"]
    found = ["--model", "resnet20-cifar", "--task", "digits", "--sparsity", 0.5, "--schedule", "one-shot", "--no-dense"]
    code, text = cli("find", *found, *short, "--out", run)
    assert code == 0, text
    ticket, made = run / "round-00" / "ticket.ticket", run / "shaped" / "channels.ticket"
    code, text = cli("convert", ticket, "--to", "channels", "--by", "refill", "--out", made, "--sparsity", 0.4)
    assert code == 0, text
    code, text = cli("transfer", made, "--seeds", 1, *short)
    assert code == 0, text
    model = next(run.glob("transfer-digits-*")) / "ticket-seed0" / "model" / "model.safetensors"
    weights, read = load_file(model), Ticket.load(made)
    assert read.theta_file and {mask.ndim for mask in read.masks.values()} == {1, 4}
    assert all(not weights[name][~mask].any() for name, mask in read.masks.items())
    (run / "theta.safetensors").unlink()
    code, text = cli("convert", ticket, "--to", "channels", "--by", "refill", "--out", made, "--sparsity", 0.4)
    assert code == 2 and "--weights FILE" in text


def test_weights_with_the_stem_for_small_images_are_recognised(cli, tmp_path):
    spec = resolve("resnet18").for_images(32)
    torch.manual_seed(0)
    state = spec.make_module(10).state_dict()
    safetensors.torch.save_file(state, tmp_path / "theta.safetensors")
    network = spec.build(Head("image-classification", 10), seed=0, weights=tmp_path / "theta.safetensors")
    one_shot(network, "resnet18").save(tmp_path / "a.ticket")
    where = ["--weights", tmp_path / "theta.safetensors", "--out", tmp_path / "b.ticket"]
    code, text = cli("convert", tmp_path / "a.ticket", "--to", "block:8x8", "--by", "score", *where)
    assert code == 0, text
    assert Ticket.load(tmp_path / "b.ticket").sparsity == pytest.approx(0.7, abs=1e-4)


@pytest.fixture(scope="module")
def regrouped(tiny, tmp_path_factory):
    network, ticket = tiny
    path = tmp_path_factory.mktemp("tickets") / "regrouped.ticket"
    coarsen(ticket, network, Block(4, 4), "regroup", 0.6).ticket.save(path)
    return path


def test_a_ticket_with_permutations_comes_back_and_its_theta_is_that_of_the_unpermuted_weights(tiny, regrouped):
    network, ticket = tiny
    read = Ticket.load(regrouped)
    assert "residual" in read.permutations and all(p.dtype == torch.int32 for p in read.permutations.values())
    assert read.theta == ticket.theta and read.check_theta(Origin.of(network).theta(network.pretrained)) == []
    other = Ticket(**{**vars(read), "permutations": {}})
    assert other.identity != read.identity


def forge(path, out, change):
    """Write a ticket whose tensors were changed and whose hash was made to fit."""
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    record = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["sparseticket"])
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    del record["identity"]
    metadata = {"sparseticket": _canonical(record | {"identity": _identity(record, tensors)})}
    out.write_bytes(safetensors.torch.save(tensors, metadata))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda order: order.clamp(min=1),
        lambda order: order.long(),
        lambda order: order.float(),
        lambda order: order - 1,
        lambda order: order[None],
        lambda order: order[:-1].clone(),
    ],
)
def test_what_is_no_permutation_is_refused_even_with_the_hash_made_to_fit(regrouped, tmp_path, wrong):
    def change(tensors):
        name = "permutation:residual"
        tensors[name] = wrong(torch.arange(len(tensors[name]), dtype=torch.int32).flip(0)).contiguous()

    forge(regrouped, tmp_path / "forged.ticket", change)
    with pytest.raises(UserError, match="residual is no permutation"):
        Ticket.load(tmp_path / "forged.ticket")


def test_a_permutation_that_was_changed_in_the_file_is_found_out(regrouped, tmp_path):
    order = Ticket.load(regrouped).permutations["residual"].numpy().tobytes()
    content = regrouped.read_bytes()
    assert content.count(order) == 1
    (tmp_path / "a.ticket").write_bytes(content.replace(order, order[4:8] + order[:4] + order[8:]))
    with pytest.raises(UserError, match="identity hash"):
        Ticket.load(tmp_path / "a.ticket")


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    lines = [f"the film {n} is {('good', 'bad')[n % 2]},{('good', 'bad')[n % 2]}" for n in range(40)]
    path.write_text("text,label\n" + "\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("pattern", ["2:4", "heads+neurons"])  # by regroup, by refill
def test_a_converted_ticket_trains_in_transfer_and_its_zeros_stay(cli, tiny, csv, tmp_path, pattern):
    network, ticket = tiny
    ticket.save(tmp_path / "a.ticket")
    made, out = tmp_path / "b.ticket", tmp_path / "out"
    by = "refill" if pattern == "heads+neurons" else "regroup"
    arguments = ["--to", pattern, "--by", by, "--out", made, *(["--sparsity", 0.3] if by == "refill" else [])]
    code, text = cli("convert", tmp_path / "a.ticket", *arguments)
    assert code == 0 and "revived" in text, text
    report = json.loads((tmp_path / "b.ticket.json").read_text())
    read = Ticket.load(made)
    assert report["ticket"] == read.identity and report["from"] == ticket.identity and report["seconds"] > 0
    assert bool(read.permutations) == (by == "regroup")
    training = ["--round-length", "5it", "--batch-size", 8, "--max-length", 16, "--lr", "1e-6", "--seeds", 1]
    code, text = cli("transfer", made, "--task", "text", "--data", csv, "--out", out, *training)
    assert code == 0, text
    weights = load_file(out / "ticket-seed0" / "model" / "model.safetensors")
    assert all(not weights[f"bert.{name}"][~mask].any() for name, mask in read.masks.items())
    # after five small steps it is still near the θ that it began from: permuted, revived weights included
    began = permuted(network.backbone(), read.permutations, axes(network.backbone_module))
    assert all(torch.allclose(weights[f"bert.{n}"], began[n] * mask, atol=1e-4) for n, mask in read.masks.items())
    code, text = cli("inspect", made)
    assert code == 0 and "made from" in text and pattern in text
    if pattern == "2:4":
        check_export_says_where_it_is_from(cli, out, tmp_path / "onnx", read)


def check_export_says_where_it_is_from(cli, transferred, folder, ticket):
    """Its ticket's, but its own task: the ticket was found by masked_accuracy on mlm."""
    code, text = cli("export", transferred / "ticket-seed0", folder)
    assert code == 0, text
    properties = {entry.key: entry.value for entry in onnx.load(folder / "model.onnx").metadata_props}
    said = {name: properties[f"sparseticket.{name}"] for name in ("ticket", "pattern", "task", "metric", "value")}
    value = json.loads((transferred / "ticket-seed0" / "metrics.json").read_text())["value"]
    assert said == {
        "ticket": ticket.identity,
        "pattern": "2:4",
        "task": "text",
        "metric": "accuracy",
        "value": f"{value:.6f}",
    }
    code, text = cli(
        "export", transferred / "dense-seed0", folder, "--ticket", transferred / "ticket-seed0/ticket.ticket"
    )
    assert code == 2 and "trained under another ticket, or none" in " ".join(text.split())


def test_an_untrained_network_under_a_regrouped_ticket_is_the_permuted_one(tiny, regrouped, csv):
    from accelerate import Accelerator

    from sparseticket.progress import Screen
    from sparseticket.tasks import TaskOptions
    from sparseticket.transfer import fit
    from sparseticket.workbench import Workbench

    ticket = Ticket.load(regrouped)
    work = Workbench.build(
        ticket.model,
        "text",
        TaskOptions(csv, 8, 16),
        seed=0,
        weights=None,
        accelerator=Accelerator(cpu=True),
        screen=Screen(quiet=True),
    )
    batch = {"input_ids": torch.arange(5, 13)[None]}
    work.network.module.eval()
    before, theta = work.network.module(**batch).logits, work.theta()
    fit(ticket, work)
    work.permute(ticket.permutations)
    torch.testing.assert_close(work.network.module(**batch).logits, before, atol=1e-5, rtol=1e-4)
    assert work.theta() == theta and Origin.of(work.network).theta(frozenset(theta)) != theta
    moved = {name: tensor.detach().clone() for name, tensor in work.network.module.state_dict().items()}
    with torch.no_grad():
        for parameter in work.network.module.parameters():
            parameter.add_(1)
    work.origin.restore(work.network)  # a rewind goes back to the permuted weights
    assert all(torch.equal(tensor, moved[name]) for name, tensor in work.network.module.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--to", "unstructured", "--by", "score"], "give a shape"),
        (["--to", "block:4", "--by", "score"], "there is no pattern"),
        (["--to", "2:4", "--by", "guess"], "score, refill, regroup"),
        (["--to", "heads", "--by", "regroup"], "changes nothing"),
        (["--to", "channels", "--by", "score"], "has no channels"),
        (["--to", "2:4", "--by", "score", "--sparsity", 0.7], "leave --sparsity out"),
        (["--to", "block:4x4", "--by", "score", "--sparsity", 1.5], "share of zeros"),
        (["--to", "heads", "--by", "refill", "--sparsity", 0.9], "cannot be reached"),
        (["--to", "block:999x999", "--by", "score"], "larger than every layer"),
        (["--to", "2:4", "--by", "score", "--weights", "none.safetensors"], "there is no file"),
    ],
)
def test_what_cannot_be_converted_is_refused_and_nothing_is_written(cli, tiny, tmp_path, arguments, says):
    tiny[1].save(tmp_path / "a.ticket")
    code, text = cli("convert", tmp_path / "a.ticket", *arguments, "--out", tmp_path / "b.ticket")
    assert code == 2 and says in " ".join(text.split()), text
    assert [file.name for file in tmp_path.iterdir()] == ["a.ticket"]


def test_a_shaped_ticket_the_ticket_itself_and_other_weights_are_refused(cli, tiny, regrouped, tmp_path):
    code, text = cli("convert", regrouped, "--to", "2:4", "--by", "score", "--out", tmp_path / "b.ticket")
    assert code == 2 and "of the pattern block:4x4 already" in " ".join(text.split())
    tiny[1].save(tmp_path / "a.ticket")
    code, text = cli("convert", tmp_path / "a.ticket", "--to", "2:4", "--by", "score", "--out", tmp_path / "a.ticket")
    assert code == 2 and "name another file" in " ".join(text.split())
    theta = dict(tiny[1].theta) | {"encoder.layer.0.output.dense.weight": "0" * 64}
    Ticket(**{**vars(tiny[1]), "theta": theta}).save(tmp_path / "c.ticket")
    code, text = cli("convert", tmp_path / "c.ticket", "--to", "2:4", "--by", "score", "--out", tmp_path / "d.ticket")
    assert code == 2 and "belongs to other weights" in " ".join(text.split())
