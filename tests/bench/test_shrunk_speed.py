import json

import pytest
import torch

from sparseticket.bench import shrunk_speed
from sparseticket.export.shrink import shrink

TINY = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}


def test_half_of_every_layer_is_removed():
    from torchvision.models import resnet18
    from transformers import BertConfig, BertModel

    for model in (BertModel(BertConfig(**TINY)), resnet18()):
        shrunk = shrink(shrunk_speed.halve(model))
        assert shrunk.kept and all(len(layer.kept) == layer.count // 2 for layer in shrunk.kept)


@pytest.mark.parametrize("make", ["bert", "resnet"])
def test_four_files_are_made_and_timed_against_the_dense_one(make, tmp_path, monkeypatch, capsys):
    shape = shrunk_speed.bert("tiny", tokens=8, **TINY) if make == "bert" else shrunk_speed.resnet("resnet20-cifar")
    monkeypatch.setattr(shrunk_speed, "shapes", lambda: [shape])
    shrunk_speed.main(["--seconds", "0.1", "--out", str(tmp_path / "speed.json")])
    result = json.loads((tmp_path / "speed.json").read_text())["models"][shape.name]
    files = result["files"]
    assert list(files) == ["dense", "dense int8", "shrunk", "shrunk int8"]
    assert files["shrunk"]["bytes"] < files["dense"]["bytes"]
    assert files["shrunk int8"]["bytes"] < files["dense int8"]["bytes"]
    assert files["dense"]["speedup"] == 1.0
    assert all(
        one["p50_ms"] > 0 and one["speedup_low"] <= one["speedup"] <= one["speedup_high"] for one in files.values()
    )
    assert f"{shape.name}, {shape.words}" in capsys.readouterr().out


def test_calibration_sees_images_that_are_not_all_the_same():
    first, second, *_ = shrunk_speed.RandomImages(8).batches("train")
    assert first["pixels"].shape == (4, 3, 8, 8) and not torch.equal(first["pixels"], second["pixels"])
