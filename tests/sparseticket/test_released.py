"""``sparseticket import``: the mask dictionaries of both papers' code, and files that are none."""

import os
import pickle

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from sparseticket.models import Head, resolve
from sparseticket.ticket import Ticket


def masks_of(tiny_bert, prefix="bert."):
    """As the papers' code saves them: one of each prunable matrix, floats, under live names."""
    network = resolve(str(tiny_bert)).build(Head("sequence-classification", 2), seed=0)
    drawn = torch.Generator().manual_seed(0)
    return {
        f"{prefix}{name}_mask": (torch.rand(network.backbone()[name].shape, generator=drawn) > 0.6).float()
        for name in network.prunable
    }


@pytest.mark.parametrize("prefix", ["bert.", "module.bert.", ""])
def test_released_masks_become_a_ticket_of_the_models_own_weights(cli, tiny_bert, tmp_path, prefix):
    masks = masks_of(tiny_bert, prefix)
    torch.save(masks, tmp_path / "mask.pt")
    code, text = cli("import", tmp_path / "mask.pt", "--model", tiny_bert, "--out", tmp_path / "a.ticket")
    assert code == 0, text
    ticket = Ticket.load(tmp_path / "a.ticket")
    assert {f"{prefix}{name}_mask": mask.float().tolist() for name, mask in ticket.masks.items()} == {
        name: mask.tolist() for name, mask in masks.items()
    }
    own = resolve(str(tiny_bert)).build(Head("masked-lm"), seed=5)
    assert set(ticket.theta) - own.pretrained == {"pooler.dense.weight", "pooler.dense.bias"}
    assert ticket.protocol == {"name": "imported"} and ticket.model == "bert"


def test_prunable_tensors_without_a_mask_stay_out_of_the_ticket_and_are_named(cli, tiny_bert, tmp_path):
    masks = {name: mask for name, mask in masks_of(tiny_bert).items() if "pooler" not in name}
    torch.save({"state_dict": masks}, tmp_path / "mask.pt")
    code, text = cli("import", tmp_path / "mask.pt", "--model", tiny_bert, "--out", tmp_path / "a.ticket")
    assert code == 0 and "pooler.dense.weight" in text and "stay dense" in text
    assert len(Ticket.load(tmp_path / "a.ticket").masks) == len(masks) == 12


class Code:
    """Runs code when it is unpickled without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def change(masks, name):
    first = next(iter(masks))
    return (
        masks
        | {
            "values": {first: masks[first] * 0.5},
            "nan": {first: masks[first] / 0},
            "no tensor": {first: "ones"},
            "shape": {first: masks[first][:, :5]},
            "unknown": {"bert.encoder.layer.7.output.dense.weight_mask": torch.ones(2, 2)},
            "twice": {f"module.{first}": masks[first]},
        }[name]
    )


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("values", "neither 0 nor 1"),
        ("nan", "neither 0 nor 1"),
        ("no tensor", "no dictionary of tensors"),
        ("shape", ["(32, 5)", "(32, 32)"]),
        ("unknown", "are these the masks of another model?"),
        ("twice", "two masks"),
    ],
)
def test_masks_that_do_not_fit_are_refused_and_no_ticket_is_written(cli, tiny_bert, tmp_path, name, says):
    torch.save(change(masks_of(tiny_bert), name), tmp_path / "mask.pt")
    refused(cli, tiny_bert, tmp_path, says)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"a": torch.ones(2)}, "no entry named *.weight_mask"),
        ({}, "no dictionary of tensors"),
        ([torch.ones(2)], "no dictionary of tensors"),
    ],
)
def test_a_file_without_masks_is_refused(cli, tiny_bert, tmp_path, content, says):
    torch.save(content, tmp_path / "mask.pt")
    refused(cli, tiny_bert, tmp_path, says)


def test_code_in_a_pickle_is_not_run(cli, tiny_bert, tmp_path):
    for save in (
        lambda value, path: torch.save(value, path),
        lambda value, path: path.write_bytes(pickle.dumps(value)),
    ):
        save({"bert.weight_mask": Code(tmp_path / "ran")}, tmp_path / "mask.pt")
        refused(cli, tiny_bert, tmp_path, "Pickled code is never run")
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"text,label\n", b"PK\x03\x04broken", b"\x80\x02}."])
def test_a_file_that_torch_did_not_write_is_refused(cli, tiny_bert, tmp_path, content):
    (tmp_path / "mask.pt").write_bytes(content)
    refused(cli, tiny_bert, tmp_path, "mask.pt")


def test_the_masks_of_another_model_are_refused(cli, tiny_bert, tmp_path):
    small = BertForSequenceClassification(BertConfig.from_pretrained(tiny_bert, hidden_size=16, num_hidden_layers=1))
    masks = {f"{n}_mask": torch.ones_like(p) for n, p in small.named_parameters() if n.endswith("dense.weight")}
    torch.save(masks, tmp_path / "mask.pt")
    refused(cli, tiny_bert, tmp_path, "'" + str(tiny_bert) + "' has (")
    code, text = cli("import", tmp_path / "mask.pt", "--model", "resnet20-cifar", "--out", tmp_path / "a.ticket")
    assert code == 2 and "masks of another model" in text


def test_a_missing_file_is_refused(cli, tiny_bert, tmp_path):
    refused(cli, tiny_bert, tmp_path, "there is no file")


def refused(cli, model, folder, says):
    code, text = cli("import", folder / "mask.pt", "--model", model, "--out", folder / "a.ticket")
    assert code == 2, text
    assert all(word in text for word in ([says] if isinstance(says, str) else says)), text
    assert not (folder / "a.ticket").exists()
