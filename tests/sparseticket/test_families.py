import pytest
import torch
import torchvision
from torch import nn
from transformers import AutoModel

from sparseticket.models import resolve
from sparseticket.models.families import KINDS, families

ENCODERS = ("bert", "roberta", "electra", "distilbert")
RESNETS = ("resnet20-cifar", "resnet18", "resnet50")
CASES = [(name, kind) for name in ENCODERS for kind in ("heads", "neurons")] + [(name, "channels") for name in RESNETS]


@torch.no_grad()
def lived_in(module):
    """Biases and BatchNorm as after training: nothing is 0 or 1 by chance."""
    draw = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict(keep_vars=True).items():
        if name.endswith(("bias", "running_mean")):
            tensor.normal_(0, 0.3, generator=draw)
        elif tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5, generator=draw)
    return module.eval()


def network(name, tiny_folders):
    """A backbone and what it is fed."""
    torch.manual_seed(0)
    if name in tiny_folders:
        return lived_in(AutoModel.from_pretrained(tiny_folders[name])), torch.randint(5, 90, (2, 9))
    if name == "resnet20-cifar":
        return lived_in(resolve(name).make_module(10)), torch.rand(2, 3, 32, 32)
    return lived_in(torchvision.models.get_model(name, num_classes=7)), torch.rand(2, 3, 64, 64)


@torch.no_grad()
def output(module, fed):
    found = module(fed)
    return found if isinstance(found, torch.Tensor) else found.last_hidden_state


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_entries_fill_their_dimension_at_every_end(name, kind, tiny_folders):
    module, _ = network(name, tiny_folders)
    state, found = module.state_dict(), families(module, kind)
    assert found and len({family.layer for family in found}) == len(found)
    for family in found:
        assert family.kind == kind and module.get_submodule(family.layer) is not None
        assert all(state[end.name].shape[end.dim] == family.count * end.size for end in family.slices)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_permuting_every_end_alike_changes_no_output_so_no_end_is_forgotten(name, kind, tiny_folders):
    module, fed = network(name, tiny_folders)
    before, state = output(module, fed), module.state_dict()
    for family in families(module, kind):
        order = torch.randperm(family.count)
        for end in family.slices:
            index = (order[:, None] * end.size + torch.arange(end.size)).flatten()
            state[end.name].copy_(state[end.name].index_select(end.dim, index))
    torch.testing.assert_close(output(module, fed), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_an_entry_whose_one_end_is_zero_gives_nothing_whatever_stands_at_the_other(name, kind, tiny_folders):
    module, fed = network(name, tiny_folders)
    state = module.state_dict()
    learned = {name for name, _ in module.named_parameters()}
    for dead_end in (0, 1):  # 0: all that the entry is made by; 1: all that reads it
        for family in families(module, kind):
            for end in family.slices:
                if end.dim == dead_end and end.name in learned:
                    state[end.name].narrow(end.dim, end.size, end.size).zero_()
        before = output(module, fed)
        for family in families(module, kind):
            for end in family.slices:
                if end.dim != dead_end or end.name not in learned:
                    state[end.name].narrow(end.dim, end.size, end.size).add_(0.5)
        assert torch.equal(output(module, fed), before)


@pytest.mark.parametrize(("name", "counts"), [("bert", (2, 2, 0)), ("resnet18", (0, 0, 8)), ("resnet50", (0, 0, 32))])
def test_a_model_has_the_kinds_that_it_is_made_of(name, counts, tiny_folders):
    module, _ = network(name, tiny_folders)
    assert tuple(len(families(module, kind)) for kind in KINDS) == counts
    assert families(nn.Linear(3, 3), "heads") == []


def test_the_ends_of_a_bert_layer_and_of_a_bottleneck_are_these(tiny_folders):
    bert, _ = network("bert", tiny_folders)
    ends = {(end.name, end.dim, end.size) for end in families(bert, "heads")[1].slices}
    inside = "encoder.layer.1.attention"
    assert ends == {
        *(
            (f"{inside}.self.{which}.{part}", 0, 16)
            for which in ("query", "key", "value")
            for part in ("weight", "bias")
        ),
        (f"{inside}.output.dense.weight", 1, 16),
    }
    second = families(torchvision.models.resnet50(), "channels")[1]
    assert second.layer == "layer1.0.conv2" and second.count == 64
    assert {(end.name, end.dim) for end in second.slices} == {
        ("layer1.0.conv2.weight", 0),
        *((f"layer1.0.bn2.{part}", 0) for part in ("weight", "bias", "running_mean", "running_var")),
        ("layer1.0.conv3.weight", 1),
    }
