"""Small ONNX files, written by hand, and a tiny BERT beside its export."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper


def image_file(file: Path, layers: int, *, width: int = 64, zero: float = 0.0, batch: str | int = "batch") -> Path:
    """Images [batch, 1, 8, 8] through ``layers`` matrix products of 64 x ``width`` x 64; ``zero`` of each is zeros."""
    draw = np.random.default_rng(0)
    nodes = [helper.make_node("Reshape", ["pixels", "flat"], ["x0"])]
    weights = [numpy_helper.from_array(np.array([-1, 64]), "flat")]
    for index in range(layers):
        for half, shape in (("a", (64, width)), ("b", (width, 64))):
            array = draw.standard_normal(shape).astype(np.float32) / 64
            array.reshape(-1)[: int(zero * array.size)] = 0.0
            weights.append(numpy_helper.from_array(array, f"w{index}{half}"))
        nodes.append(helper.make_node("MatMul", [f"x{index}", f"w{index}a"], [f"h{index}"]))
        nodes.append(helper.make_node("MatMul", [f"h{index}", f"w{index}b"], [f"x{index + 1}"]))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [batch, 1, 8, 8])],
        [helper.make_tensor_value_info(f"x{layers}", TensorProto.FLOAT, [None, 64])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    return file


@pytest.fixture
def make_image_file(tmp_path):
    return lambda name, layers, **options: image_file(tmp_path / f"{name}.onnx", layers, **options)


@pytest.fixture(scope="session")
def bert(tmp_path_factory) -> Path:
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
    )
    model = transformers.BertForSequenceClassification(config)
    with torch.no_grad():
        for module in model.bert.encoder.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight[:, ::2] = 0.0
    folder = tmp_path_factory.mktemp("bench") / "bert"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bert_onnx(bert) -> Path:
    from sparseticket.export.exporter import export_model

    export_model(bert)
    return bert / "onnx"


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> Path:
    """A model folder of a tiny BERT with a tokenizer of a few words, as a user saves one."""
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "of", "return", "is", "file", "object"]
    folder = tmp_path_factory.mktemp("encoder")
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    transformers.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=128).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    return folder
