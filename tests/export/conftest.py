"""Small real models: tiny BERTs with a tokenizer, some weights exactly zero, a run folder around them, a net."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from sparseticket.export.loaded_model import LoadedModel

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "ticket", "wins", "##ning", "the", "lottery"]
ZEROED = "bert.encoder.layer.0.attention.self.query"


def _tiny_bert(folder: Path, kind: str) -> Path:
    import transformers

    torch.manual_seed(0)
    vocabulary = folder.parent / f"{folder.name}-vocab.txt"
    vocabulary.write_text("\n".join(WORDS))
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
        initializer_range=0.3,
    )
    model = getattr(transformers, kind)(config)
    layer = model.get_submodule(ZEROED)
    with torch.no_grad():
        layer.weight[:, ::2] = 0.0
    model.save_pretrained(folder)
    transformers.BertTokenizer(str(vocabulary)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def classifier(tmp_path_factory) -> Path:
    return _tiny_bert(tmp_path_factory.mktemp("models") / "classifier", "BertForSequenceClassification")


@pytest.fixture(scope="session")
def masked_lm(tmp_path_factory) -> Path:
    return _tiny_bert(tmp_path_factory.mktemp("models") / "masked-lm", "BertForMaskedLM")


@pytest.fixture(scope="session")
def small_resnet(tmp_path_factory) -> Path:
    from sparseticket.models import Head, resolve

    network = resolve("resnet20-cifar").build(Head("image-classification", 10), seed=0)
    with torch.no_grad():
        for name, module in network.module.named_modules():
            if isinstance(module, nn.Conv2d) and name != "conv1":
                module.weight.masked_fill_(torch.rand_like(module.weight) < 0.7, 0.0)
    folder = tmp_path_factory.mktemp("models") / "small-resnet"
    network.save(folder)
    return folder


@pytest.fixture
def run(tmp_path, classifier) -> Path:
    """A run whose rounds 0 and 1 are finished and whose round 2 is not."""
    folder = tmp_path / "runs" / "tiny-sst2"
    for index in range(3):
        round_folder = folder / f"round-{index:02d}"
        shutil.copytree(classifier, round_folder / "model")
        (round_folder / "ticket.ticket").write_bytes(b"")
        if index < 2:
            (round_folder / "done").touch()
    (folder / "run.toml").touch()
    (folder / "summary.json").write_text(json.dumps({"model": "tiny", "task": "sst2"}))
    return folder


class Awkward(nn.Module):
    """Two dead convolutions that the exporter merges, a BatchNorm with a dead channel, and a dead linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.dead_1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm_1 = nn.BatchNorm2d(8)
        self.dead_2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm_2 = nn.BatchNorm2d(8)
        self.halved = nn.Linear(8, 6)
        self.head = nn.Linear(6, 4)
        with torch.no_grad():
            self.norm.weight[3] = 0.0
            self.stem.weight[0] = 0.0
            self.dead_1.weight.zero_()
            self.dead_2.weight.zero_()
            self.halved.weight[:, ::2] = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + torch.relu(self.norm_1(self.dead_1(x)))
        x = x + torch.relu(self.norm_2(self.dead_2(x)))
        x = x.flatten(2).transpose(1, 2)  # so that the linear layers see three dimensions, and become MatMul
        return self.head(torch.relu(self.halved(x))).mean(1)


@pytest.fixture(scope="session")
def awkward() -> LoadedModel:
    torch.manual_seed(0)
    return LoadedModel("vision", Awkward().eval(), ("pixel_values",), ("logits",), image=(3, 8, 8))
