"""Permuting a network changes none of its outputs: real BERTs and ResNets, with biases and trained statistics."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock, Bottleneck
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    MPNetConfig,
    MPNetModel,
)

from sparseticket.errors import UserError
from sparseticket.models import Network, resolve
from sparseticket.models.cifar_resnet import CifarResNetModule
from sparseticket.permute import axes, permute, permuted

INPUTS = {"input_ids": torch.arange(2, 18).reshape(2, 8), "attention_mask": torch.tensor([[1] * 8, [1] * 5 + [0] * 3])}


def network(module, prefix):
    """As the models' own ``build`` describes it, with every vector drawn: biases, LayerNorms, statistics."""
    torch.manual_seed(1)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.copy_(torch.rand_like(tensor) + (0.5 if name.endswith(("weight", "running_var")) else -0.3))
    state = module.state_dict(keep_vars=True)
    shared = {id(tensor) for name, tensor in state.items() if prefix and name.startswith(prefix)}
    head = frozenset(
        n for n, t in state.items() if (id(t) not in shared if prefix else n.startswith(("fc.", "linear.")))
    )
    spec = SimpleNamespace(name="tiny")
    return Network(spec, module.eval(), prefix, (), head, frozenset())


def bert(kind=BertForSequenceClassification, heads=2, head_dim=4, neurons=12, layers=2, **more):
    config = BertConfig(
        vocab_size=30,
        hidden_size=heads * head_dim,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=neurons,
        max_position_embeddings=16,
        attn_implementation="eager",
        **more,
    )
    return network(kind(config), "" if kind is BertModel else "bert.")


def drawn(known, seed):
    """A random permutation of every axis, heads moving alike."""
    torch.manual_seed(seed)
    found, heads = {}, {}
    for name, axis in known.items():
        if axis.heads is None:
            order = torch.randperm(axis.count)
        else:
            size, layer = axis.count // axis.heads, name.partition("/")[2]
            of_heads = heads.setdefault(layer, torch.randperm(axis.heads))
            order = torch.cat([int(head) * size + torch.randperm(size) for head in of_heads])
        found[name] = order.to(torch.int32)
    return found


@torch.no_grad()
def outputs(net):
    if net.prefix:
        return net.module(**INPUTS)[0]
    torch.manual_seed(5)
    return net.module(torch.randn(2, 3, 32, 32))


def changes_nothing(net, permutations):
    before, weights = outputs(net), {name: t.detach().clone() for name, t in net.backbone().items()}
    permute(net, permutations)
    assert before.std() > 1e-3
    torch.testing.assert_close(outputs(net), before, atol=2e-5, rtol=1e-4)
    known = axes(net.backbone_module)
    for name, was in permuted(weights, permutations, known).items():
        assert torch.equal(was, net.backbone()[name]), name
    ends = {end.name for axis in known.values() for end in axis.ends}
    assert any(not torch.equal(weights[name], net.backbone()[name]) for name in ends)


@settings(max_examples=12, deadline=None)
@given(
    heads=st.integers(1, 4),
    head_dim=st.integers(2, 5),
    neurons=st.integers(2, 20),
    layers=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_a_bert_gives_the_same_outputs_under_any_permutation_of_every_axis(heads, head_dim, neurons, layers, seed):
    net = bert(heads=heads, head_dim=head_dim, neurons=neurons, layers=layers)
    known = axes(net.backbone_module)
    assert len(known) == 1 + 3 * layers
    changes_nothing(net, drawn(known, seed))


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertForQuestionAnswering])
@pytest.mark.parametrize("tied", [True, False])
def test_heads_on_hidden_states_are_permuted_along(kind, tied):
    net = bert(kind, tie_word_embeddings=tied)
    changes_nothing(net, drawn(axes(net.backbone_module), 3))


def test_a_distilbert_has_no_residual_axis_and_keeps_its_outputs_too():
    config = DistilBertConfig(vocab_size=30, dim=8, n_layers=2, n_heads=2, hidden_dim=12, max_position_embeddings=16)
    net = network(DistilBertForSequenceClassification(config), "distilbert.")
    known = axes(net.backbone_module)
    assert "residual" not in known and len(known) == 6
    changes_nothing(net, drawn(known, 0))


def test_heads_that_a_table_of_relative_positions_tells_apart_are_no_axis():
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    assert list(axes(MPNetModel(MPNetConfig(vocab_size=30, **small)))) == ["neurons/encoder.layer.0"]


@pytest.mark.parametrize(
    ("module", "count"),
    [
        (lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5), 4),
        (lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5), 8),
        (lambda: CifarResNetModule(1, 5), 3),
    ],
)
def test_a_resnet_gives_the_same_outputs_with_its_inner_channels_permuted(module, count):
    net = network(module(), "")
    known = axes(net.backbone_module)
    assert len(known) == count
    changes_nothing(net, drawn(known, 0))


def test_what_does_not_fit_is_refused_and_the_network_stays_as_it_was():
    net = bert()
    known = axes(net.backbone_module)
    good, pair = drawn(known, 0), "query-key/encoder.layer.0.attention"
    before = {name: tensor.detach().clone() for name, tensor in net.backbone().items()}
    torn = torch.tensor([0, 4, 2, 3, 1, 5, 6, 7], dtype=torch.int32)
    swapped = torch.tensor([4, 5, 6, 7, 0, 1, 2, 3], dtype=torch.int32)
    alone = {pair: swapped}
    for wrong, says in [
        ({**good, "neurons/encoder.layer.7": good["residual"]}, "does not have"),
        ({**good, "residual": torch.arange(9, dtype=torch.int32)}, "none of the 8 entries"),
        ({**good, "residual": torch.tensor([0, 0, 1, 2, 3, 4, 5, 6], dtype=torch.int32)}, "none of the 8 entries"),
        ({**good, pair: torn}, "tears heads apart"),
        (alone, "tears heads apart"),
    ]:
        with pytest.raises(UserError, match=says):
            permute(net, wrong)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.backbone().items())


@pytest.mark.parametrize("kind", [BertForTokenClassification, BertModel])
def test_a_head_whose_part_in_the_hidden_dimension_is_not_known_refuses_that_permutation_only(kind):
    net = bert(kind)
    found = drawn(axes(net.backbone_module), 0)
    with pytest.raises(UserError, match="hidden dimension"):
        permute(net, found)
    del found["residual"]
    permute(net, found)


def test_minilm_has_one_axis_of_each_kind_a_layer():
    from sparseticket.models import Head

    net = resolve("minilm").build(Head("sequence-classification", 2), seed=0)
    known = axes(net.backbone_module)
    counts = {name: axis.count for name, axis in known.items() if name.endswith(("residual", "layer.5", "5.attention"))}
    assert len(known) == 19 and sorted(counts.values()) == [384, 384, 384, 1536]
    covered = {(end.name, end.dim) for axis in known.values() for end in axis.ends}
    matrices = [name for name in net.prunable if not name.startswith("pooler.")]
    assert all((name, dim) in covered for name in matrices for dim in (0, 1))
