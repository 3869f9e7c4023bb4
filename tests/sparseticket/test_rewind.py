import pytest
import torch

from sparseticket.errors import RunFailure
from sparseticket.models import Head, resolve
from sparseticket.rewind import Origin, head_state


@pytest.fixture
def network(tiny_bert):
    return resolve(str(tiny_bert)).build(Head("sequence-classification", 2), seed=0)


@pytest.fixture
def resnet():
    return resolve("resnet20-cifar").build(Head("image-classification", 10), seed=0)


def disturb(network):
    with torch.no_grad():
        for tensor in network.module.state_dict().values():
            tensor.add_(1)


def test_a_rewind_restores_every_weight_and_buffer_bit_for_bit(network, resnet):
    for net in (network, resnet):
        before = {name: tensor.clone() for name, tensor in net.module.state_dict().items()}
        origin = Origin.of(net)
        disturb(net)
        origin.restore(net)
        after = net.module.state_dict()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert any("running_mean" in name for name in before) and any("num_batches" in name for name in before)


def test_the_original_is_no_alias_of_the_live_weights(network):
    origin = Origin.of(network)
    live = network.backbone() | head_state(network)
    kept = [*origin.backbone.values(), *origin.head.values()]
    assert not {t.data_ptr() for t in live.values()} & {t.data_ptr() for t in kept}


def test_each_part_goes_back_only_where_it_is_chosen(network):
    origin = Origin.of(network)
    head = next(iter(network.head))
    name = network.prunable[0]
    disturb(network)
    origin.restore(network, head=False)
    assert torch.equal(network.backbone()[name], origin.backbone[name])
    assert torch.equal(head_state(network)[head], origin.head[head] + 1)
    disturb(network)
    origin.restore(network, backbone=False)
    assert torch.equal(network.backbone()[name], origin.backbone[name] + 1)
    assert torch.equal(head_state(network)[head], origin.head[head])


def test_an_original_that_was_changed_after_it_was_taken_is_found_out(network):
    origin = Origin.of(network)
    name = network.prunable[-1]
    origin.backbone[name][0, 0] += 1
    with pytest.raises(RunFailure, match=name):
        origin.restore(network)
