"""Programs for GPUs; here their operators run on their references, and the GPU's own package is not made."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from sparseticket.errors import RunFailure, UserError
from sparseticket.export import load_pt2
from sparseticket.export.exporter import export_model
from sparseticket.export.loaded_model import DTYPES, load
from sparseticket.ticket import Ticket

ROOT = Path(__file__).parents[2]


def under_blocks(folder, source, *, name):
    """A copy of a model folder in which every second 16 x 16 block of ``name``'s weight is 0, no other; its ticket."""
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(source)
    weight = model.get_parameter(f"{name}.weight")
    rows, columns = weight.shape[0] // 16, weight.shape[1] // 16
    alive = (torch.arange(rows)[:, None] + torch.arange(columns)[None]) % 2 == 0
    mask = alive.repeat_interleave(16, 0).repeat_interleave(16, 1)
    torch.manual_seed(0)
    torch.nn.init.normal_(weight, std=0.3)
    weight.data.masked_fill_(~mask, 0)
    model.save_pretrained(folder)
    for file in source.iterdir():
        if not (folder / file.name).exists():
            (folder / file.name).write_bytes(file.read_bytes())
    inside = name.removeprefix("bert.") + ".weight"
    ticket = Ticket({inside: mask}, "tiny", {inside: "0" * 64}, 0.5, pattern="block:16x16")
    ticket.save(folder.parent / "blocks.ticket")
    return folder, folder.parent / "blocks.ticket"


@pytest.fixture(scope="module")
def blocky(classifier, tmp_path_factory):
    folder = tmp_path_factory.mktemp("blocky") / "model"
    return under_blocks(folder, classifier, name="bert.encoder.layer.0.intermediate.dense")


@pytest.fixture
def blocky_resnet(tmp_path):
    """A small ResNet with every second 16 x 16 block of one 3 x 3 convolution dead, and its ticket."""
    from sparseticket.models import Head, resolve

    network = resolve("resnet20-cifar").build(Head("image-classification", 10), seed=0)
    name = "layer3.0.conv2.weight"
    weight = network.module.get_parameter(name)
    alive = (torch.arange(4)[:, None] + torch.arange(4)[None]) % 2 == 0
    mask = alive.repeat_interleave(16, 0).repeat_interleave(16, 1)[:, :, None, None].expand_as(weight).clone()
    weight.data.masked_fill_(~mask, 0)
    network.save(tmp_path / "resnet")
    Ticket({name: mask}, "resnet20-cifar", {name: "0" * 64}, 0.5, pattern="block:16x16").save(tmp_path / "conv.ticket")
    return tmp_path / "resnet", tmp_path / "conv.ticket"


@pytest.fixture(scope="module")
def exported(blocky, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "pt2"
    model, ticket = blocky
    return out, export_model(model, out, ticket=ticket, format="pt2")


def test_the_program_holds_the_sparse_operators_and_agrees_on_every_shape(exported):
    out, report = exported
    operators = [str(node.target) for node in load_pt2(out / "model.pt2").graph.nodes if node.op == "call_function"]
    assert operators.count("sparseticket.bsr_linear_packed.default") == 1
    assert report["max_abs_error"] <= 1e-4 and len(report["shapes"]) == 6
    (kernel,) = report["kernels"]
    assert kernel["pattern"].startswith("block:") and kernel["density"] == 0.5 and kernel["runs"] == "bsr_packed"


def test_the_program_holds_no_path_of_the_machine_it_was_made_on(exported):
    with zipfile.ZipFile(exported[0] / "model.pt2") as archive:
        described = [archive.read(name) for name in archive.namelist() if name.endswith(".json")]
    assert described and not any(place in text for place in (b"site-packages", b"to_pt2.py") for text in described)


def test_the_program_runs_in_another_process_with_any_batch_and_length(exported, blocky):
    out, _ = exported
    inputs = load(blocky[0]).example(3, 11, padded=True)
    torch.save(inputs, out.parent / "inputs.pt")
    code = (
        "import sys, torch; from sparseticket.export import load_pt2; folder = sys.argv[1]\n"
        "program = load_pt2(folder + '/pt2/model.pt2').module()\n"
        "torch.save(program(**torch.load(folder + '/inputs.pt', weights_only=True)), folder + '/answer.pt')"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, str(out.parent)], check=True, env=env, cwd=out.parent)
    answer = torch.load(out.parent / "answer.pt", weights_only=True)
    torch.testing.assert_close(answer["logits"], load(blocky[0]).answer(inputs)["logits"], rtol=0, atol=1e-4)


def test_an_answer_of_the_program_holds_no_graph_for_gradients(exported, blocky):
    answer = load_pt2(exported[0] / "model.pt2").module()(**load(blocky[0]).example(1, 5))
    assert not answer["logits"].requires_grad


@pytest.mark.parametrize(("dtype", "atol"), [("fp16", 2e-2), ("bf16", 0.16)])
def test_half_precision_is_written_and_judged_by_its_own_tolerance(dtype, atol, blocky, tmp_path):
    report = export_model(blocky[0], tmp_path / "half", ticket=blocky[1], format="pt2", dtype=dtype)
    assert report["tolerance"]["atol"] == atol and 1e-4 < report["max_abs_error"] < atol
    weights = load_pt2(tmp_path / "half" / "model.pt2").state_dict
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {DTYPES[dtype]}


def test_a_program_of_images_takes_them_in_fp32_whatever_it_computes_in(blocky_resnet, tmp_path):
    model, ticket = blocky_resnet
    report = export_model(model, tmp_path / "out", ticket=ticket, format="pt2", dtype="fp16")
    (kernel,) = report["kernels"]
    assert kernel["runs"] == "bsr_conv2d"
    images = load(model).example(2)["pixel_values"]
    answer = load_pt2(tmp_path / "out" / "model.pt2").module()(pixel_values=images)["logits"]
    assert images.dtype == torch.float32 and answer.dtype == torch.float16


def test_without_a_ticket_or_without_blocks_it_is_refused(classifier, tmp_path):
    with pytest.raises(UserError, match="needs a ticket"):
        export_model(classifier, tmp_path / "a", format="pt2")
    name = "encoder.layer.0.attention.self.query.weight"
    mask = torch.ones(32, 32, dtype=torch.bool)
    mask[:, ::2] = False
    Ticket({name: mask}, "tiny", {name: "0" * 64}, 0.5).save(tmp_path / "loose.ticket")
    with pytest.raises(UserError, match="convert TICKET --to block:64x64"):
        export_model(classifier, tmp_path / "b", ticket=tmp_path / "loose.ticket", format="pt2")
    assert not list(tmp_path.glob("[ab]"))


def test_a_model_that_torch_cannot_export_is_one_error_that_says_why_and_what_can_be_had(blocky, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("Constraints violated (sequence)!\nmore of it")

    monkeypatch.setattr(torch.export, "export", refuse)
    with pytest.raises(RunFailure, match=r"Bert\w+ as a program: Constraints .*\n.*--format hf or safetensors"):
        export_model(blocky[0], tmp_path / "a", ticket=blocky[1], format="pt2")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("option", [{"layout": "shrunk"}, {"quantize": "dynamic"}, {"opset": 17}])
def test_what_belongs_to_onnx_is_refused(classifier, tmp_path, option):
    with pytest.raises(UserError, match=r"pt2|onnx"):
        export_model(classifier, tmp_path / "a", format="pt2", **option)


def test_what_is_no_program_is_refused(tmp_path):
    (tmp_path / "model.pt2").write_bytes(b"nothing of the sort")
    with pytest.raises(UserError, match="no program"):
        load_pt2(tmp_path / "model.pt2")
    with pytest.raises(UserError, match="no file"):
        load_pt2(tmp_path / "absent.pt2")
