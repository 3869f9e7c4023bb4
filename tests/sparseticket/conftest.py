"""The command line in this process; tiny encoders with random weights and a real tokenizer, as a user saves them."""

import string
import sys

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertTokenizerFast,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from sparseticket.cli import main

WORDS = ("the", "a", "film", "is", "good", "bad", "very", "and", "plot", "dull", "fine", "was", "not", "it", "of")
SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


def save_tiny(folder, model):
    characters = [*string.ascii_lowercase, *string.digits, ".", ",", "'"]
    pieces = [f"##{character}" for character in string.ascii_lowercase + string.digits]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *characters, *pieces]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory):
    """Folders of tiny encoders by name; "bert" has a pooler and an MLM head, "bert-mlm" no pooler."""
    root = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        models = {
            "bert": BertForPreTraining(BertConfig(**SIZES)),
            "bert-mlm": BertForMaskedLM(BertConfig(**SIZES)),
            "roberta": RobertaForMaskedLM(RobertaConfig(**SIZES | {"max_position_embeddings": 66}, pad_token_id=0)),
            "electra": ElectraForMaskedLM(ElectraConfig(**SIZES, embedding_size=16)),
            "distilbert": DistilBertForMaskedLM(
                DistilBertConfig(
                    vocab_size=100, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=64
                )
            ),
        }
    return {name: save_tiny(root / name, model) for name, model in models.items()}


@pytest.fixture(scope="session")
def tiny_bert(tiny_folders):
    return tiny_folders["bert"]


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run a command in this process; its exit code, and what it printed in all."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["sparseticket", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err and "not foreseen" not in err
        return code, out + err

    return run
