"""Small real models: tiny BERTs with a tokenizer, some weights exactly zero, a run folder around them, a net."""

import copy
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from sparseticket.export.loaded_model import LoadedModel

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "ticket", "wins", "##ning", "the", "lottery"]
ZEROED = "bert.encoder.layer.0.attention.self.query"


HEADS = {
    "classifier": "BertForSequenceClassification",
    "regression": "BertForSequenceClassification",
    "question-answering": "BertForQuestionAnswering",
    "masked-lm": "BertForMaskedLM",
    "encoder": "BertModel",
}


def _tiny_bert(folder: Path, head: str) -> Path:
    """One or two layers; query of the first has every second column 0, its FFN nine tenths of all weights."""
    import transformers

    torch.manual_seed(0)
    vocabulary = folder.parent / f"{folder.name}-vocab.txt"
    vocabulary.write_text("\n".join(WORDS))
    config = transformers.BertConfig(
        vocab_size=150,  # more than the tokenizer has: a table this large keeps its Transpose when MLM's is tied to it
        hidden_size=32,
        num_hidden_layers=2 if head in ("classifier", "masked-lm") else 1,  # tracing takes its time a layer
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
        initializer_range=0.3,
        num_labels=1 if head == "regression" else 2,
    )
    model = getattr(transformers, HEADS[head])(config)
    encoder = model.base_model.encoder.layer[0]
    with torch.no_grad():
        encoder.attention.self.query.weight[:, ::2] = 0.0
        encoder.intermediate.dense.weight.view(-1)[torch.arange(32 * 64) % 10 != 0] = 0.0
    model.save_pretrained(folder)
    transformers.BertTokenizer(str(vocabulary)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="package", autouse=True)
def traced_once() -> Iterator[None]:
    """Tracing takes seconds, and the same model in the same opset always gives the same graph: each gets a copy."""
    from sparseticket.export import graph

    trace, traced = graph.trace, {}

    def remembered(model: LoadedModel, opset: int):
        config = getattr(model.module, "config", None)
        digest = hashlib.sha256(f"{type(model.module)} {config!r} {model.inputs} {model.image} {opset}".encode())
        for name, tensor in model.module.state_dict().items():
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        if digest.digest() not in traced:
            traced[digest.digest()] = trace(model, opset)
        program = copy.copy(traced[digest.digest()])
        program.model = program.model.clone()
        return program

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "trace", remembered)
        yield


@pytest.fixture(scope="session")
def berts(tmp_path_factory) -> dict[str, Path]:
    """A model folder for each head that the project trains."""
    root = tmp_path_factory.mktemp("models")
    return {head: _tiny_bert(root / head, head) for head in HEADS}


@pytest.fixture(scope="session")
def classifier(berts) -> Path:
    return berts["classifier"]


@pytest.fixture(scope="session")
def masked_lm(berts) -> Path:
    return berts["masked-lm"]


@pytest.fixture(scope="session")
def reviews(tmp_path_factory) -> Path:
    """Data of the task "text" in the words of the tiny tokenizer: two labels, 200 texts."""
    file = tmp_path_factory.mktemp("data") / "reviews.csv"
    rows = [
        f"{' '.join(WORDS[5 + (row * step) % 6] for step in range(1, 3 + row % 9))} {row},{row % 2}"
        for row in range(200)
    ]
    file.write_text("\n".join(["text,label", *rows]))
    return file


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


def _save_ticket(
    file: Path, name: str = ZEROED.removeprefix("bert.") + ".weight", column: int = 0, every: int = 2
) -> str:
    """A ticket that prunes one of ``every`` columns, from ``column`` on; returns its identity."""
    from sparseticket.ticket import Ticket

    alive = torch.ones(32, 32, dtype=torch.bool)
    alive[:, column::every] = False
    ticket = Ticket(
        masks={name: alive},
        model="tiny",
        theta={},
        scheduled_sparsity=1 / every,
        task={"name": "text", "metric": "accuracy"},
        training={"max_length": 16},
    )
    ticket.save(file)
    return ticket.identity


@pytest.fixture
def save_ticket():
    return _save_ticket


@pytest.fixture
def run(tmp_path, classifier) -> Path:
    """A run whose rounds 0 and 1 are finished and whose round 2 is not."""
    folder = tmp_path / "runs" / "tiny-sst2"
    for index in range(3):
        round_folder = folder / f"round-{index:02d}"
        shutil.copytree(classifier, round_folder / "model")
        _save_ticket(round_folder / "ticket.ticket")
        (round_folder / "metrics.json").write_text(json.dumps({"value": 0.75}))
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
