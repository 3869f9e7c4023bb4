"""ResNets under detectors and segmenters: what is backbone and what is head, dilation, files written and read."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from sparseticket.errors import UserError
from sparseticket.models import Head, resolve
from sparseticket.models.detector import OUTPUTS
from sparseticket.models.scene import MODULES, head_of
from sparseticket.models.stages import dilate, stage_names, stages_of
from sparseticket.models.vision_saved import load_saved

RESNET20 = resolve("resnet20-cifar").for_images(64)
RESNET18 = resolve("resnet18").for_images(64)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Pre-trained files of two classifiers, by model."""
    root, files = tmp_path_factory.mktemp("weights"), {}
    for name, spec in (("resnet20-cifar", RESNET20), ("resnet18", RESNET18)):
        tensors = spec.random_module(Head("image-classification", 1000), 7).state_dict()
        files[name] = root / f"{name}.safetensors"
        save_file(tensors, files[name])
    return files


def network(spec, kind, weights, seed=0):
    return spec.build(Head(kind, 3), seed=seed, weights=weights[spec.name])


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("spec", [RESNET20, RESNET18], ids=lambda spec: spec.name)
def test_a_backbone_has_the_names_and_weights_of_the_classifier_and_all_else_is_the_head(spec, kind, weights):
    classifier = spec.build(Head("image-classification", 3), seed=0, weights=weights[spec.name])
    found = network(spec, kind, weights)
    assert found.prunable == classifier.prunable and found.pretrained == classifier.pretrained
    theirs, ours = classifier.backbone(), found.backbone()
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in theirs)
    everything = set(found.module.state_dict())
    assert everything - found.head == {found.prefix + name for name in ours}
    assert found.head and not any(name.removeprefix(found.prefix) in found.prunable for name in found.head)


@pytest.mark.parametrize("kind", MODULES)
def test_the_head_is_drawn_from_the_seed_and_the_backbone_is_not(kind, weights):
    first, again, other = (network(RESNET20, kind, weights, seed=seed) for seed in (0, 0, 1))
    states = [found.module.state_dict() for found in (first, again, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    differ = {name for name in states[0] if not torch.equal(states[0][name], states[2][name])}
    assert differ and differ <= first.head


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("spec", [RESNET20, RESNET18], ids=lambda spec: spec.name)
def test_a_saved_network_is_loaded_as_it_was(spec, kind, weights, tmp_path):
    found = network(replace(spec, class_names=("a", "b", "c")), kind, weights)
    found.save(tmp_path / "model")
    loaded = load_saved(tmp_path / "model")
    assert head_of(loaded) == Head(kind, 3)
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours, theirs = found.module.eval()(pixels), loaded(pixels)
    if kind == "detection":
        assert tuple(ours) == OUTPUTS and ours["class_logits"].shape[2] == 3
        assert all(torch.equal(ours[name], theirs[name]) for name in OUTPUTS)
    else:
        assert ours.shape == (2, 3, 64, 64) and torch.equal(ours, theirs)


def test_a_description_of_an_unknown_head_is_refused_and_one_without_a_head_is_a_classifier(tmp_path):
    RESNET20.build(Head("image-classification", 3), seed=0).save(tmp_path / "model")
    file = tmp_path / "model" / "model.json"
    description = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in description.items() if name != "head"}))
    assert head_of(load_saved(tmp_path / "model")) is None
    file.write_text(json.dumps(description | {"head": "pose"}))
    with pytest.raises(UserError, match="a value that it cannot have"):
        load_saved(tmp_path / "model")


@pytest.mark.parametrize("kind", MODULES)
def test_small_images_get_the_small_stem_under_these_heads_as_under_a_classifier(kind, weights):
    small = network(resolve("resnet18").for_images(32), kind, weights)
    stem = small.backbone()["conv1.weight"]
    assert stem.shape[-2:] == (3, 3) and "conv1.weight" not in small.pretrained
    assert "its 3x3 conv1 is drawn from the seed" in small.notes[-1]


def test_weights_of_another_backbone_are_refused(weights):
    with pytest.raises(UserError, match="does not fit resnet18"):
        RESNET18.build(Head("detection", 3), seed=0, weights=weights["resnet20-cifar"])


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_dilated_stage_keeps_its_resolution_and_sees_as_far(name):
    """At the places that both have, a network whose last stages are dilated answers as it did."""
    spec = resolve(name)
    plain, dilated = (spec.random_module(Head("image-classification", 1), 0).eval() for _ in range(2))
    dilate(dilated, stages=2)
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours, theirs = (stages_of(module, pixels, stage_names(module)) for module in (dilated, plain))
    assert ours["layer2"].shape[-1] == ours["layer3"].shape[-1] == ours["layer4"].shape[-1] == 8
    assert torch.allclose(ours["layer3"][..., ::2, ::2], theirs["layer3"], rtol=1e-4, atol=1e-4)
    assert torch.allclose(ours["layer4"][..., ::4, ::4], theirs["layer4"], rtol=1e-4, atol=1e-4)


def test_dilation_is_torchvision_s_own_for_bottlenecks():
    import torchvision

    theirs = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True])
    ours = torchvision.models.resnet50()
    dilate(ours, stages=2)

    def geometry(module):
        return {
            name: (part.stride, part.padding, part.dilation)
            for name, part in module.named_modules()
            if isinstance(part, torch.nn.Conv2d)
        }

    assert geometry(ours) == geometry(theirs)
