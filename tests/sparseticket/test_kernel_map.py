"""Completely pruned kernels: counted as they are, drawn, and in a file."""

import json

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image

from sparseticket.kernel_map import kernel_report
from sparseticket.ticket import Ticket


def ticket(**masks):
    named = {name.replace("_", "."): mask for name, mask in masks.items()}
    return Ticket(masks=named, model="tiny", theta=dict.fromkeys(named, "0" * 64), scheduled_sparsity=0.5)


@pytest.fixture
def three_layers():
    first = torch.zeros(4, 2, 3, 3, dtype=torch.bool)  # filter 0: whole, whole; 1: one weight, none; 2 and 3: none
    first[0] = True
    first[1, 0, 2, 2] = True
    second = torch.ones(3, 4, 1, 1, dtype=torch.bool)
    second[:, 1] = False
    third = torch.ones(2, 3, 3, 3, dtype=torch.bool)
    third[1, 2] = False
    return ticket(layer2_10_weight=third, layer2_2_weight=second, layer1_0_weight=first)


def test_kernels_without_a_living_weight_are_counted_layer_by_layer(three_layers):
    report = kernel_report(three_layers)
    counts = {
        name: (layer["size"], layer["kernels"], layer["dead"], layer["dead_filters"])
        for name, layer in report["layers"].items()
    }
    assert list(counts.items()) == [
        ("layer1.0.weight", ("3x3", 8, 5, 2)),
        ("layer2.2.weight", ("1x1", 12, 3, 0)),
        ("layer2.10.weight", ("3x3", 6, 1, 0)),
    ]
    assert [one["sparsity"] for one in report["layers"].values()] == pytest.approx([53 / 72, 1 / 4, 1 / 6])
    assert report["all"] == {"kernels": 14, "dead": 6}
    assert report["ticket"] == three_layers.identity


def test_inspect_draws_the_kernels_and_leaves_their_figures_beside_the_picture(cli, three_layers, tmp_path):
    three_layers.save(tmp_path / "a.ticket")
    code, text = cli("inspect", tmp_path / "a.ticket", "--kernels", tmp_path / "new" / "kernels.png")
    assert code == 0 and "6 of 14 kernels have no living weight (42.86%)" in text, text
    assert json.loads((tmp_path / "new" / "kernels.json").read_text()) == kernel_report(three_layers)
    pixels = np.array(Image.open(tmp_path / "new" / "kernels.png").convert("RGB"))
    for share in (0.0, 1.0):  # the ends of the colour scale: a kernel that does not live, and one that lives whole
        colour = np.array(colormaps["magma"](share, bytes=True))[:3]
        assert (np.abs(pixels.astype(int) - colour).max(axis=2) <= 1).sum() > 1000


def test_a_picture_is_refused_where_there_are_no_convolutions_or_its_name_is_no_pngs(cli, three_layers, tmp_path):
    three_layers.save(tmp_path / "a.ticket")
    ticket(encoder_weight=torch.eye(4, dtype=torch.bool)).save(tmp_path / "text.ticket")
    for name, picture, says in (
        ("text.ticket", "a.png", "prunes no convolution"),
        ("a.ticket", "a.jpg", "name a .png file"),
    ):
        code, text = cli("inspect", tmp_path / name, "--kernels", tmp_path / picture)
        assert code == 2 and says in text
        assert not (tmp_path / picture).exists() and not (tmp_path / "a.json").exists()
