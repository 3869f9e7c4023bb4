"""Checkpoints in the layouts that MoCo v2 and SimCLRs are published in, made from real torchvision ResNets."""

import pytest
import torch
import torchvision
from papers import SEQUENCE
from torch import nn

from sparseticket.errors import UserError
from sparseticket.models import Head, resolve
from sparseticket.models.vision_layouts import convert
from sparseticket.recipes import load
from sparseticket.schedule import round_sparsities

PROJECTION = Head("projection", 128)
TEN = Head("image-classification", 10)


def resnet18(fc=None):
    module = torchvision.models.resnet18()
    module.fc = fc if fc is not None else module.fc
    return module.state_dict()


def mlp():
    return nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))


class VisionPapersHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(512, 512), nn.Linear(512, 128)


def moco_file(encoder, momentum):
    """As moco_v2_800ep_pretrain.pth.tar: saved from DistributedDataParallel of a MoCo with optimizer and epoch."""
    state = {f"module.encoder_q.{name}": tensor for name, tensor in encoder.items()}
    state |= {f"module.encoder_k.{name}": tensor for name, tensor in momentum.items()}
    state |= {"module.queue": torch.randn(128, 64), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.03, "params": [0]}]}
    return {"epoch": 800, "arch": "resnet18", "state_dict": state, "optimizer": optimizer}


def built(tmp_path, content, head=TEN, alias="resnet18"):
    torch.save(content, tmp_path / "file.pth.tar")
    return resolve(alias).build(head, seed=0, weights=tmp_path / "file.pth.tar")


def assert_holds(network, stored):
    """Every tensor of ``stored`` that the network names is in it, bit for bit."""
    live = network.module.state_dict()
    shared = [name for name in stored if not name.startswith("fc.")]
    assert len(shared) == 120 and all(torch.equal(live[name], stored[name]) for name in shared)


def test_a_moco_checkpoint_brings_encoder_and_projection_head_and_leaves_the_momentum_encoder_and_the_queue(tmp_path):
    encoder = resnet18(mlp())
    network = built(tmp_path, moco_file(encoder, resnet18(mlp())), PROJECTION)
    assert_holds(network, encoder)
    live = network.module.state_dict()
    assert network.head == {f"fc.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")}
    assert network.head_pretrained and all(torch.equal(live[name], encoder[name]) for name in network.head)
    assert "100 of the 100 tensors of the backbone" in network.notes[0]
    assert "124 of its momentum encoder" in network.notes[0] and "2 of its queue" in network.notes[0]
    assert "not in it" not in network.notes[0]


def test_for_classification_the_mlp_head_of_moco_is_left_and_named(tmp_path):
    encoder = resnet18(mlp())
    network = built(tmp_path, moco_file(encoder, encoder))
    assert_holds(network, encoder)
    assert not network.head_pretrained and network.module.fc.out_features == 10
    assert "4 that do not fit this network (fc.0.weight, fc.0.bias, fc.2.weight)" in network.notes[0]


@pytest.mark.parametrize("head", ["detection", "segmentation", "segmentation-v3"])
def test_a_backbone_of_a_scene_network_says_what_came_from_the_file(tmp_path, head):
    encoder = resnet18(mlp())
    note = built(tmp_path, moco_file(encoder, encoder), Head(head, 3)).notes[0]
    assert note.startswith("100 of the 100 tensors of the backbone come from")
    assert "4 that do not fit this network (fc.0.weight" in note and "124 of its momentum encoder" in note


def test_the_lincls_layout_of_moco_v1_with_one_linear_head_loads_too(tmp_path):
    encoder = resnet18(nn.Linear(512, 128))
    assert_holds(built(tmp_path, moco_file(encoder, encoder), PROJECTION), encoder)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone.", "encoder.", "module.encoder."])
def test_simclr_checkpoints_load_whatever_wraps_them(tmp_path, prefix):
    stored = resnet18(mlp())
    network = built(tmp_path, {"state_dict": {prefix + name: t for name, t in stored.items()}}, PROJECTION)
    assert_holds(network, stored)
    assert network.head_pretrained


def test_a_projection_head_of_another_form_is_left_and_named_where_the_backbone_fits(tmp_path):
    stored = resnet18(nn.Sequential(*mlp(), nn.ReLU(), nn.Linear(128, 128)))
    network = built(tmp_path, {"state_dict": stored}, PROJECTION)
    assert_holds(network, stored)
    assert not network.head_pretrained and "6 that do not fit this network (fc.0.weight" in network.notes[0]


def test_the_vision_papers_simclr_head_is_our_projection_head_under_other_names(tmp_path):
    stored = resnet18(VisionPapersHead())
    network = built(
        tmp_path, {"epoch": 10, "state_dict": {f"module.{name}": t for name, t in stored.items()}}, PROJECTION
    )
    assert network.head_pretrained
    assert torch.equal(network.module.fc[0].weight, stored["fc.fc1.weight"])
    assert torch.equal(network.module.fc[2].bias, stored["fc.fc2.bias"])


def test_a_simclr_converted_from_tensorflow_keeps_its_linear_classifier_only_for_as_many_classes(tmp_path):
    stored = resnet18()
    content = {"state_dict": stored}
    assert built(tmp_path, content, Head("image-classification", 1000)).head_pretrained
    network = built(tmp_path, content, PROJECTION)
    assert_holds(network, stored)
    assert not network.head_pretrained and "2 that do not fit this network (fc.weight, fc.bias)" in network.notes[0]


def test_projectors_classifiers_and_momentum_copies_beside_a_backbone_are_left_and_counted(tmp_path):
    stored = {name: t for name, t in resnet18().items() if not name.startswith("fc.")}
    content = {f"backbone.{name}": t for name, t in stored.items()}
    content |= {f"momentum_backbone.{name}": t for name, t in stored.items()}
    content |= {"projector.0.weight": torch.zeros(2, 2), "classifier.weight": torch.zeros(3)}
    network = built(tmp_path, {"state_dict": content}, PROJECTION)
    assert_holds(network, stored)
    for said in ("120 of its momentum encoder", "1 of its projection head", "1 of its classifier"):
        assert said in network.notes[0]


def test_the_small_stem_is_said_to_be_missing_where_the_file_has_the_large_one(tmp_path):
    torch.save(moco_file(resnet18(mlp()), {}), tmp_path / "file.pth.tar")
    network = resolve("resnet18").for_images(32).build(TEN, seed=0, weights=tmp_path / "file.pth.tar")
    assert "conv1.weight" not in network.pretrained and "bn1.weight" in network.pretrained
    assert "99 of the 100 tensors of the backbone" in network.notes[0]
    assert "not in it: conv1.weight" in network.notes[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda q: {n: t for n, t in q.items() if not n.startswith("layer4.1.")}, "90 of the 100 tensors"),
        (lambda q: {**q, "layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}, "99 of the 100 tensors"),
        (lambda q: {}, "0 of the 100 tensors"),
    ],
)
def test_a_file_that_covers_too_little_is_refused_with_how_much_it_covers(tmp_path, change, said):
    encoder = resnet18(mlp())
    with pytest.raises(UserError, match=said):
        built(tmp_path, moco_file(change(encoder), encoder), PROJECTION)


def test_the_momentum_encoder_alone_is_not_taken_for_the_encoder(tmp_path):
    state = {f"module.encoder_k.{name}": tensor for name, tensor in resnet18(mlp()).items()}
    with pytest.raises(UserError, match="0 of the 100 tensors"):
        built(tmp_path, {"state_dict": state}, PROJECTION)


def test_two_wrapped_copies_of_one_tensor_are_refused():
    with pytest.raises(UserError, match=r"twice: conv1\.weight"):
        convert({"module.conv1.weight": torch.zeros(1), "conv1.weight": torch.zeros(1)}, "the file")


@pytest.mark.parametrize(("alias", "tensors"), [("resnet50", 320), ("resnet152", 932)])
def test_the_names_of_a_moco_resnet_are_converted_to_exactly_torchvisions(alias, tensors):
    with torch.device("meta"):
        names = torchvision.models.get_model(alias).state_dict()
    found = convert({f"module.encoder_q.{name}": tensor for name, tensor in names.items()}, "the file")
    assert found.tensors.keys() == names.keys() and len(names) == tensors and not found.left


@pytest.mark.parametrize(
    ("recipe", "target"), [("imagenet", 67.23), ("simclr", 59.04), ("moco", 95.6)], ids=["imagenet", "simclr", "moco"]
)
@pytest.mark.parametrize("variant", ["", "-released"])
def test_the_pre_training_recipes_prune_first_and_go_the_papers_way_to_its_highest_winning_ticket(
    recipe, target, variant
):
    protocol = load(f"cvpr21/{recipe}{variant}").settings.protocol
    sparsities = [round(100 * sparsity, 2) for sparsity in protocol.sparsities()]
    assert protocol.prune_first and sparsities == SEQUENCE[: SEQUENCE.index(target) + 1]


def test_twenty_percent_a_round_are_the_papers_sparsities_to_two_decimals():
    rounded = [round(100 * sparsity, 2) for sparsity in round_sparsities("geometric:0.2", 0.982, prune_first=True)]
    assert rounded == [*SEQUENCE, 98.2]
