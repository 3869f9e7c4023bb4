import json
import shutil
from dataclasses import replace

import pytest

from sparseticket.errors import RunFailure, UserError
from sparseticket.imp import find
from sparseticket.options import find_settings
from sparseticket.progress import Screen

WORDS = ("good", "fine", "very good"), ("bad", "dull", "not good")


@pytest.fixture(scope="module")
def settings(tiny_bert, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    lines = [f"the film {n} is {WORDS[n % 2][n // 2 % 3]},{('good', 'bad')[n % 2]}" for n in range(60)]
    path.write_text("text,label\n" + "\n".join(lines) + "\n")
    return find_settings(
        str(tiny_bert),
        task="text",
        data=path,
        protocol={"schedule": "steps:0.3,0.5", "sparsity": 0.5},
        training={"round_length": "6it", "batch_size": 8, "max_length": 16, "lr": 3e-3},
    )


def search(settings, out, **options):
    return find(settings, out, screen=Screen(quiet=True), **options)


def other_schedule(settings, **protocol):
    return replace(settings, protocol=replace(settings.protocol, schedule="linear:0.4", sparsity=0.4, **protocol))


@pytest.fixture(scope="module")
def first(settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "first"
    search(settings, out)
    return out


@pytest.mark.parametrize("pattern", ["unstructured", "heads+neurons"])
def test_a_run_with_a_dense_round_taken_finds_what_it_finds_alone(first, settings, tmp_path, pattern):
    wanted = other_schedule(settings, pattern=pattern)
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    a, b = search(wanted, alone), search(wanted, shared, dense_from=first)
    assert [entry["value"] for entry in a["rounds"]] == [entry["value"] for entry in b["rounds"]]
    for file in (
        "round-00/ticket.ticket",
        "round-01/ticket.ticket",
        *(f"round-0{k}/model/model.safetensors" for k in (0, 1)),
    ):
        assert (alone / file).read_bytes() == (shared / file).read_bytes(), file
    log = [json.loads(line) for line in (shared / "log.jsonl").read_text().splitlines()]
    assert {entry["part"] for entry in log} == {"round-01"}  # round 0 was not trained


def test_it_is_taken_once_and_the_run_goes_on_without_the_other(first, settings, tmp_path):
    other = shutil.copytree(first, tmp_path / "other")
    search(other_schedule(settings), tmp_path / "run", dense_from=other)
    shutil.rmtree(other)
    for file in ("summary.json", "round-01/done"):
        (tmp_path / "run" / file).unlink()
    continued = search(other_schedule(settings), tmp_path / "run", dense_from=other)  # the same command
    assert continued["rounds"][-1]["sparsity"] == pytest.approx(0.4, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "other settings than this run has .seed is 0 there, 1 here., and they may differ in pattern"),
        ({"protocol": {"head": "keep"}}, "protocol.head is 'rewind' there, 'keep' here"),
        ({"protocol": {"prune_first": True}}, "other settings"),
    ],
)
def test_a_run_that_trains_otherwise_is_refused_before_anything_is_written(first, settings, tmp_path, change, words):
    wanted = other_schedule(settings, **change.pop("protocol", {}))
    with pytest.raises(UserError, match=words):
        search(replace(wanted, **change), tmp_path / "run", dense_from=first)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("carries", [{"head": "keep"}, {"rewinds": "pruned"}])
def test_protocols_that_carry_more_than_the_network_over_a_pruning_are_refused(settings, tmp_path, carries):
    keeps = other_schedule(settings, **carries)
    search(keeps, tmp_path / "first")
    with pytest.raises(UserError, match="rewinds backbone, head rewind"):
        search(keeps, tmp_path / "run", dense_from=tmp_path / "first")


def test_an_unfinished_or_changed_dense_round_is_refused(first, settings, tmp_path):
    unfinished, changed = (shutil.copytree(first, tmp_path / name) for name in ("unfinished", "changed"))
    (unfinished / "round-00" / "done").unlink()
    with pytest.raises(UserError, match="not finished"):
        search(other_schedule(settings), tmp_path / "run", dense_from=unfinished)
    metrics = changed / "round-00" / "metrics.json"
    metrics.write_text(metrics.read_text().replace('"accuracy": 0.', '"accuracy": 0.01'))
    with pytest.raises(RunFailure, match="recorded beside it"):
        search(other_schedule(settings), tmp_path / "run", dense_from=changed)
