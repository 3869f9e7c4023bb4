"""Models and data that every suite measures: random weights, half of them zero, so that nothing has to be found first.

Run by ``make benchmarks``. One thread, so that numbers compare from run to run.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch
from torch import nn

from sparseticket.files import write_whole

WORDS = ("the", "a", "film", "is", "good", "bad", "very", "and", "plot", "dull", "fine", "was", "not", "it", "of")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SPARSITY = 0.5


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked ``gpu`` where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BERT of 4 layers of 256 units (the size of BERT-mini) for two classes, and its tokenizer."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("text") / "bert-mini"
    folder.mkdir()
    vocabulary = (*SPECIAL, *WORDS, *(f"word{n}" for n in range(5000)))
    write_whole(folder / "vocab.txt", "\n".join(vocabulary) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=128).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        max_position_embeddings=128,
    )
    model = BertForSequenceClassification(config)
    _zero(model.bert.encoder, nn.Linear)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CIFAR ResNet-20 for ten classes."""
    from sparseticket.models import Head, resolve

    network = resolve("resnet20-cifar").build(Head("image-classification", 10), seed=0)
    _zero(network.module, nn.Conv2d)
    folder = tmp_path_factory.mktemp("images") / "resnet20"
    network.save(folder)
    return folder


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of 200 short texts with two labels."""
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    lines = [f"the film {n} is {('very good', 'not good')[n % 2]},{('good', 'bad')[n % 2]}" for n in range(200)]
    write_whole(path, "text,label\n" + "\n".join(lines) + "\n")
    return path


@torch.no_grad()
def _zero(module: nn.Module, kind: type[nn.Module]) -> None:
    for layer in module.modules():
        if isinstance(layer, kind):
            layer.weight.masked_fill_(torch.rand(layer.weight.shape) < SPARSITY, 0.0)
