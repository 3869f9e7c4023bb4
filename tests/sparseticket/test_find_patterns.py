"""Finding, continuing and transferring tickets of each pattern, in a tiny encoder and a small ResNet."""

import json
import shutil
import sys
import tomllib
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from sparseticket import masks as algebra
from sparseticket.errors import UserError
from sparseticket.imp import find
from sparseticket.options import find_settings
from sparseticket.progress import Screen
from sparseticket.ticket import Ticket
from sparseticket.transfer import transfer
from sparseticket.transfer_plan import plan

# weights of the largest group: a head of 16 of 32 dimensions, a block, a channel of the last stage
GROUP = {"heads+neurons": 4 * 16 * 32, "block:8x4": 32, "2:4": 0, "channels": 2 * 9 * 64}
ENCODER = {"round_length": "4it", "batch_size": 8, "max_length": 16, "lr": 3e-3}
RESNET = {"round_length": "3it", "batch_size": 16}
SHAPED = {
    "heads+neurons": ("bert.", {"sparsity": 0.5, "schedule": "linear:0.25"}),
    "block:8x4": ("bert.", {"sparsity": 0.6, "schedule": "linear:0.3"}),
    "2:4": ("bert.", {}),
    "channels": ("", {"sparsity": 0.4, "schedule": "linear:0.2"}),
}


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    path.write_text("text,label\n" + "".join(f"film {n} is {('dull', 'good')[n % 2]},{n % 2}\n" for n in range(60)))
    return path


@pytest.fixture(scope="module")
def settings(tiny_bert, csv):
    def of(pattern):
        fields = {"pattern": pattern, **SHAPED[pattern][1]}
        if pattern == "channels":
            return find_settings("resnet20-cifar", task="digits", protocol=fields, training=RESNET)
        return find_settings(str(tiny_bert), task="text", data=csv, protocol=fields, training=ENCODER)

    return of


def search(settings, out, **options):
    return find(settings, out, screen=Screen(quiet=True), **options)


@pytest.fixture(scope="module")
def runs(settings, tmp_path_factory):
    """A run of each pattern."""
    root = tmp_path_factory.mktemp("runs")
    for pattern in SHAPED:
        search(settings(pattern), root / pattern)
    return lambda pattern: root / pattern


def ticket(run, k):
    return Ticket.load(run / f"round-{k:02d}" / "ticket.ticket")


def a_group(pattern, found):
    """The share of the prunable weights that the largest group is."""
    return GROUP[pattern] / algebra.size(found.masks) + 1e-9


@pytest.mark.parametrize("pattern", SHAPED)
def test_every_round_is_of_the_pattern_as_sparse_as_scheduled_and_exactly_zero_where_it_is_dead(runs, pattern):
    run, prefix = runs(pattern), SHAPED[pattern][0]
    rounds = [ticket(run, k) for k in range(3)]
    assert [t.pattern for t in rounds] == [pattern] * 3
    assert [t.scheduled_sparsity for t in rounds] == [t.protocol["sparsity"] * k / 2 for k, t in enumerate(rounds)]
    for k, found in enumerate(rounds):
        weights = load_file(run / f"round-{k:02d}" / "model" / "model.safetensors")
        assert all(not weights[prefix + name][~mask].any() for name, mask in found.masks.items())
        assert found.sparsity == pytest.approx(found.scheduled_sparsity, abs=a_group(pattern, found))
    assert algebra.is_subset(rounds[2].masks, rounds[1].masks)
    summary = json.loads((run / "summary.json").read_text())
    assert [entry["sparsity"] for entry in summary["rounds"]] == [t.sparsity for t in rounds]
    assert tomllib.loads((run / "run.toml").read_text())["protocol"]["pattern"] == pattern


def test_what_dies_with_a_group_is_in_the_ticket_with_its_theta_and_in_no_count(runs):
    found = ticket(runs("heads+neurons"), 2)
    vectors = {name for name, mask in found.masks.items() if mask.ndim == 1}
    inside = ("attention.self.query", "attention.self.key", "attention.self.value", "intermediate.dense")
    assert vectors == {f"encoder.layer.{i}.{name}.bias" for i in (0, 1) for name in inside}
    assert all(name in found.theta for name in vectors) and any((~found.masks[name]).any() for name in vectors)
    matrices = [mask for name, mask in found.masks.items() if name not in vectors]
    assert found.sparsity == 1 - sum(int(m.sum()) for m in matrices) / sum(m.numel() for m in matrices)
    altered = dict(found.theta) | {"encoder.layer.1.intermediate.dense.bias": "0" * 64}
    with pytest.raises(UserError, match=r"encoder\.layer\.1\.intermediate\.dense\.bias differs"):
        found.check_theta(altered)
    channels = ticket(runs("channels"), 2)
    assert {"layer3.1.bn1.weight", "layer3.1.bn1.bias"} < channels.masks.keys()
    assert not any("running" in name or "bn2" in name for name in channels.masks)


class Killed(BaseException):
    pass


def test_a_run_that_is_killed_in_a_round_and_continued_gives_the_same_bits(settings, runs, tmp_path, monkeypatch):
    pattern = "heads+neurons"  # whose masks are of two kinds
    out, original = tmp_path / "killed", sys.modules["sparseticket.imp"].train

    def killed_in_round_1(network, task, masks, training, place, *, on_step, **rest):
        def on_step_or_die(step, total, loss):
            on_step(step, total, loss)
            if place.number == 1 and step == 2:
                raise Killed

        return original(network, task, masks, training, place, on_step=on_step_or_die, **rest)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("sparseticket.imp.train", killed_in_round_1)
        search(settings(pattern), out, checkpoint_every=0)
    assert (out / "round-01" / "checkpoint.safetensors").exists()
    search(settings(pattern), out)
    for file in ("round-02/ticket.ticket", "round-02/model/model.safetensors"):
        assert (out / file).read_bytes() == (runs(pattern) / file).read_bytes()


@pytest.mark.parametrize("pattern", ["heads+neurons", "2:4", "channels"])
def test_a_ticket_transfers_beside_random_masks_of_its_own_pattern(runs, tmp_path, pattern):
    run, prefix = runs(pattern), SHAPED[pattern][0]
    loaded, planned, _ = plan(run / "round-02" / "ticket.ticket", seeds=1, controls=("random-mask",))
    transfer(loaded, planned, tmp_path / "t", screen=Screen(quiet=True))
    sparsities = {
        arm: json.loads((tmp_path / "t" / f"{arm}-seed0" / "metrics.json").read_text())["sparsity"]
        for arm in planned.arms
    }
    assert sparsities["dense"] == 0 and sparsities["ticket"] == loaded.sparsity
    assert sparsities["random-mask"] == pytest.approx(loaded.sparsity, abs=a_group(pattern, loaded))
    drawn = load_file(tmp_path / "t" / "random-mask-seed0" / "model" / "model.safetensors")
    zeros = {name: drawn[prefix + name] != 0 for name, mask in loaded.masks.items() if mask.ndim > 1}
    assert algebra.sparsity(zeros) == pytest.approx(sparsities["random-mask"])
    if pattern == "2:4":
        assert all((mask.unflatten(1, (-1, 4)).sum(2) == 2).all() for mask in zeros.values())
    if pattern == "heads+neurons":
        for i in (0, 1):
            rows = zeros[f"encoder.layer.{i}.intermediate.dense.weight"].any(1)
            assert torch.equal(rows, zeros[f"encoder.layer.{i}.output.dense.weight"].any(0)) and rows.any()


def test_a_ticket_is_refused_by_a_network_whose_groups_are_others(runs, tmp_path):
    run = shutil.copytree(runs("heads+neurons"), tmp_path / "run")
    path, found, masks = run / "round-02" / "ticket.ticket", ticket(run, 2), {}
    for part in ("weight", "bias"):  # half a head: rows and biases still agree, so that only the network can tell
        name = f"encoder.layer.0.attention.self.query.{part}"
        masks[name] = found.masks[name].clone()
        masks[name][:8] ^= True
    replace(found, masks=found.masks | masks).save(path)
    loaded, planned, _ = plan(path, seeds=1)
    with pytest.raises(UserError, match=r"in this network: .* is not made of whole groups"):
        transfer(loaded, planned, tmp_path / "t", screen=Screen(quiet=True))
    assert not (tmp_path / "t").exists()


def test_a_recipe_with_a_pattern_runs(cli, csv, tiny_bert, tmp_path):
    recipe = tmp_path / "shaped.toml"
    recipe.write_text(
        f'title = "Shaped"\nsource = "a test"\n[find]\nmodel = "{tiny_bert}"\ntask = "text"\n'
        '[protocol]\npattern = "neurons+heads"\nsparsity = 0.4\nschedule = "one-shot"\n'
        '[training]\nround_length = "2it"\nbatch_size = 4\nmax_length = 16\n'
        '[transfer]\nseeds = 1\ncontrols = ["random-mask"]\n'
    )
    assert cli("recipes", "check", recipe)[0] == 0
    code, text = cli("run", recipe, "--data", csv, "--out", tmp_path / "run")
    assert code == 0 and "random-mask" in text
    assert ticket(tmp_path / "run", 0).pattern == "heads+neurons"
    code, text = cli("inspect", tmp_path / "run" / "round-00" / "ticket.ticket")
    assert code == 0 and "heads+neurons" in text and "of 8 biases and BatchNorms that died" in text
    assert "query.bias" not in text
