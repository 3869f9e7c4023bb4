"""The transfer matrix: cells are transfers, nothing is trained twice, and both readings are what they say."""

import itertools
import json
import shutil
import tomllib
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from sparseticket import transfer as transfers
from sparseticket.data_places import data_of, places
from sparseticket.errors import UserError
from sparseticket.heat_map import draw
from sparseticket.imp import find
from sparseticket.matrix import Asked, _say_whose_settings, summarise
from sparseticket.models import Head, resolve
from sparseticket.options import find_settings
from sparseticket.progress import Screen
from sparseticket.show import dense_of
from sparseticket.ticket import Ticket

SHORT = {"round_length": "2it", "batch_size": 8, "max_length": 16}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    lines = [f"the film {n} is {('good', 'bad')[n % 2]},{('good', 'bad')[n % 2]}" for n in range(40)]
    (folder / "text.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    (folder / "mlm").mkdir()
    for name in ("train.txt", "test.txt"):
        (folder / "mlm" / name).write_text("the film is good and the plot is fine .\n" * 40)
    return folder


@pytest.fixture(scope="module")
def sources(tiny_bert, data, tmp_path_factory):
    found = []
    for task, place in (("text", data / "text.csv"), ("mlm", data / "mlm")):
        run = tmp_path_factory.mktemp("run") / task
        protocol = {"schedule": "one-round", "sparsity": 0.5}
        settings = find_settings(str(tiny_bert), task=task, data=place, protocol=protocol, training=SHORT)
        find(settings, run, screen=Screen(quiet=True))
        found.append(run / "round-01" / "ticket.ticket")
    return found


YES = {"matching": True, "strict": True, "reason": None, "winning": True}
SAME = {arm: {"values": [0.5] * 3, "mean": 0.5, "std": 0.0, "n": 3} for arm in ("dense", "ticket")}


def test_a_matrix_trains_each_cell_once_and_dense_once_a_column_and_reads_both_ways(
    cli, sources, data, tmp_path, monkeypatch
):
    trained, original = [], transfers.train

    def spy(network, task, *arguments, **options):
        trained.append(task.name)
        return original(network, task, *arguments, **options)

    monkeypatch.setattr(transfers, "train", spy)
    out = tmp_path / "matrix"
    small = ["matrix", sources[0], "--task", "text", "--seeds", 1, "--out", out]
    code, text = cli(*small)
    assert code == 0 and "no verdicts: 1 run is too few" in text, text
    assert trained == ["text", "text"]  # dense, ticket; with the data of the run that the ticket was found in
    whole = ["matrix", *sources, "--task", "text", "--task", "mlm", "--seeds", 1, "--out", out]
    code, text = cli(*whole)
    assert code == 0, text
    assert sorted(trained[2:]) == ["mlm", "mlm", "mlm", "text"]  # the other ticket's cells, and dense of the new column
    result = json.loads((out / "matrix.json").read_text())
    assert (out / "matrix.png").read_bytes().startswith(b"\x89PNG")
    assert list(result["cells"]) == ["text", "mlm"] and result["targets"]["mlm"]["same_task"] == "mlm"
    for source in ("text", "mlm"):
        for task in ("text", "mlm"):
            cell, own = result["cells"][source][task], result["cells"][task][task]
            done = json.loads((out / cell["folder"] / "transfer.json").read_text())
            value = done["arms"]["ticket"]["mean"]
            assert cell["to_dense"] == value - dense_of(result)["dense"][task]["mean"]
            assert cell["to_same_task"] == value - own["arms"]["ticket"]["mean"]
            assert cell["at_least_same_task"] is (cell["to_same_task"] >= 0)
    assert result["over_tasks"]["text"]["undecided"] == ["text", "mlm"]

    before = len(trained)
    assert cli(*whole)[0] == 0 and len(trained) == before
    fewer = {
        "the row mlm, the column mlm": small,
        "the row mlm": [*whole[:2], *whole[3:]],
        "the column mlm": [*whole[:3], *small[2:]],
    }
    for lost, command in fewer.items():
        code, text = cli(*command)
        assert code == 2 and f"has {lost}, which the new one would not have" in text, text
    assert json.loads((out / "matrix.json").read_text()) == result
    # one more seed trains that seed only
    assert cli(*whole, "--seeds", 2)[0] == 0 and sorted(trained[before:]) == ["mlm"] * 3 + ["text"] * 3
    code, text = cli(*whole)
    assert code == 2 and "has 2 seeds, which the new one" in text


def test_all_cells_of_a_column_are_trained_as_the_ticket_of_that_task_was(cli, sources, tmp_path):
    out = tmp_path / "matrix"
    assert cli("matrix", *sources, "--task", "text", "--seeds", 1, "--out", out)[0] == 0
    result = json.loads((out / "matrix.json").read_text())
    settings = {(out / row["text"]["folder"] / "transfer.toml").read_text() for row in result["cells"].values()}
    assert len(settings) == 2 and all('round_length = "2it"' in text for text in settings)  # the recipe says 3ep


def test_of_two_tickets_of_a_task_it_is_said_which_decides_how_its_column_is_trained(tmp_path, capsys):
    tickets = {
        name: Ticket({}, "m", {}, 0.5, task={"name": "text"}, training={"lr": lr})
        for name, lr in (("a", 1e-3), ("b", 2e-5), ("c", 1e-3))
    }
    for names, said in ((["a", "b"], True), (["a", "c"], False)):
        asked = Asked({name: tmp_path for name in names}, ["text", "mlm"])
        _say_whose_settings({name: tickets[name] for name in names}, asked, Screen())
        shown = "tickets of text were trained differently: its column is trained as a was" in capsys.readouterr().out
        assert shown == said


def test_a_column_whose_only_ticket_is_a_control_is_trained_as_that_was_found(cli, sources, tmp_path):
    control = sources[0].parent.parent / "controls" / "column.ticket"
    assert cli("control", sources[0], "--kind", "random-mask", "--out", control)[0] == 0
    out = tmp_path / "matrix"
    assert cli("matrix", control, sources[1], "--task", "text", "--seeds", 1, "--out", out)[0] == 0
    result = json.loads((out / "matrix.json").read_text())
    assert result["targets"]["text"]["same_task"] is None
    written = [
        tomllib.loads((out / row["text"]["folder"] / "transfer.toml").read_text()) for row in result["cells"].values()
    ]
    assert written[0]["training"] == written[1]["training"] and written[0]["training"]["round_length"] == "2it"
    assert written[0]["data"] == written[1]["data"] != ""


def test_pre_trained_weights_in_a_file_are_where_tickets_and_dense_begin(cli, tmp_path, monkeypatch):
    file = tmp_path / "theta_p.safetensors"
    network = resolve("resnet20-cifar").build(Head("image-classification", 10), seed=7)
    save_file({name: tensor.detach().clone() for name, tensor in network.module.state_dict().items()}, file)
    short = {"round_length": "2it", "batch_size": 16}
    settings = find_settings(
        "resnet20-cifar",
        task="digits",
        weights=file,
        protocol={"schedule": "one-round", "sparsity": 0.5},
        training=short,
    )
    find(settings, tmp_path / "run", screen=Screen(quiet=True))
    guess = tmp_path / "run" / "guess" / "random.ticket"
    assert cli("control", tmp_path / "run/round-01/ticket.ticket", "--kind", "random-weights", "--out", guess)[0] == 0
    away = tmp_path / "away"  # without their run: nothing says where the file is
    (away / "guess").mkdir(parents=True)
    shutil.copy(tmp_path / "run/round-01/ticket.ticket", away / "found.ticket")
    for name in ("random.ticket", "theta.safetensors"):
        shutil.copy(guess.with_name(name), away / "guess" / name)

    begun, original = [], transfers.train

    def spy(network, *arguments, **options):
        begun.append(network.backbone()["layer1.0.conv1.weight"].detach().clone())
        return original(network, *arguments, **options)

    monkeypatch.setattr(transfers, "train", spy)
    rows = [away / "found.ticket", away / "guess" / "random.ticket"]
    asked = ["matrix", *rows, "--task", "digits", "--seeds", 1, "--round-length", "2it", "--out", tmp_path / "matrix"]
    code, text = cli(*asked)
    assert code == 2 and "other weights" in text, text
    code, text = cli(*asked, "--weights", file)
    assert code == 0, text
    theta_p = network.backbone()["layer1.0.conv1.weight"]
    assert [torch.equal(weight, theta_p) for weight in begun] == [True, True, False]  # dense, ticket, random weights
    code, text = cli(*asked, "--weights", tmp_path / "none.safetensors")
    assert code == 2 and "there is no file" in text


def test_a_matrix_that_cannot_be_is_refused_before_any_training(cli, sources, tmp_path):
    other, twin = tmp_path / "other.ticket", tmp_path / "twin.ticket"
    ticket = Ticket.load(sources[0])
    ticket.save(twin)
    Ticket(ticket.masks, "another", {}, 0.5, task=ticket.task).save(other)
    for arguments, says in (
        ([sources[0], other, "--task", "text"], "are of one model"),
        ([sources[0], sources[1], sources[0], "--task", "text"], "are the same ticket: name each row once"),
        ([sources[0], twin, "--task", "text"], "twin.ticket are the same ticket"),
        ([sources[0], "--task", "text", "--task", "text"], "given twice"),
        ([sources[0], "--task", "text", "--task", "mlm", "--data", tmp_path], "--data text=PATH"),
        ([sources[0], "--task", "text", "--data", "a", "--data", "b"], "twice without a name"),
        ([sources[0], "--task", "text", "--control", "none"], "there is no control"),
        ([sources[0], "--task", "text", "--data", "txet=a"], "'txet' is no column of this matrix. Its columns: text."),
        ([sources[0], "--task", "text", "--data", "text=a", "--data", "text=b"], "text has the place a already"),
        ([sources[0], "--task", "text", "--data", "text="], "--data text=: say both what it is for and where it is"),
        ([sources[0], "--task", "text", "--data", "=a"], "--data =a: say both"),
        ([sources[0], "--task", "digits", "--max-length", "16"], "--max-length is for tasks on texts"),
        ([sources[0], "--task", "text", "--data", ""], "--data is empty"),
    ):
        code, text = cli("matrix", *arguments, "--out", tmp_path / "m")
        assert code == 2 and says in text, text
    assert not (tmp_path / "m").exists()


def test_a_tasks_data_are_found_in_the_folder_that_it_is_published_in(tmp_path):
    (tmp_path / "glue" / "SST-2").mkdir(parents=True)
    assert data_of("sst2", tmp_path, alone=False) == tmp_path / "glue" / "SST-2"
    assert data_of("sst2", tmp_path / "glue", alone=False) == tmp_path / "glue" / "SST-2"
    assert data_of("cola", tmp_path, alone=True) == tmp_path and data_of("cola", None, alone=False) is None
    with pytest.raises(UserError, match="put its data there as CoLA"):
        data_of("cola", tmp_path, alone=False)
    assert places(["all", "sst2=here"])[1].keys() == {"sst2"}


def test_a_ticket_can_be_winning_and_universal_and_a_control_never(cli, sources, data, tmp_path, monkeypatch):
    better = itertools.count()  # each arm than the ones before it, of which dense is the first: all match, strictly
    monkeypatch.setattr(transfers.Workbench, "evaluate", lambda work: {work.task.metric: 0.5 + 0.001 * next(better)})
    made = sources[0].parent.parent / "controls" / "a.ticket"
    assert cli("control", sources[0], "--kind", "random-mask", "--out", made)[0] == 0
    whole = ["matrix", *sources, made, "--task", "text", "--task", "mlm", "--seeds", 3, "--out", tmp_path / "matrix"]
    code, text = cli(
        *whole, "--data", f"text={data / 'text.csv'}", "--data", f"mlm={data / 'mlm'}", "--round-length", "1it"
    )
    assert code == 0, text
    result = json.loads((tmp_path / "matrix" / "matrix.json").read_text())
    of_text, of_mlm, control = result["cells"]
    winning = {name: {cell["verdict"]["winning"] for cell in row.values()} for name, row in result["cells"].items()}
    assert winning == {of_text: {True}, of_mlm: {True}, control: {None}}
    over = result["over_tasks"]
    assert [over[name]["universal"] for name in (of_text, of_mlm, control)] == [True, True, None]
    assert "control" in over[control]["reason"]
    assert f"{of_text}: matching on 2 of 2 tasks (text, mlm), universal over them" in " ".join(text.split())
    assert text.count("universal") == 2


def test_the_heat_map_shows_the_same_task_reading_left_and_the_dense_one_right(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    drawn = []
    monkeypatch.setattr(plt, "close", lambda figure: drawn.append(figure))
    cell = {"to_same_task": -0.0123, "to_dense": 0.0456, "at_least_same_task": False, "verdict": {"matching": True}}
    result = {"model": "m", "tasks": ["a"], "sources": {"s": {"sparsity": 0.5}}, "cells": {"s": {"a": cell}}}
    draw(result, tmp_path / "matrix.png")
    shown = [(text.get_text(), text.get_weight()) for panel in drawn[0].axes[:2] for text in panel.texts]
    assert shown == [("-1.23", "normal"), ("+4.56", "bold")]


def test_a_ticket_of_an_mlm_head_that_was_not_pre_trained_is_never_universal(sources):
    from_text, from_mlm = (Ticket.load(path) for path in sources)
    assert from_mlm.task["head"] == "pre-trained" and from_text.task["head"] == "fresh"
    cells = {"a": {"verdicts": {"ticket": YES}, "arms": SAME}, "b": {"verdicts": {"ticket": YES}, "arms": SAME}}
    cells = {task: {**cell, "folder": "f", "sparsity": 0.5, "metric": "accuracy"} for task, cell in cells.items()}
    fresh = replace(from_mlm, task=from_mlm.task | {"head": "fresh"})
    tickets = {"text": from_text, "mlm": from_mlm, "fresh": fresh}
    over = summarise(tickets, ["a", "b"], dict.fromkeys(tickets, cells))["over_tasks"]
    assert [row["universal"] for row in over.values()] == [True, True, None]
    assert over["fresh"]["reason"] == "it was found under an MLM head that was not pre-trained"


def test_runs_on_data_that_changed_are_not_put_beside_those_on_what_they_were(cli, sources, data, tmp_path):
    mine, out = tmp_path / "text.csv", tmp_path / "matrix"
    mine.write_text((data / "text.csv").read_text())
    asked = ["matrix", sources[0], "--task", "text", "--data", f"text={mine}", "--out", out]
    assert cli(*asked, "--seeds", 1)[0] == 0
    mine.write_text(mine.read_text().replace("film", "book"))
    code, text = cli(*asked, "--seeds", 1)
    assert code == 0 and "is finished: nothing is trained, and nobody looked" in " ".join(text.split()), text
    code, text = cli(*asked, "--seeds", 2)
    assert code == 2 and "the data of text have changed since" in " ".join(text.split()), text


@pytest.fixture(scope="module")
def two_thetas(tmp_path_factory):
    """Tickets of one model from two random beginnings."""
    found = []
    for seed in range(2):
        run = tmp_path_factory.mktemp("run")
        protocol = {"schedule": "one-round", "sparsity": 0.5}
        training = {"round_length": "2it", "batch_size": 16}
        settings = find_settings("resnet20-cifar", task="digits", seed=seed, protocol=protocol, training=training)
        find(settings, run / str(seed), screen=Screen(quiet=True))
        found.append(run / str(seed) / "round-01" / "ticket.ticket")
    return found


def test_tickets_of_two_thetas_are_each_shown_below_their_own_dense_networks(cli, two_thetas, tmp_path):
    out = tmp_path / "matrix"
    code, text = cli("matrix", *two_thetas, "--task", "digits", "--seeds", 2, "--out", out)
    assert code == 0, text
    result = json.loads((out / "matrix.json").read_text())
    first, second = result["cells"]
    shown = dense_of(result)
    assert list(shown) == [f"dense of {first}", f"dense of {second}"]
    for name, source in zip(shown, (first, second), strict=True):
        cell = result["cells"][source]["digits"]
        assert shown[name]["digits"] == cell["arms"]["dense"]
        assert cell["to_dense"] == cell["arms"]["ticket"]["mean"] - cell["arms"]["dense"]["mean"]
        assert f"dense of {source}" in text
    same = {**result, "cells": {first: result["cells"][first], "twin": result["cells"][first]}}
    assert list(dense_of(same)) == ["dense"]


def test_rows_are_known_by_their_tickets_and_not_by_what_they_are_called(cli, two_thetas, tmp_path):
    one, other = two_thetas
    asked = ["--task", "digits", "--seeds", 1, "--out", tmp_path / "matrix"]
    assert cli("matrix", one, *asked)[0] == 0
    code, text = cli("matrix", other, *asked)  # called digits, too
    assert code == 2 and "has the row digits, which the new one would not have" in text, text
    assert cli("matrix", one, other, *asked)[0] == 0
    code, text = cli("matrix", other, one, *asked)
    assert code == 0, text
