"""Overlap of two tickets: hand-computed, in unpermuted coordinates, of one model only."""

import json

import pytest
import torch

from sparseticket import masks as algebra
from sparseticket.errors import UserError
from sparseticket.models import Head, resolve
from sparseticket.pruning import magnitude_prune
from sparseticket.rewind import Origin
from sparseticket.ticket import Ticket


def write(path, masks, **fields):
    Ticket(**{"masks": masks, "model": "m", "theta": {}, "scheduled_sparsity": 0.5, **fields}).save(path)
    return path


def mask(*bits):
    return torch.tensor([bits], dtype=torch.bool)


def test_overlap_and_chance_are_those_computed_by_hand_in_each_layer_and_in_all(cli, tmp_path):
    a = write(tmp_path / "a.ticket", {"x": mask(1, 1, 0, 0), "y": mask(1, 0, 0, 0)})
    b = write(tmp_path / "b.ticket", {"x": mask(1, 0, 1, 0), "y": mask(1, 1, 0, 0)})
    code, text = cli("compare", a, b, "--out", tmp_path / "c.json")
    assert code == 0 and "0.4000" in text, text
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["all"]["overlap"] == pytest.approx(2 / 5) and found["all"]["alive_in_both"] == 2
    assert found["layers"]["x"]["overlap"] == pytest.approx(1 / 3)
    # in x 2·2/4 = 1 in both and 3 in either by chance, in y 1·2/4 = ½ and 2½
    assert found["layers"]["x"]["chance"] == pytest.approx(1 / 3)
    assert found["all"]["chance"] == pytest.approx(1.5 / 5.5)
    assert cli("compare", a, b)[0] == 0
    assert len(list(tmp_path.glob("compare-*-*.json"))) == 1


def test_tickets_of_different_models_are_refused_and_a_pooler_is_left_out(cli, tmp_path):
    a = write(tmp_path / "a.ticket", {"x": mask(1, 0)})
    other = write(tmp_path / "b.ticket", {"x": mask(1, 0)}, model="n")
    code, text = cli("compare", a, other)
    assert code == 2 and "only tickets of one model compare" in text
    pooled = write(tmp_path / "p.ticket", {"x": mask(1, 0), "pooler.dense.weight": mask(1, 0)})
    code, text = cli("compare", a, pooled, "--out", tmp_path / "c.json")
    assert code == 0 and "pooler.dense.weight" in text
    assert json.loads((tmp_path / "c.json").read_text())["all"]["overlap"] == 1
    code, text = cli("compare", a, write(tmp_path / "y.ticket", {"y": mask(1, 0)}))
    assert code == 2 and "do not cover the same tensors" in text


def test_a_permuted_ticket_is_compared_in_its_models_own_order(cli, tmp_path):
    network = resolve("resnet20-cifar").build(Head("image-classification", classes=10), seed=0)
    weights = {name: network.backbone()[name] for name in network.prunable}
    plain = magnitude_prune(weights, algebra.ones(weights), 0.5)
    theta = Origin.of(network).hashes["backbone"]
    whole = {"model": "resnet20-cifar", "theta": theta}
    a = write(tmp_path / "a.ticket", plain, **whole)
    order = torch.arange(16, dtype=torch.int32).roll(3)
    moved = dict(plain)
    moved["layer1.0.conv1.weight"] = plain["layer1.0.conv1.weight"][order.long()]
    moved["layer1.0.conv2.weight"] = plain["layer1.0.conv2.weight"][:, order.long()]
    b = write(tmp_path / "b.ticket", moved, permutations={"channels/layer1.0.conv1": order}, **whole)
    code, text = cli("compare", a, b, "--out", tmp_path / "c.json")
    assert code == 0, text
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["all"]["overlap"] == 1 and found["layers"]["layer1.0.conv2.weight"]["overlap"] == 1
    assert found["same_theta"] is True


def test_a_comparison_is_written_over_no_ticket(tmp_path):
    from sparseticket.compare import compare

    ticket = tmp_path / "a.ticket"
    ticket.write_bytes(b"a ticket")
    with pytest.raises(UserError, match="no comparison"):
        compare(ticket, ticket, out=ticket)
    assert ticket.read_bytes() == b"a ticket"
