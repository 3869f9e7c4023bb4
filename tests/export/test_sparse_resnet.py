"""``--layout sparse-op`` of ResNets: their convolutions, decided layer by layer, verified and recounted."""

import onnx
import pytest
import torch
from torch import nn

from sparseticket.errors import UserError
from sparseticket.export import layers, native
from sparseticket.export.exporter import export_model
from sparseticket.models import Head, resolve


@pytest.fixture(scope="module")
def resnet20(tmp_path_factory):
    """Stage 2 in 4x1 blocks, stage 3 unstructured, the rest dense."""
    network = resolve("resnet20-cifar").build(Head("image-classification", 10), seed=0)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, module in network.module.named_modules():
            block = {"layer2": 4, "layer3": 1}.get(name.split(".")[0])
            if isinstance(module, nn.Conv2d) and block:
                outputs, *rest = module.weight.shape
                live = torch.rand(outputs // block, *rest, generator=draw) < 0.2
                module.weight.masked_fill_(~live.repeat_interleave(block, 0), 0.0)
    folder = tmp_path_factory.mktemp("models") / "resnet20"
    network.save(folder)
    return folder


def test_convolutions_run_sparse_where_they_win_and_keep_their_zeros(resnet20, tmp_path):
    report = export_model(resnet20, tmp_path / "out", layout="sparse-op", target="avx512")
    in_blocks = {"2x1": "blocks", "4x1": "blocks"}  # which of them is faster is a matter of measurement
    runs = {one["layer"]: in_blocks.get(one["runs"], one["runs"]) for one in report["sparse_op"]["layers"]}
    expected = {"layer1": "dense", "layer2": "blocks", "layer3": "1x1"}
    assert runs == {name: expected.get(name.split(".")[0], "dense") for name in runs}
    assert set(runs.values()) == {"dense", "blocks", "1x1"}
    operators = [node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node]
    sparse = [name for name in operators if "SparseConv" in name]
    assert len(sparse) == sum(run != "dense" for run in runs.values())
    assert {"BlockSparseConvRelu", "BlockSparseConv", "SparseConvRelu", "SparseConv"} == set(sparse)
    from_file = sorted(layer.zeros for layer in layers.file_layers(tmp_path / "out" / "model.onnx"))
    assert from_file == sorted(layer["zeros"] for layer in report["layers"])
    assert report["library"]["verified_with"] == native.isa()


def test_a_resnet_that_is_not_sparse_enough_is_refused(tmp_path):
    network = resolve("resnet20-cifar").build(Head("image-classification", 10), seed=0)
    network.save(tmp_path / "dense")
    with pytest.raises(UserError, match=r"the nearest is .*break-even"):
        export_model(tmp_path / "dense", tmp_path / "out", layout="sparse-op", target="avx512")
