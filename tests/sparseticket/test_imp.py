import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from sparseticket import masks as algebra
from sparseticket.control_ticket import make_control
from sparseticket.errors import UserError
from sparseticket.imp import find
from sparseticket.models import Head, resolve
from sparseticket.options import find_settings
from sparseticket.progress import Screen
from sparseticket.runs import RunFolder, read_settings, settings_table
from sparseticket.theta import file_hash
from sparseticket.ticket import Ticket
from sparseticket.transfer import transfer
from sparseticket.transfer_plan import plan
from sparseticket.verdict import Arm, judge

ROOT = Path(__file__).parents[2]
WORDS = ("good", "fine", "very good"), ("bad", "dull", "not good")


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    lines = [f"the film {n} is {WORDS[n % 2][n // 2 % 3]},{('good', 'bad')[n % 2]}" for n in range(80)]
    path.write_text("text,label\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def settings(tiny_bert, csv):
    return find_settings(
        str(tiny_bert),
        task="text",
        data=csv,
        protocol={"schedule": "linear:0.3", "sparsity": 0.6},
        training={"round_length": "8it", "batch_size": 8, "max_length": 16, "lr": 3e-3},
    )


def search(settings, out):
    return find(settings, out, screen=Screen(quiet=True))


def changed(settings, **protocol):
    return replace(settings, protocol=replace(settings.protocol, **protocol))


def ticket(run, k):
    return Ticket.load(run / f"round-{k:02d}" / "ticket.ticket")


def trained(run, k):
    return load_file(run / f"round-{k:02d}" / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "a"
    search(settings, out)
    return out


def test_each_round_is_trained_at_the_scheduled_sparsity_and_masks_only_shrink(run):
    tickets = [ticket(run, k) for k in range(3)]
    assert [t.scheduled_sparsity for t in tickets] == pytest.approx([0, 0.3, 0.6])
    for found in tickets:
        assert found.sparsity == pytest.approx(found.scheduled_sparsity, abs=1 / algebra.size(found.masks))
    assert algebra.is_subset(tickets[2].masks, tickets[1].masks)


def test_a_round_prunes_the_smallest_weights_that_its_own_training_left(run):
    weights = trained(run, 1)
    before, after = ticket(run, 1).masks, ticket(run, 2).masks
    gone = torch.cat([weights[f"bert.{n}"][before[n] & ~after[n]].abs() for n in before])
    kept = torch.cat([weights[f"bert.{n}"][after[n]].abs() for n in before])
    assert gone.max() <= kept.min()


def test_what_is_trained_is_zero_exactly_where_its_ticket_is(run):
    for k in range(3):
        weights = trained(run, k)
        assert all(not weights[f"bert.{n}"][~mask].any() for n, mask in ticket(run, k).masks.items())


def test_the_pooler_is_pruned_only_by_choice(run, settings, tmp_path):
    assert not any(name.startswith("pooler") for name in ticket(run, 2).masks)
    released = changed(settings, prune_pooler=True, schedule="one-shot", sparsity=0.3)
    search(replace(released, dense=False), tmp_path / "r")
    assert "pooler.dense.weight" in ticket(tmp_path / "r", 0).masks


def test_a_run_leaves_what_it_promises(run, tiny_bert):
    summary = json.loads((run / "summary.json").read_text())
    assert summary["metric"] == "accuracy" and summary["task"] == "text" and summary["start"] is None
    assert summary["dense"] == summary["rounds"][0]["value"]
    assert [entry["round"] for entry in summary["rounds"]] == [0, 1, 2]
    assert all(0 <= entry["value"] <= 1 and entry["seconds"] > 0 for entry in summary["rounds"])
    assert (run / summary["ticket"]).is_file()
    assert all((run / f"round-{k:02d}" / "done").exists() for k in range(3))
    assert not list(run.rglob("checkpoint*")) and not list(run.rglob("*.part")) and not list(run.rglob("carry*"))
    found = ticket(run, 2)
    assert found.model == tiny_bert.name and found.task["name"] == "text" and found.metrics["rounds"][0]["round"] == 0
    assert str(run.parent) not in json.dumps(found.record()) and str(tiny_bert.parent) not in json.dumps(found.record())


def test_plain_transformers_loads_a_trained_round(run):
    model = AutoModelForSequenceClassification.from_pretrained(run / "round-02" / "model")
    weights = trained(run, 2)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items() if name in weights)


def test_a_finished_run_is_left_alone_when_it_is_run_again(run, settings, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert search(settings, run) == json.loads((run / "summary.json").read_text())
    assert find(settings, run, screen=Screen()) and "nobody looked whether its data" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


def test_what_a_kill_left_beside_a_finished_round_goes_when_the_run_is_opened_again(run, settings, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    left = [copy / "round-00" / "carry.safetensors", copy / "round-01" / "checkpoint.safetensors"]
    left += [copy / ".summary.json.abc.part", copy / "round-02" / ".metrics.json.abc.part"]
    left += [copy / "round-02" / ".model.abc.part" / "new" / "model.safetensors"]
    needed = copy / "round-01" / "carry.safetensors"
    for path in (*left, needed):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"as between a marker and what follows it")
    (copy / "round-02" / "done").unlink()
    RunFolder.open(copy, settings_table(settings))
    assert not any(path.exists() for path in left) and needed.exists()
    assert not list(copy.rglob(".*.part"))


def test_the_round_behind_a_hundred_and_ninth_is_no_eleventh(settings, tmp_path):
    RunFolder.open(tmp_path, settings_table(settings))
    for name in ("round-11", "round-109", "round-110"):
        (tmp_path / name).mkdir()
    (tmp_path / "round-11" / "done").touch()
    needed = tmp_path / "round-109" / "carry.safetensors"
    needed.touch()
    RunFolder.open(tmp_path, settings_table(settings))
    assert needed.exists()
    (tmp_path / "round-110" / "done").touch()
    RunFolder.open(tmp_path, settings_table(settings))
    assert not needed.exists()


def test_other_settings_in_the_same_folder_are_an_error_that_shows_them(run, settings):
    with pytest.raises(UserError, match=r"protocol\.sparsity: 0\.6 there, 0\.5 now"):
        search(changed(settings, sparsity=0.5), run)


def test_a_setting_that_is_newer_than_a_run_has_its_default_there(run, settings, tmp_path):
    shutil.copytree(run, tmp_path / "old")
    file = tmp_path / "old" / "run.toml"
    lines = [line for line in file.read_text().splitlines() if not line.startswith(("rewinds", "final_lr"))]
    file.write_text("\n".join(lines))
    assert search(settings, tmp_path / "old")["rounds"]
    with pytest.raises(UserError, match=r"protocol\.rewinds: 'backbone' there, 'pruned' now"):
        search(changed(settings, rewinds="pruned"), tmp_path / "old")


def test_run_toml_is_everything_needed_to_run_it_again(run, settings, tmp_path):
    again = read_settings(run / "run.toml")
    assert again == settings
    search(again, tmp_path / "again")
    assert ticket(tmp_path / "again", 2).identity == ticket(run, 2).identity


def test_another_seed_gives_another_ticket(run, settings, tmp_path):
    search(replace(settings, seed=1), tmp_path / "b")
    assert algebra.overlap(ticket(tmp_path / "b", 2).masks, ticket(run, 2).masks).iou < 0.999


def test_weights_go_back_to_theta_p_and_a_fresh_head_to_its_first_draw(run, settings, tmp_path, monkeypatch):
    seen = {}
    original = sys.modules["sparseticket.imp"].train

    def spy(network, task, masks, training, place, **kwargs):
        seen[place.number] = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
        return original(network, task, masks, training, place, **kwargs)

    monkeypatch.setattr("sparseticket.imp.train", spy)
    search(settings, tmp_path / "b")
    assert all(torch.equal(seen[0][name], seen[k][name]) for k in (1, 2) for name in seen[0])
    search(changed(settings, head="keep"), tmp_path / "c")
    head = {name for name in seen[0] if not name.startswith("bert.")}
    after_first = trained(tmp_path / "c", 0)
    assert all(torch.equal(seen[1][name], after_first[name]) for name in head)
    assert all(torch.equal(seen[1][name], seen[0][name]) for name in seen[0] if name not in head)
    search(changed(settings, rewind="none"), tmp_path / "d")
    after_first = trained(tmp_path / "d", 0)
    assert all(torch.equal(seen[1][name], after_first[name]) for name in seen[0] if name not in head)


@pytest.fixture
def beginnings(monkeypatch):
    """The network and the optimizer's state that each round's training is given, before anything is masked."""
    seen, original = {}, sys.modules["sparseticket.imp"].train

    def spy(network, task, masks, training, place, **kwargs):
        state = place.optimizer_state and {name: tensor.clone() for name, tensor in place.optimizer_state.items()}
        seen[place.number, "start"] = place.start
        seen[place.number] = {name: t.clone() for name, t in network.module.state_dict().items()}, state
        trained = original(network, task, masks, training, place, **kwargs)
        seen[place.number, "end"] = {name: tensor.clone() for name, tensor in trained.optimizer_state.items()}
        return trained

    monkeypatch.setattr("sparseticket.imp.train", spy)
    return seen


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("protocol", ["paper", "released"])
def test_an_mlm_run_rewinds_everything_as_the_paper_says_and_nothing_at_all_as_released(
    tiny_folders, tmp_path, beginnings, protocol
):
    (tmp_path / "corpus.txt").write_text("the film is good and the plot is fine .\n" * 60)
    mlm = find_settings(
        str(tiny_folders["bert-mlm"]),
        task="mlm",
        protocol_name=protocol,
        data=tmp_path / "corpus.txt",
        dense=False,
        protocol={"schedule": "linear:0.2", "sparsity": 0.4},
        training={"round_length": "3it", "batch_size": 4, "max_length": 16, "lr": 3e-3},
    )
    search(mlm, tmp_path / "run")
    rounds = [k for k in beginnings if isinstance(k, int)]
    assert rounds == ([0, 1, 2] if protocol == "paper" else [0, 1])  # as released the first 20 % go before training
    theta_p = beginnings[0][0]
    for k in rounds[1:]:
        begun, optimizer_state = beginnings[k]
        before = trained(tmp_path / "run", k - 1)
        assert optimizer_state is None
        assert all(torch.equal(begun[name], before[name]) for name in before) is (protocol == "released")
        assert equal(begun, theta_p) is (protocol == "paper")


def test_an_optimizer_that_is_kept_begins_a_round_as_it_ended_the_one_before(settings, tmp_path, beginnings):
    search(changed(settings, optimizer_state="keep"), tmp_path / "kept")
    for k in (1, 2):
        assert equal(beginnings[k][1], beginnings[k - 1, "end"]) and equal(beginnings[k][0], beginnings[0][0])


def test_after_rewinding_to_a_step_weights_and_head_are_those_kept_there_bit_for_bit(settings, tmp_path, beginnings):
    search(changed(settings, rewind="25%"), tmp_path / "late")
    kept = {f"bert.{name}": t for name, t in load_file(tmp_path / "late" / "theta.safetensors").items()}
    kept |= load_file(tmp_path / "late" / "gamma.safetensors")
    assert equal(beginnings[1][0], kept) and equal(beginnings[2][0], kept) and not equal(beginnings[0][0], kept)
    assert [beginnings[k, "start"] for k in range(3)] == [0, 2, 2]  # of 8 steps


def test_where_pruned_weights_alone_are_rewound_the_rest_of_the_backbone_keeps_its_training(
    settings, tmp_path, beginnings
):
    search(changed(settings, rewinds="pruned"), tmp_path / "b")
    first, second = (beginnings[k][0] for k in (0, 1))
    pruned = {f"bert.{name}" for name in ticket(tmp_path / "b", 0).masks}
    after_first = trained(tmp_path / "b", 0)
    kept = {name for name in first if name.startswith("bert.") and name not in pruned}
    assert all(torch.equal(second[name], after_first[name]) for name in kept)
    assert all(torch.equal(second[name], first[name]) for name in first if name not in kept)
    assert any(not torch.equal(after_first[name], first[name]) for name in kept)


def test_rewinding_to_a_step_goes_back_to_the_state_kept_there(settings, tmp_path):
    out = tmp_path / "late"
    search(changed(settings, rewind="25%"), out)  # step 2 of 8
    theta = load_file(out / "theta.safetensors")
    assert ticket(out, 1).theta_file == file_hash(out / "theta.safetensors") and ticket(out, 0).theta_file is None
    short = replace(settings, training=replace(settings.training, round_length="8it", decay="constant"))
    search(changed(short, rewind="25%"), tmp_path / "constant")
    two = replace(short, training=replace(short.training, round_length="2it"))
    search(two, tmp_path / "two")  # where nothing decays, θ after two steps is the end of a run of two steps
    theta, end = load_file(tmp_path / "constant" / "theta.safetensors"), trained(tmp_path / "two", 0)
    assert all(torch.equal(tensor, end[f"bert.{name}"]) for name, tensor in theta.items() if f"bert.{name}" in end)


def test_a_ticket_rewound_to_a_step_trains_from_there_and_dense_from_theta_p(settings, tmp_path, monkeypatch):
    out = tmp_path / "late"
    search(changed(settings, rewind="25%"), out)
    seen = []
    original = sys.modules["sparseticket.transfer"].train

    def spy(network, task, masks, training, place, **kwargs):
        seen.append((place.start, network.backbone()["encoder.layer.0.output.dense.weight"].detach().clone()))
        return original(network, task, masks, training, place, **kwargs)

    monkeypatch.setattr("sparseticket.transfer.train", spy)
    loaded, planned, beside = plan(out / "round-01" / "ticket.ticket", seeds=1)
    transfer(loaded, planned, beside, screen=Screen(quiet=True))
    theta = load_file(out / "theta.safetensors")["encoder.layer.0.output.dense.weight"]
    (dense_start, dense), (ticket_start, late) = seen
    assert (dense_start, ticket_start) == (0, 2)
    assert torch.equal(late, theta) and not torch.equal(dense, theta)


def test_away_from_its_run_a_late_tickets_dense_networks_begin_at_its_runs_theta_p_or_nowhere(tmp_path, monkeypatch):
    """Without a check they began at random weights, and the ticket, at 47 %, matched dense networks of 28 %, not 93."""
    file = tmp_path / "theta_p.safetensors"
    network = resolve("resnet20-cifar").build(Head("image-classification", 10), seed=7)
    save_file({name: tensor.detach().clone() for name, tensor in network.module.state_dict().items()}, file)
    training = {"round_length": "4it", "batch_size": 16}
    protocol = {"schedule": "one-round", "sparsity": 0.5, "rewind": "2it"}
    search(
        find_settings("resnet20-cifar", task="digits", weights=file, protocol=protocol, training=training),
        tmp_path / "run",
    )
    found = ticket(tmp_path / "run", 1)
    assert found.theta_p == ticket(tmp_path / "run", 0).theta != found.theta
    away = tmp_path / "away"
    away.mkdir()
    for path in (tmp_path / "run" / "round-01" / "ticket.ticket", tmp_path / "run" / "theta.safetensors"):
        shutil.copy(path, away / path.name)

    begun, heads, original = [], [], sys.modules["sparseticket.transfer"].train

    def spy(network, *arguments, **kwargs):
        begun.append(network.backbone()["layer1.0.conv1.weight"].detach().clone())
        heads.append(network.module.linear.weight.detach().clone())
        return original(network, *arguments, **kwargs)

    monkeypatch.setattr("sparseticket.transfer.train", spy)
    for out, more in (("nothing", {}), ("late", {"weights": tmp_path / "run" / "theta.safetensors"})):
        loaded, planned, _ = plan(away / "ticket.ticket", seeds=1, **more)
        with pytest.raises(UserError, match="that its run began with, and these are others: conv1"):
            transfer(loaded, planned, tmp_path / out, screen=Screen(quiet=True))
        assert not (tmp_path / out).exists() and not begun
    loaded, planned, _ = plan(away / "ticket.ticket", seeds=1, weights=file)
    transfer(loaded, planned, tmp_path / "t", screen=Screen(quiet=True))
    late = load_file(away / "theta.safetensors")
    assert torch.equal(begun[0], network.backbone()["layer1.0.conv1.weight"])
    assert all(torch.equal(head, network.module.linear.weight) for head in heads), "both share the head of θ_p's file"
    assert torch.equal(begun[1], late["layer1.0.conv1.weight"]) and not torch.equal(*begun)
    with pytest.raises(UserError, match="there is no file"):
        plan(away / "ticket.ticket", seeds=1, weights=tmp_path / "none.safetensors")
    before = tmp_path / "run" / "round-01" / "before.ticket"
    for path in (away / "ticket.ticket", before):
        replace(loaded, theta_p=None).save(path)  # as an earlier version wrote it
    with pytest.raises(UserError, match="does not say which weights dense networks"):
        plan(away / "ticket.ticket", seeds=1)
    assert plan(away / "ticket.ticket", seeds=1, allow_other_weights=True)[1].dense_weights == ""
    assert plan(before, seeds=1)[1].dense_weights == str(file), "its run knows"
    made = make_control(before, "random-weights", tmp_path / "run" / "controls" / "c.ticket", seed=0, weights=None)
    assert made.theta_p is None and made.theta != found.theta
    stranger = tmp_path / "stranger.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, stranger)
    _, planned, _ = plan(before, seeds=1, weights=stranger)
    assert planned.weights == str(stranger), "the ticket's own, which is refused when it is trained"


def test_a_run_that_continues_with_other_data_or_weights_is_refused(settings, tmp_path, csv):
    data = tmp_path / "mine.csv"
    data.write_text(csv.read_text())
    mine = replace(settings, data=str(data))
    search(mine, tmp_path / "run")
    for path in (tmp_path / "run" / "summary.json", tmp_path / "run" / "round-02" / "done"):
        path.unlink()  # as if it had been killed in its last round
    data.write_text(csv.read_text().replace("film", "book"))
    with pytest.raises(UserError, match="begun with other data"):
        search(mine, tmp_path / "run")


def test_one_shot_ranks_theta_p_itself_and_trains_a_dense_network_for_reference(settings, tmp_path, tiny_bert):
    summary = search(changed(settings, schedule="one-shot", sparsity=0.5), tmp_path / "shot")
    assert (
        len(summary["rounds"]) == 1 and summary["dense"] is not None and (tmp_path / "shot" / "dense" / "done").exists()
    )
    from sparseticket.models import Head

    network = resolve(str(tiny_bert)).build(Head("sequence-classification", 2), seed=0)
    masks = ticket(tmp_path / "shot", 0).masks
    scores = {name: network.backbone()[name].detach().abs() for name in masks}
    assert max(scores[n][~m].max() for n, m in masks.items()) <= min(scores[n][m].min() for n, m in masks.items())
    alone = search(replace(changed(settings, schedule="one-shot", sparsity=0.5), dense=False), tmp_path / "alone")
    assert alone["dense"] is None and alone["rounds"][0]["value"] == summary["rounds"][0]["value"]


def test_one_schedule_over_all_rounds_trains_otherwise_than_one_a_round(run, settings, tmp_path, monkeypatch):
    released = replace(settings, protocol=replace(settings.protocol, name="released", lr_schedule="keep",
                                                  optimizer_state="keep", head="keep"))  # fmt: skip
    places = []
    original = sys.modules["sparseticket.imp"].train

    def spy(network, task, masks, training, place, **kwargs):
        places.append((place.schedule_offset, place.schedule_rounds, place.optimizer_state is not None))
        return original(network, task, masks, training, place, **kwargs)

    monkeypatch.setattr("sparseticket.imp.train", spy)
    search(released, tmp_path / "released")
    assert places == [(0, 3, False), (8, 3, True), (16, 3, True)]
    ten = replace(released.protocol, schedule="linear:0.1", sparsity=0.6)
    assert ten.rounds_in_all() == 10  # as released: 2e-5 to 1.8e-5 in a round, whatever the target
    assert algebra.overlap(ticket(tmp_path / "released", 2).masks, ticket(run, 2).masks).iou < 0.999
    assert tomllib.loads((tmp_path / "released" / "run.toml").read_text())["protocol"]["lr_schedule"] == "keep"


def command(settings, out, every="0.05"):
    t, p = settings.training, settings.protocol
    return [
        *(sys.executable, "-c", "from sparseticket.cli import main; main()", "find", "--out", str(out)),
        *("--model", settings.model, "--task", settings.task, "--data", settings.data, "--schedule", p.schedule),
        *("--sparsity", str(p.sparsity), "--round-length", t.round_length, "--batch-size", str(t.batch_size)),
        *("--max-length", str(t.max_length), "--lr", str(t.lr), "--checkpoint-every", every),
    ]


def test_a_run_that_is_killed_and_continued_gives_the_same_ticket(settings, tmp_path):
    longer = replace(settings, training=replace(settings.training, round_length="60it"))
    search(longer, tmp_path / "whole")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    out, kills, draw = tmp_path / "killed", 0, random.Random(0)
    while kills < 3:
        process = subprocess.Popen(command(longer, out), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        steps = count(out)
        wanted = steps + draw.randint(2, 12)
        while process.poll() is None and count(out) < wanted and time.monotonic() < deadline:
            time.sleep(0.005)
        assert process.poll() is None, process.stderr.read().decode()[-2000:]
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    search(longer, out)
    assert ticket(out, 2).identity == ticket(tmp_path / "whole", 2).identity
    assert (out / "round-02" / "ticket.ticket").read_bytes() == (
        tmp_path / "whole" / "round-02" / "ticket.ticket"
    ).read_bytes()
    killed, whole = trained(out, 2), trained(tmp_path / "whole", 2)
    assert all(torch.equal(killed[name], whole[name]) for name in whole)


def count(out):
    log = out / "log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_a_transfer_trains_every_arm_with_shared_seeds_and_gives_a_verdict(run, tmp_path):
    loaded, settings, beside = plan(run / "round-01" / "ticket.ticket", seeds=3, controls=("random-mask",))
    assert beside.parent == run and settings.data and settings.training.lr == 3e-3
    result = transfer(loaded, settings, beside, screen=Screen(quiet=True))
    assert result == json.loads((beside / "transfer.json").read_text())
    assert set(result["arms"]) == {"dense", "ticket", "random-mask"}
    assert all(arm["n"] == 3 and len(arm["values"]) == 3 for arm in result["arms"].values())
    said = judge(*(Arm(result["arms"][arm]["values"]) for arm in ("ticket", "dense")), at_theta_p=True)
    assert {key: result[key] for key in said.table()} == said.table()
    # the dense arm of seed 0 is round 0 of the run: same head, same order, same dropout
    assert result["arms"]["dense"]["values"][0] == json.loads((run / "summary.json").read_text())["dense"]
    weights = load_file(beside / "ticket-seed0" / "model" / "model.safetensors")
    assert all(not weights[f"bert.{n}"][~mask].any() for n, mask in loaded.masks.items())
    sparsities = {
        arm: json.loads((beside / f"{arm}-seed1" / "metrics.json").read_text())["sparsity"] for arm in result["arms"]
    }
    assert sparsities["dense"] == 0 and sparsities["ticket"] == sparsities["random-mask"] == loaded.sparsity


def test_a_transfer_of_two_seeds_gives_no_verdict_but_the_reason(run, tmp_path):
    loaded, settings, _ = plan(run / "round-01" / "ticket.ticket", seeds=2)
    result = transfer(loaded, settings, tmp_path / "t", screen=Screen(quiet=True))
    assert result["matching"] is None and result["strict"] is None and "too few" in result["reason"]


def test_a_ticket_moves_to_a_task_whose_network_has_no_pooler(run, settings, tmp_path):
    text = tmp_path / "corpus.txt"
    text.write_text("the film is good and the plot is fine .\n" * 60)
    loaded, planned, _ = plan(
        run / "round-01" / "ticket.ticket",
        task="mlm",
        data=text,
        seeds=1,
        training={"round_length": "2it", "batch_size": 4, "max_length": 16},
    )
    assert planned.training.lr == 5e-5  # the recipe's, on another task
    assert transfer(loaded, planned, tmp_path / "t", screen=Screen(quiet=True))["metric"] == "masked_accuracy"


def test_a_random_backbone_is_kept_in_a_file_that_the_ticket_names(tmp_path):
    digits = find_settings(
        "resnet20-cifar",
        task="digits",
        protocol={"schedule": "one-round", "sparsity": 0.5},
        training={"round_length": "2it", "batch_size": 16},
    )
    search(digits, tmp_path / "run")
    found = ticket(tmp_path / "run", 1)
    assert found.theta_file == file_hash(tmp_path / "run" / "theta.safetensors")
    loaded, planned, _ = plan(tmp_path / "run" / "round-01" / "ticket.ticket", seeds=1)
    assert transfer(loaded, planned, tmp_path / "t", screen=Screen(quiet=True))["arms"]["ticket"]["n"] == 1


def test_a_ticket_of_random_weights_matches_and_is_not_called_winning(tmp_path, monkeypatch):
    digits = find_settings(
        "resnet20-cifar",
        task="digits",
        protocol={"schedule": "one-round", "sparsity": 0.5},
        training={"round_length": "1it", "batch_size": 16},
    )
    search(digits, tmp_path / "run")
    better = itertools.count()  # each arm than the ones before it, of which dense is the first
    transfers = sys.modules["sparseticket.transfer"]
    monkeypatch.setattr(transfers.Workbench, "evaluate", lambda work: {work.task.metric: 0.5 + 0.001 * next(better)})
    loaded, planned, _ = plan(tmp_path / "run" / "round-01" / "ticket.ticket", seeds=3)
    verdict = transfer(loaded, planned, tmp_path / "t", screen=Screen(quiet=True))["verdicts"]["ticket"]
    assert (verdict["matching"], verdict["strict"], verdict["winning"]) == (True, True, False)


def test_a_trained_network_knows_the_names_of_a_users_labels(run):
    config = json.loads((run / "round-02" / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"}
