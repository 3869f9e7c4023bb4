import json
import shutil

import onnxruntime
import pytest
import safetensors.torch
import torch
import transformers
from torch import nn

from sparseticket.errors import RunFailure, UserError
from sparseticket.export import load_shrunk, save_shrunk
from sparseticket.export.exporter import export_model
from sparseticket.export.layers import torch_layers
from sparseticket.export.loaded_model import load
from sparseticket.export.shrink import backbone_of, shrink
from sparseticket.models.families import KINDS, families

PIECES = ("model.safetensors", "shrink.json")


def kill_some(module):
    """The first entry of each family, of the second layer's neurons nearly all: zeros at every end, biases drawn."""
    backbone = backbone_of(module)
    tensors = dict(backbone.named_parameters())
    with torch.no_grad():
        for parameter in tensors.values():
            if parameter.dim() == 1:
                parameter.copy_(torch.randn(parameter.shape) * 0.5)
        for kind in KINDS:
            for family in families(backbone, kind):
                dead = family.count - 3 if family.layer == "encoder.layer.1" else 1
                for end in family.slices:
                    if end.name in tensors:
                        tensors[end.name].narrow(end.dim, 0, dead * end.size).zero_()
    return module


@pytest.fixture(scope="module")
def text(tmp_path_factory, classifier):
    """A BERT classifier with dead heads and neurons, and its shrunk folder."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("shrunk-text")
    source = shutil.copytree(classifier, root / "model")
    model = kill_some(transformers.BertForSequenceClassification.from_pretrained(classifier)).eval()
    model.save_pretrained(source)
    shrunk = shrink(load(source).module)
    save_shrunk(shrunk, root / "shrunk", source=source)
    return source, root / "shrunk", shrunk


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    """A ResNet-20 with dead channels and BatchNorms that have seen images, and its shrunk folder."""
    from sparseticket.models import Head, resolve

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("shrunk-vision")
    network = resolve("resnet20-cifar").build(Head("image-classification", 4), seed=0)
    kill_some(network.module).train()
    with torch.no_grad():
        for _ in range(3):
            network.module(torch.randn(4, 3, 32, 32) + 0.3)
    network.save(root / "model")
    shrunk = shrink(load(root / "model").module)
    save_shrunk(shrunk, root / "shrunk", source=root / "model")
    return root / "model", root / "shrunk", shrunk


@pytest.fixture(params=["text", "vision"])
def made(request):
    return request.getfixturevalue(request.param)


def test_a_shrunk_network_loads_again_bit_for_bit(made):
    source, folder, shrunk = made
    loaded = load_shrunk(folder)
    assert [type(part) for part in loaded.modules()] == [type(part) for part in shrunk.module.modules()]
    state, again = shrunk.module.state_dict(), loaded.state_dict()
    assert state.keys() == again.keys() and all(torch.equal(state[name], again[name]) for name in state)
    example = load(source).example(3, 7, padded=True)
    one, other = load(folder).answer(example), load(source).answer(example)
    assert torch.equal(one["logits"], load(folder).answer(example)["logits"])
    torch.testing.assert_close(one["logits"], other["logits"], atol=1e-5, rtol=1e-5)
    assert (folder / "model.safetensors").stat().st_size < (source / "model.safetensors").stat().st_size


def test_the_folder_says_what_was_kept_and_brings_what_goes_with_the_model(text, vision):
    record = json.loads((text[1] / "shrink.json").read_text())
    assert record["format"] == 1 and record["ticket"] is None and "torch" in record["versions"]
    kept = {(layer["kind"], layer["layer"]): (layer["kept"], layer["count"]) for layer in record["layers"]}
    assert kept["neurons", "encoder.layer.1"] == ([61, 62, 63], 64)
    assert kept["heads", "encoder.layer.0.attention"] == ([1], 2)
    assert transformers.AutoTokenizer.from_pretrained(text[1])("a ticket wins")["input_ids"]
    assert {"config.json", *PIECES} <= {item.name for item in text[1].iterdir()}
    assert {"model.json", *PIECES} == {item.name for item in vision[1].iterdir()}


def test_the_ticket_that_it_was_trained_under_is_written_down(text, tmp_path):
    from sparseticket.ticket import Ticket

    masks = {"encoder.layer.0.output.dense.weight": torch.ones(32, 64, dtype=torch.bool)}
    ticket = Ticket(masks=masks, model="tiny", theta={}, scheduled_sparsity=0.0)
    ticket.save(tmp_path / "a.ticket")
    save_shrunk(text[2], tmp_path / "out", source=text[0], ticket=tmp_path / "a.ticket")
    assert json.loads((tmp_path / "out" / "shrink.json").read_text())["ticket"] == ticket.identity


def test_tied_embeddings_are_stored_once_and_tied_again(masked_lm, tmp_path):
    model = kill_some(transformers.BertForMaskedLM.from_pretrained(masked_lm)).eval()
    save_shrunk(shrink(model), tmp_path / "out", source=masked_lm)
    loaded = load_shrunk(str(tmp_path / "out"))
    assert loaded.cls.predictions.decoder.weight is loaded.bert.embeddings.word_embeddings.weight
    names = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors").keys()
    assert "cls.predictions.decoder.weight" not in names
    inputs = load(masked_lm).example(2, 5)
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=1e-5)


def test_a_bare_encoder_is_kept_without_its_pooler(classifier, tmp_path):
    source = shutil.copytree(classifier, tmp_path / "model")
    kill_some(transformers.BertModel.from_pretrained(classifier)).save_pretrained(source)
    save_shrunk(shrink(load(source).module), tmp_path / "out", source=source)
    assert load_shrunk(tmp_path / "out").pooler is None


def test_an_export_of_a_shrunk_model_needs_only_its_file(made, tmp_path):
    source, _, shrunk = made
    report = export_model(source, tmp_path / "onnx", layout="shrunk")
    assert report["layout"] == "shrunk"
    weights = {name: weight.numel() for name, weight in torch_layers(shrunk.module).items()}
    assert {layer["name"]: layer["weights"] for layer in report["layers"]} == weights
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    model = load(source)
    for batch, length in ((1, 3), (4, 17)):
        inputs = model.example(batch, length, padded=True)
        (got,) = session.run(["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})
        torch.testing.assert_close(torch.from_numpy(got), model.answer(inputs)["logits"], atol=1e-4, rtol=1e-4)


def test_a_shrunk_model_is_kept_as_its_folder_where_no_onnx_is_asked_for(made, tmp_path):
    source, _, shrunk = made
    report = export_model(source, tmp_path / "out", layout="shrunk", format="safetensors")
    got = load_shrunk(tmp_path / "out").state_dict()
    assert all(torch.equal(got[name], one) for name, one in shrunk.module.state_dict().items())
    weights = {name: weight.numel() for name, weight in torch_layers(shrunk.module).items()}
    assert {layer["name"]: layer["weights"] for layer in report["layers"]} == weights
    assert [(one["of"], one["kept"]) for one in report["kept"]] == [(one.count, len(one.kept)) for one in shrunk.kept]
    assert report["max_abs_error"] < 1e-4 and len(report["shapes"]) >= 3
    with pytest.raises(UserError, match="shrunk already"):
        export_model(tmp_path / "out", tmp_path / "again", format="hf")


def test_a_shrunk_network_that_answers_otherwise_is_not_written(text, tmp_path, monkeypatch):
    from sparseticket.export import prepare

    def too_much(model):
        found = shrink(model)
        with torch.no_grad():
            found.module.bert.encoder.layer[1].output.dense.weight[0] += 0.1
        return found

    monkeypatch.setattr(prepare, "shrink", too_much)
    with pytest.raises(RunFailure, match=r"output 'logits' .* differs by up to"):
        export_model(text[0], tmp_path / "out", layout="shrunk", format="safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_shrunk_model_is_quantized_and_fused_as_any_other(text, tmp_path):
    report = export_model(text[0], tmp_path / "int8", layout="shrunk", quantize="dynamic", agreement=0.8)
    assert report["agreement"]["logits"] >= 0.8
    assert export_model(text[0], tmp_path / "fused", layout="shrunk", optimize="ort")["fused"]["attention"] == 2


def test_a_shrunk_folder_can_be_exported(vision, tmp_path):
    report = export_model(vision[1], tmp_path / "onnx")
    weights = {name: weight.numel() for name, weight in torch_layers(vision[2].module).items()}
    assert {layer["name"]: layer["weights"] for layer in report["layers"]} == weights


def test_the_export_is_compared_with_the_network_before_shrinking(text, tmp_path, monkeypatch):
    from sparseticket.export import shrink as shrinking

    monkeypatch.setattr(shrinking, "_read_entries", lambda backbone, family: [0])  # removes what is alive
    with pytest.raises(RunFailure, match="answers differently from PyTorch"):
        export_model(text[0], tmp_path / "out", layout="shrunk")
    assert not (tmp_path / "out").exists()


def test_a_model_without_dead_entries_has_no_shrunk_layout(classifier, tmp_path):
    with pytest.raises(UserError, match="nothing to remove"):
        export_model(classifier, tmp_path / "out", layout="shrunk")


def test_a_shrunk_folder_can_be_measured(text):
    from sparseticket.bench.candidates import find

    candidate = find("shrunk", str(text[1]))
    assert candidate.runtime == "pytorch" and candidate.bytes == (text[1] / "model.safetensors").stat().st_size


def test_a_folder_with_other_files_is_not_replaced(text, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="something else"):
        save_shrunk(text[2], tmp_path, source=text[0])
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_full_disk_leaves_an_earlier_folder_as_it_was(text, tmp_path, monkeypatch):
    folder = shutil.copytree(text[1], tmp_path / "shrunk")
    before = {item.name: item.read_bytes() for item in folder.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sparseticket.files.os.fsync", full)
    with pytest.raises(RunFailure, match="No space left"):
        save_shrunk(text[2], folder, source=text[0])
    assert {item.name: item.read_bytes() for item in folder.iterdir()} == before
    assert [item.name for item in tmp_path.iterdir()] == ["shrunk"]


def edit(change):
    def apply(folder):
        record = json.loads((folder / "shrink.json").read_text())
        change(record)
        (folder / "shrink.json").write_text(json.dumps(record))

    return apply


def layer(name, value):
    return edit(lambda record: record["layers"][0].update({name: value}))


def drop_tensor(folder):
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    del tensors["classifier.weight"]
    safetensors.torch.save_file(tensors, folder / "model.safetensors")


def not_finite(folder):
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["classifier.weight"][0, 0] = float("nan")
    safetensors.torch.save_file(tensors, folder / "model.safetensors")


DAMAGES = {
    "no record": (lambda folder: (folder / "shrink.json").unlink(), "holds no shrunk model"),
    "no JSON": (lambda folder: (folder / "shrink.json").write_text("{"), "JSON"),
    "a newer format": (edit(lambda record: record.update(format=2)), "has format 2"),
    "no layers": (edit(lambda record: record.update(layers={})), "should list layers"),
    "an unknown layer": (layer("layer", "encoder.layer.9.attention"), "has none there"),
    "an unknown kind": (layer("kind", "wings"), "has none there"),
    "another count": (layer("count", 3), "and BertForSequenceClassification has 2 there"),
    "nothing kept": (layer("kept", []), "cannot be"),
    "an index too high": (layer("kept", [2]), "cannot be"),
    "an index twice": (layer("kept", [1, 1]), "cannot be"),
    "an index that is no number": (layer("kept", ["1"]), "cannot be"),
    "a layer twice": (edit(lambda record: record["layers"].append(record["layers"][0])), "lists a layer twice"),
    "another number kept": (layer("kept", [0, 1]), "of another shape: bert.encoder.layer.0.attention"),
    "damaged weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"oops"), "missing or damaged"),
    "a missing tensor": (drop_tensor, "missing: classifier.weight"),
    "a NaN": (not_finite, "not finite: classifier.weight"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "an impossible configuration": (
        lambda folder: (folder / "config.json").write_text(
            '{"architectures": ["BertForSequenceClassification"], "hidden_size": 31, "num_attention_heads": 2}'
        ),
        "does not describe a BertForSequenceClassification",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_a_clear_error(text, tmp_path, damage):
    folder = shutil.copytree(text[1], tmp_path / "shrunk")
    break_it, words = DAMAGES[damage]
    break_it(folder)
    with pytest.raises(UserError, match=words):
        load_shrunk(folder)


def test_loading_leaves_the_random_generator_alone(text):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load_shrunk(text[1])
    assert torch.equal(torch.rand(1), expected)


def test_every_layer_of_a_loaded_network_states_its_size(made):
    for part in load_shrunk(made[1]).modules():
        if isinstance(part, nn.Linear):
            assert (part.out_features, part.in_features) == tuple(part.weight.shape)
        elif isinstance(part, nn.Conv2d):
            assert (part.out_channels, part.in_channels) == tuple(part.weight.shape[:2])
        elif isinstance(part, nn.BatchNorm2d):
            assert part.num_features == len(part.weight) == len(part.running_var)
