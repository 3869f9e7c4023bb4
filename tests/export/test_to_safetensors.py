"""Weights for PyTorch, zeros in place: loaded by the libraries' own functions, read back before they are kept."""

import json

import pytest
import safetensors
import safetensors.torch
import torch
import transformers

from sparseticket.errors import RunFailure
from sparseticket.export import to_safetensors
from sparseticket.export.exporter import export_model
from sparseticket.export.loaded_model import load
from sparseticket.models.vision_saved import load_saved

HEADS = ("classifier", "regression", "question-answering", "masked-lm", "encoder")


def layer_sparsity(report):
    return {layer["name"].removeprefix("bert."): layer["sparsity"] for layer in report["layers"]}


@pytest.mark.parametrize("head", HEADS)
def test_hf_loads_in_plain_transformers_with_its_tokenizer(berts, tmp_path, head):
    report = export_model(berts[head], tmp_path / "out", format="hf")
    kind = getattr(transformers, json.loads((tmp_path / "out" / "config.json").read_text())["architectures"][0])
    model, loading = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    original = kind.from_pretrained(berts[head])
    for name, tensor in original.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert layer_sparsity(report)["encoder.layer.0.attention.self.query"] == 0.5
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("the ticket wins")["input_ids"]
    assert tokens == transformers.AutoTokenizer.from_pretrained(berts[head])("the ticket wins")["input_ids"]
    assert str(berts[head]) not in (tmp_path / "out" / "config.json").read_text()


def test_hf_in_fp16_is_half_as_large_and_keeps_its_zeros(classifier, tmp_path):
    full = export_model(classifier, tmp_path / "full", format="hf")
    half = export_model(classifier, tmp_path / "half", format="hf", dtype="fp16")
    sizes = [next(f["bytes"] for f in one["files"] if f["name"] == "model.safetensors") for one in (half, full)]
    assert sizes[0] < 0.55 * sizes[1]
    assert layer_sparsity(half) == layer_sparsity(full)


def test_hf_of_a_resnet_is_a_folder_that_export_and_this_project_load(small_resnet, tmp_path):
    report = export_model(small_resnet, tmp_path / "out", format="hf")
    expected, got = load_saved(small_resnet).state_dict(), load_saved(tmp_path / "out").state_dict()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert layer_sparsity(report)["layer3.0.conv1"] == pytest.approx(0.7, abs=0.03)
    assert load(tmp_path / "out").image == (3, 32, 32)


@pytest.mark.parametrize("head", ["masked-lm", "classifier"])
def test_safetensors_is_one_file_with_tied_tensors_once_and_its_provenance(berts, tmp_path, head):
    report = export_model(berts[head], tmp_path / "out", format="safetensors")
    file = tmp_path / "out" / "model.safetensors"
    with safetensors.safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert report["provenance"].items() <= metadata.items()
    module, original = (load(berts[head]).module for _ in range(2))
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)
    safetensors.torch.load_model(module, file)
    assert all(torch.equal(module.state_dict()[name], one) for name, one in original.state_dict().items())
    assert file.stat().st_size < 1.1 * (berts[head] / "model.safetensors").stat().st_size


@pytest.mark.parametrize("format", ["hf", "safetensors"])
def test_a_tensor_that_is_not_read_back_as_it_was_is_a_failure(classifier, tmp_path, monkeypatch, format):
    written = to_safetensors._written

    def spoil(write):
        written(write)
        file = next(tmp_path.glob(".out.*/new/model.safetensors"))
        with safetensors.safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        tensors = safetensors.torch.load_file(file)
        tensors["classifier.weight"][0, 0] += 1
        safetensors.torch.save_file(tensors, file, metadata)

    monkeypatch.setattr(to_safetensors, "_written", spoil)
    with pytest.raises(RunFailure, match=r"classifier\.weight is not in the written file"):
        export_model(classifier, tmp_path / "out", format=format)
    assert list(tmp_path.iterdir()) == []
