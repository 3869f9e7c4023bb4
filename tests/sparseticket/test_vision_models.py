import errno
import json
import os
import pickle
import urllib.error
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file

from sparseticket.errors import RunFailure, UserError
from sparseticket.models import Head, aliases, image_models, resolve
from sparseticket.models.cifar_resnet import PadShortcut
from sparseticket.models.vision import prunable_names
from sparseticket.models.vision_saved import describe_saved, load_saved
from sparseticket.settings import Protocol

TEN = Head("image-classification", 10)
DATA = os.environ.get("SPARSETICKET_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="SPARSETICKET_DATA is not set")


def resnet20():
    return resolve("resnet20-cifar")


def stored_resnet20(seed=7, classes=10):
    """A state_dict as a checkpoint would hold it, with BatchNorm statistics that are not the initial ones."""
    tensors = resnet20().build(Head("image-classification", classes), seed=seed).module.state_dict()
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and "bn" in name:
            tensor.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    return tensors


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "checkpoint.th"
    torch.save(stored_resnet20(), path)
    return path


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    ("alias", "tensors", "weights"),
    [
        ("resnet18", 19, 11_157_504),
        ("resnet50", 52, 23_445_504),
        ("resnet20-cifar", 18, 267_264),
        ("resnet56-cifar", 54, 847_872),
    ],
)
def test_every_convolution_but_the_stem_is_prunable_in_model_order(alias, tensors, weights):
    with torch.device("meta"):
        module = resolve(alias).make_module(10)
    names = prunable_names(module)
    parameters = dict(module.named_parameters())
    assert len(names) == tensors
    assert sum(parameters[name].numel() for name in names) == weights
    assert "conv1.weight" not in names and names[0].startswith("layer1.0.conv1")
    assert list(names) == [name for name in parameters if name in set(names)]


@pytest.mark.parametrize(("alias", "depth"), [("resnet20-cifar", 20), ("resnet32-cifar", 32), ("resnet44-cifar", 44)])
def test_a_cifar_resnet_has_as_many_layers_as_its_name_says(alias, depth):
    module = resolve(alias).make_module(10)
    assert len(prunable_names(module)) + 2 == depth
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_option_a_shortcut_takes_every_second_pixel_and_adds_empty_channels_on_both_sides():
    x = torch.arange(2 * 4 * 4, dtype=torch.float32).reshape(1, 2, 4, 4)
    y = PadShortcut(2)(x)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, 0].any() and not y[:, 3].any()


def test_building_draws_from_the_seed_alone_and_leaves_the_global_generator_as_it_was():
    before = torch.get_rng_state()
    first, again, other = (resnet20().build(TEN, seed=seed).module.state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert same(first, again)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    assert not torch.equal(first["linear.weight"], other["linear.weight"])


def test_without_weights_nothing_counts_as_pretrained_and_a_note_says_so():
    network = resnet20().build(TEN, seed=5)
    assert network.pretrained == frozenset() and not network.head_pretrained
    assert "random initialisation, drawn from the seed" in network.notes[0]
    assert network.notes == resnet20().build(TEN, seed=6).notes  # so that several seeds say it once


def test_a_checkpoint_of_ten_classes_brings_its_head_to_a_task_of_ten_classes(checkpoint):
    network = resnet20().build(TEN, seed=0, weights=checkpoint)
    assert same(network.module.state_dict(), torch.load(checkpoint, weights_only=True))
    assert network.head_pretrained and network.head == {"linear.weight", "linear.bias"}
    assert network.pretrained == network.backbone().keys()
    assert not network.head & network.backbone().keys()
    assert network.notes == [
        f"95 of the 95 tensors of the backbone come from {checkpoint}",
        f"the head came with {checkpoint}, too; it was not drawn from the seed",
    ]


def test_a_checkpoint_of_other_classes_keeps_its_backbone_and_gets_a_head_from_the_seed(checkpoint):
    seven = Head("image-classification", 7)
    network = resnet20().build(seven, seed=0, weights=checkpoint)
    state, stored = network.module.state_dict(), torch.load(checkpoint, weights_only=True)
    assert not network.head_pretrained
    assert all(torch.equal(state[name], stored[name]) for name in network.pretrained)
    assert state["linear.weight"].shape == (7, 64)
    fresh = resnet20().build(seven, seed=0).module.state_dict()
    assert torch.equal(state["linear.weight"], fresh["linear.weight"])


def wrap_in_state_dict(tensors):
    return {"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}, "best_prec1": 91.78}


def wrap_in_model(tensors):
    return {"model": {f"module.backbone.{name}": tensor for name, tensor in tensors.items()}, "epoch": 3}


@pytest.mark.parametrize("wrap", [wrap_in_state_dict, wrap_in_model])
@pytest.mark.parametrize("suffix", [".th", ".pt", ".pth", ".tar"])
def test_wrapped_checkpoints_load_as_the_plain_one(tmp_path, wrap, suffix):
    path = tmp_path / f"wrapped{suffix}"
    torch.save(wrap(stored_resnet20()), path)
    assert same(resnet20().build(TEN, seed=0, weights=path).module.state_dict(), stored_resnet20())


def test_safetensors_and_half_precision_load_as_fp32(tmp_path):
    halves = {name: t.half() if t.is_floating_point() else t for name, t in stored_resnet20().items()}
    save_file(halves, tmp_path / "half.safetensors")
    state = resnet20().build(TEN, seed=0, weights=tmp_path / "half.safetensors").module.state_dict()
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in state.values())
    assert all(torch.equal(state[name], halves[name].to(state[name].dtype)) for name in state)


def test_counters_that_the_file_lacks_are_not_pretrained(tmp_path):
    tensors = {name: t for name, t in stored_resnet20().items() if not name.endswith("num_batches_tracked")}
    torch.save(tensors, tmp_path / "old.th")
    network = resnet20().build(TEN, seed=0, weights=tmp_path / "old.th")
    assert network.pretrained == tensors.keys() - network.head
    assert "bn1.running_mean" in network.pretrained


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: {"state_dict": {"model": t}},
        lambda t: {"model": {"state_dict": t}},
        lambda t: {"state_dict": t, "model": {"name": "resnet20", "depth": 20}},  # settings beside the weights
    ],
)
def test_tensors_are_found_in_a_training_s_wrappers(tmp_path, wrap):
    tensors = stored_resnet20()
    torch.save(wrap(tensors), tmp_path / "w.pt")
    network = resnet20().build(TEN, seed=0, weights=tmp_path / "w.pt")
    assert torch.equal(network.backbone()["conv1.weight"], tensors["conv1.weight"])


def test_a_file_whose_counters_were_halved_with_the_rest_is_read_as_it_was(tmp_path):
    tensors = stored_resnet20()
    torch.save(
        {"state_dict": {}, "model": {name: tensor.half() for name, tensor in tensors.items()}}, tmp_path / "h.pt"
    )
    network = resnet20().build(TEN, seed=0, weights=tmp_path / "h.pt")
    counters = [name for name in tensors if name.endswith("num_batches_tracked")]
    assert counters and all(network.backbone()[name].dtype == torch.int64 for name in counters)
    assert torch.equal(network.backbone()["conv1.weight"], tensors["conv1.weight"].half().float())


def drop(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop("layer2.1.bn1.running_var"), "missing: layer2.1.bn1.running_var"),
        (lambda t: {**t, "layer1.3.conv1.weight": torch.zeros(1)}, "not in the model: layer1.3.conv1.weight"),
        (lambda t: {**t, "conv1.weight": torch.zeros(64, 3, 7, 7)}, "conv1.weight (64, 3, 7, 7) instead of"),
        (lambda t: {**t, "bn1.weight": torch.full((16,), float("nan"))}, "not finite: bn1.weight"),
        (lambda t: {**t, "bn1.running_var": torch.full((16,), -1.0)}, "negative variances: bn1.running_var"),
        (lambda t: {**t, "conv1.weight": t["conv1.weight"].to_sparse()}, "conv1.weight is sparse"),
        (
            lambda t: {**t, "conv1.weight": t["conv1.weight"].to("meta")},
            "conv1.weight is sparse, complex, quantized or without",
        ),
        (lambda t: {**t, "conv1.weight": t["conv1.weight"].to(torch.complex64)}, "conv1.weight is sparse, complex"),
        (lambda t: {"state_dict": t, "model": t}, "holds both state_dict and model"),
        (lambda t: {name: torch.zeros_like(tensor) for name, tensor in t.items()}, "all weights are 0"),
        (lambda t: {**t, "bn1.weight": torch.ones(16, dtype=torch.int64)}, "of another kind of number: bn1.weight"),
        (lambda t: {**t, "module.bn1.weight": t["bn1.weight"]}, "twice"),
        (lambda t: {"epoch": 3}, "no dictionary of tensors"),
        (lambda t: [1, 2], "no dictionary of tensors"),
        (lambda t: {}, "no dictionary of tensors"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, change, said):
    path = tmp_path / "bad.th"
    torch.save(change(stored_resnet20()), path)
    with pytest.raises(UserError) as refused:
        resnet20().build(TEN, seed=0, weights=path)
    assert said in str(refused.value) and str(path) in str(refused.value)


def test_weights_of_which_no_name_fits_are_not_said_to_be_0(tmp_path):
    torch.save({"features.0.weight": torch.ones(8, 3, 3, 3)}, tmp_path / "vgg.pth")
    with pytest.raises(UserError, match=r"0 of the \d+ tensors.*\n  not in the model: features.0.weight") as refused:
        resnet20().build(TEN, seed=0, weights=tmp_path / "vgg.pth")
    assert "all weights are 0" not in str(refused.value)


@needs_data
def test_a_resnet32_file_is_refused_for_a_resnet20():
    with pytest.raises(UserError, match=r"does not fit resnet20-cifar.*\n.*layer1\.3\.conv1\.weight"):
        resnet20().build(TEN, seed=0, weights=Path(DATA) / "resnet-cifar/resnet32-d509ac18.th")


@needs_data
@pytest.mark.parametrize("file", ["resnet20-12fca82f.th", "resnet32-d509ac18.th"])
def test_the_published_checkpoints_have_exactly_our_names(file):
    network = resolve(f"{file.split('-')[0]}-cifar").build(TEN, seed=0, weights=Path(DATA) / "resnet-cifar" / file)
    stored = torch.load(Path(DATA) / "resnet-cifar" / file, map_location="cpu", weights_only=True)["state_dict"]
    assert {f"module.{name}" for name in network.pretrained | network.head} == stored.keys()
    assert network.head_pretrained


class Explosive:
    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return (Path.touch, (self.witness,))


def test_a_file_that_would_run_code_is_refused_and_runs_nothing(tmp_path):
    witness = tmp_path / "ran"
    torch.save({"state_dict": Explosive(witness)}, tmp_path / "modern.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Explosive(witness)))
    for name in ("modern.pth", "plain.pth"):
        with pytest.raises(UserError, match="could run code"):
            resnet20().build(TEN, seed=0, weights=tmp_path / name)
    assert not witness.exists()


def test_files_that_are_damaged_absent_or_of_another_kind_are_refused(tmp_path, checkpoint):
    (tmp_path / "cut.th").write_bytes(checkpoint.read_bytes()[:5000])
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.safetensors").write_text("hello, this is no safetensors file")
    (tmp_path / "model.onnx").touch()
    for name in ("cut.th", "empty.pt", "text.safetensors", "model.onnx", "absent.pth", "."):
        with pytest.raises(UserError, match="--weights"):
            resnet20().build(TEN, seed=0, weights=tmp_path / name)


def test_a_vision_model_refuses_a_head_for_text():
    with pytest.raises(UserError, match="is for images"):
        resnet20().build(Head("masked-lm"), seed=0)


def test_without_a_network_the_error_names_the_weights_option(monkeypatch, tmp_path):
    def no_network(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"no network(.|\n)*--weights FILE"):
        resolve("resnet18").build(TEN, seed=0)


@pytest.fixture(scope="module")
def imagenet_like(tmp_path_factory):
    """A file as torchvision publishes them: 1000 classes, 7x7 stem."""
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    module = torchvision.models.resnet18()
    torch.nn.init.constant_(module.bn1.weight, 0.75)
    torch.save(module.state_dict(), path)
    return path


def test_messages_list_every_model_for_images():
    assert image_models() == [alias for alias in aliases() if resolve(alias).kind == "vision"]


def test_a_folder_may_be_called_as_a_model_of_torchvision_that_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="swin_t of torchvision is not taken"):
        resolve("swin_t")
    (tmp_path / "swin_t").mkdir()
    (tmp_path / "swin_t" / "config.json").write_text("{}")
    assert resolve("swin_t").kind == "text"


def test_random_weights_need_no_network_and_are_for_vision_models_only(monkeypatch):
    from accelerate import Accelerator

    from sparseticket.models.torchvision_resnet import TorchvisionResNet
    from sparseticket.progress import Screen
    from sparseticket.tasks import TaskOptions
    from sparseticket.workbench import Workbench

    def no_network(spec):
        raise AssertionError("the usual weights were asked for")

    monkeypatch.setattr(TorchvisionResNet, "default_weights", no_network)
    build = {"seed": 3, "weights": Path("random"), "accelerator": Accelerator(cpu=True), "screen": Screen()}
    work = Workbench.build("resnet18", "digits", TaskOptions(), **build)
    assert work.random_backbone and len(work.prunable(Protocol())) == 19
    drawn = work.spec.build(work.task.head, seed=3).module.state_dict()
    assert same(work.network.module.state_dict(), drawn)
    with pytest.raises(UserError, match="random ones are for vision models"):
        Workbench.build("bert-base", "order", TaskOptions(), **build)


def test_the_small_stem_draws_conv1_fresh_and_keeps_everything_else(imagenet_like):
    spec = resolve("resnet18").for_images(32)
    network = spec.build(TEN, seed=0, weights=imagenet_like)
    state, stored = network.module.state_dict(), torch.load(imagenet_like, weights_only=True)
    assert spec.format.size == 32 and spec.small_stem
    assert state["conv1.weight"].shape == (64, 3, 3, 3)
    assert network.pretrained == stored.keys() - {"conv1.weight", "fc.weight", "fc.bias"}
    assert all(torch.equal(state[name], stored[name]) for name in network.pretrained)
    assert "conv1" in network.notes[0]
    assert network.module.layer4(torch.zeros(1, 256, 8, 8)).shape == (1, 512, 4, 4)
    widths = []
    network.module.layer1.register_forward_pre_hook(lambda module, inputs: widths.append(inputs[0].shape[-1]))
    network.module.eval()(torch.zeros(1, 3, 32, 32))
    assert widths == [32]


def test_a_network_trained_with_the_small_stem_is_loaded_with_its_conv1(imagenet_like, tmp_path):
    spec = resolve("resnet18").for_images(32)
    network = spec.build(TEN, seed=0, weights=imagenet_like)
    network.save(tmp_path / "model")
    again = spec.build(TEN, seed=1, weights=tmp_path / "model/model.safetensors")
    assert "conv1.weight" in again.pretrained and again.head_pretrained
    assert same(again.module.state_dict(), network.module.state_dict())


def test_a_saved_resnet18_loads_in_plain_torchvision_and_computes_the_same(imagenet_like, tmp_path):
    network = resolve("resnet18").build(Head("image-classification", 3), seed=0, weights=imagenet_like)
    network.save(tmp_path / "model")
    plain = torchvision.models.resnet18(num_classes=3)
    plain.load_state_dict(load_file(tmp_path / "model/model.safetensors"))
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = network.module.eval()(pixels)
    assert torch.equal(plain.eval()(pixels), expected)
    loaded = load_saved(tmp_path / "model")
    assert not loaded.training and torch.equal(loaded(pixels), expected)


def test_the_description_says_how_to_feed_a_saved_model(tmp_path):
    resnet20().build(TEN, seed=0).save(tmp_path / "model")
    written = json.loads((tmp_path / "model/model.json").read_text())
    assert written == {
        "architecture": "resnet20-cifar",
        "classes": 10,
        "class_names": None,
        "size": 32,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "small_stem": False,
        "head": "image-classification",
    }
    assert describe_saved(tmp_path / "model").mean == (0.485, 0.456, 0.406)


def test_saving_again_replaces_the_model(tmp_path):
    resnet20().build(TEN, seed=0).save(tmp_path / "model")
    second = resnet20().build(TEN, seed=1)
    second.save(tmp_path / "model")
    assert same(load_saved(tmp_path / "model").state_dict(), second.module.state_dict())
    assert sorted(os.listdir(tmp_path / "model")) == ["model.json", "model.safetensors"]
    assert os.listdir(tmp_path) == ["model"]


def test_a_model_is_not_saved_over_other_files_even_beside_an_earlier_save(tmp_path):
    first = resnet20().build(TEN, seed=0)
    first.save(tmp_path / "model")
    (tmp_path / "model/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        resnet20().build(TEN, seed=1).save(tmp_path / "model")
    assert (tmp_path / "model/notes.txt").read_text() == "mine"
    assert same(load_saved(tmp_path / "model").state_dict(), first.module.state_dict())


def test_a_full_disk_leaves_the_saved_model_that_was_there_and_no_half_one(tmp_path, monkeypatch):
    first = resnet20().build(TEN, seed=0)
    first.save(tmp_path / "model")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("sparseticket.files.os.fsync", full)
    for folder in ("model", "new"):
        with pytest.raises(RunFailure, match="No space left"):
            resnet20().build(TEN, seed=1).save(tmp_path / folder)
    assert os.listdir(tmp_path) == ["model"]
    assert same(load_saved(tmp_path / "model").state_dict(), first.module.state_dict())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architecture", "minilm"),
        ("architecture", "."),
        ("classes", 11),
        ("classes", -1),
        ("size", "32"),
        ("std", [0, 0, 0]),
        ("mean", [float("nan")] * 3),
        ("class_names", ["one"]),
        ("surprise", 1),
    ],
)
def test_a_description_that_does_not_fit_is_refused(tmp_path, monkeypatch, field, value):
    resnet20().build(TEN, seed=0).save(tmp_path / "model")
    path = tmp_path / "model/model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    monkeypatch.chdir(path.parent)
    with pytest.raises(UserError):
        load_saved(tmp_path / "model")


def test_a_saved_vision_model_as_a_model_says_which_options_it_takes(tmp_path):
    resnet20().build(TEN, seed=0).save(tmp_path / "model")
    with pytest.raises(UserError, match=r"--model resnet20-cifar --weights \S+model.safetensors$"):
        resolve(str(tmp_path / "model"))


def test_a_folder_without_a_model_or_with_a_damaged_one_is_refused(tmp_path):
    with pytest.raises(UserError, match="no saved vision model"):
        load_saved(tmp_path)
    resnet20().build(TEN, seed=0).save(tmp_path / "model")
    path = tmp_path / "model/model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="safetensors"):
        load_saved(tmp_path / "model")
