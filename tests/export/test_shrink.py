import copy

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from sparseticket.errors import UserError
from sparseticket.export.shrink import backbone_of, shrink
from sparseticket.models.cifar_resnet import CifarResNetModule
from sparseticket.models.families import KINDS, families
from sparseticket.pruning.pruner import Pruner

FEW = settings(max_examples=20, deadline=None, derandomize=True)


def randomize(module, seed, scale=0.5):
    """Every parameter drawn, biases and BatchNorm's weights too."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=draw))
    return module


def bert(seed, *, layers=2, heads=4, head_size=4, neurons=12, kind="BertForSequenceClassification"):
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=heads * head_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=neurons,
        max_position_embeddings=20,
    )
    return randomize(getattr(transformers, kind)(config), seed).eval()


def resnet(seed, make):
    """A ResNet whose BatchNorms have seen some images."""
    module = randomize(make(), seed, scale=0.2).train()
    with torch.no_grad():
        for step in range(3):
            module(images(4, seed + step))
    return module.eval()


def images(count, seed, size=16):
    return 2 * torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) + 0.5


def tokens(batch, length, seed, padded=True):
    draw = torch.Generator().manual_seed(seed)
    real = torch.randint(1, length + 1, (batch, 1), generator=draw) if padded else torch.full((batch, 1), length)
    return {
        "input_ids": torch.randint(0, 30, (batch, length), generator=draw),
        "attention_mask": (torch.arange(length)[None] < real).long(),
        "token_type_ids": torch.randint(0, 2, (batch, length), generator=draw),
    }


def mask_entries(backbone, dead, ends=lambda end: True):
    """Masks over parameters that kill ``dead`` (indices by layer and kind) at the chosen ends."""
    parameters = dict(backbone.named_parameters())
    masks = {}
    for kind in KINDS:
        for family in families(backbone, kind):
            for end in filter(ends, family.slices):
                if end.name not in parameters:
                    continue
                mask = masks.setdefault(end.name, torch.ones(parameters[end.name].shape, dtype=torch.bool))
                for index in dead[kind, family.layer]:
                    mask.narrow(end.dim, index * end.size, end.size).fill_(False)
    return masks


def all_but_some(backbone, share, seed):
    """For each layer the indices of random entries, about ``share`` of all; one is always left."""
    draw = torch.Generator().manual_seed(seed)
    dead = {}
    for kind in KINDS:
        for family in families(backbone, kind):
            order = torch.randperm(family.count, generator=draw).tolist()
            count = int((torch.rand(family.count, generator=draw) < share).sum())
            dead[kind, family.layer] = order[: min(count, family.count - 1)]
    return dead


def sprinkle(masks, share, seed):
    """Unstructured zeros on top."""
    draw = torch.Generator().manual_seed(seed)
    return {name: mask & (torch.rand(mask.shape, generator=draw) >= share) for name, mask in masks.items()}


def masked(model, masks):
    model = copy.deepcopy(model)
    parameters = dict(backbone_of(model).named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name].masked_fill_(~mask, 0.0)
    return model


@torch.inference_mode()
def agree(one, other, inputs):
    a, b = (model(**inputs)[0] if isinstance(inputs, dict) else model(inputs) for model in (one, other))
    assert a.shape == b.shape
    assert a.std() > 0, "a network that answers nothing proves nothing"
    assert float((a - b).abs().max()) <= 1e-5 * max(1.0, float(a.abs().max()))


def kept_counts(shrunk):
    return {(layer.kind, layer.layer): len(layer.kept) for layer in shrunk.kept}


def alive_counts(backbone, dead):
    return {
        (kind, family.layer): family.count - len(dead[kind, family.layer])
        for kind in KINDS
        for family in families(backbone, kind)
    }


@FEW
@given(
    seed=st.integers(0, 10_000),
    layers=st.integers(1, 3),
    heads=st.integers(1, 5),
    head_size=st.sampled_from([2, 4, 8]),
    neurons=st.integers(1, 24),
    share=st.floats(0, 1),
    kind=st.sampled_from(["BertModel", "BertForSequenceClassification", "BertForMaskedLM", "BertForQuestionAnswering"]),
    attention=st.sampled_from(["eager", "sdpa"]),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 20)),
)
def test_a_shrunk_bert_answers_as_the_masked_one(
    seed, layers, heads, head_size, neurons, share, kind, attention, shape
):
    model = bert(seed, layers=layers, heads=heads, head_size=head_size, neurons=neurons, kind=kind)
    model.set_attn_implementation(attention)
    dead = all_but_some(backbone_of(model), share, seed)
    masks = mask_entries(backbone_of(model), dead)
    whole = masked(model, masks)
    shrunk = shrink(model, masks)
    assert kept_counts(shrunk) == alive_counts(backbone_of(model), dead)
    agree(whole, shrunk.module, tokens(*shape, seed))
    agree(whole, shrink(whole).module, tokens(*shape, seed))  # zeros alone say as much as the masks


RESNETS = {
    "basic": lambda depths, width: ResNet(BasicBlock, [*depths, 1, 1], num_classes=5),
    "bottleneck": lambda depths, width: ResNet(Bottleneck, [*depths, 1, 1], num_classes=5, width_per_group=width),
    "cifar": lambda depths, width: CifarResNetModule(max(depths), 5),
}


@settings(FEW, max_examples=12)
@given(
    seed=st.integers(0, 10_000),
    make=st.sampled_from(sorted(RESNETS)),
    depths=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    width=st.sampled_from([2, 5, 16]),
    share=st.floats(0, 1),
    batch=st.integers(1, 3),
)
def test_a_shrunk_resnet_answers_as_the_masked_one(seed, make, depths, width, share, batch):
    model = resnet(seed, lambda: RESNETS[make](depths, width))
    dead = all_but_some(model, share, seed)
    masks = mask_entries(model, dead)
    shrunk = shrink(model, masks)
    assert kept_counts(shrunk) == alive_counts(model, dead)
    agree(masked(model, masks), shrunk.module, images(batch, seed + 9))


@FEW
@given(seed=st.integers(0, 10_000), share=st.floats(0.2, 0.9))
def test_partial_entries_stay_and_answers_stay(seed, share):
    model = bert(seed, neurons=30)
    backbone = backbone_of(model)
    dead = all_but_some(backbone, 0.4, seed)
    masks = sprinkle(mask_entries(backbone, dead), share, seed)
    shrunk = shrink(model, masks)
    for layer in shrunk.kept:
        consumer = {"heads": "output.dense.weight", "neurons": "output.dense.weight"}[layer.kind]
        columns = masks[f"{layer.layer}.{consumer}"].T.reshape(layer.count, -1).any(1)
        assert list(layer.kept) == columns.nonzero().flatten().tolist()
    agree(masked(model, masks), shrunk.module, tokens(3, 11, seed))


def test_an_entry_that_is_dead_at_its_own_end_alone_stays():
    """GELU(bias)·W and BatchNorm's bias pass through it: removing it would change the answer."""
    for model in (bert(0), resnet(0, lambda: CifarResNetModule(1, 5))):
        backbone = backbone_of(model)
        dead = all_but_some(backbone, 0.5, 0)
        only_filters = mask_entries(backbone, dead, lambda end: end.dim == 0 and end.name.endswith("weight"))
        shrunk = shrink(model, {name: mask for name, mask in only_filters.items() if "bn" not in name})
        assert not shrunk.is_smaller


def test_an_entry_that_nothing_reads_goes_whatever_it_computes():
    for model, inputs in ((bert(0), tokens(2, 9, 0)), (resnet(0, lambda: CifarResNetModule(1, 5)), images(2, 0))):
        backbone = backbone_of(model)
        dead = all_but_some(backbone, 0.5, 0)
        masks = mask_entries(backbone, dead, lambda end: end.dim == 1)
        shrunk = shrink(model, masks)
        assert kept_counts(shrunk) == alive_counts(backbone, dead)
        agree(masked(model, masks), shrunk.module, inputs)


def test_a_channel_that_only_removed_filters_read_goes_too():
    model = resnet(0, lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5, width_per_group=4))
    with torch.no_grad():
        model.layer1[0].conv3.weight[:, 1] = 0.0  # nothing reads the second filter of conv2
        model.layer1[0].conv2.weight[[0, 2, 3], 3] = 0.0  # and it alone reads the fourth of conv1
    shrunk = shrink(model)
    kept = {layer.layer: layer.kept for layer in shrunk.kept}
    assert (kept["layer1.0.conv1"], kept["layer1.0.conv2"]) == ((0, 1, 2), (0, 2, 3))
    agree(model, shrunk.module, images(2, 1))
    assert kept_counts(shrink(shrunk.module)) == kept_counts(shrunk)


@pytest.mark.parametrize("survivors", [0, 1])
def test_a_layer_keeps_one_entry_even_where_all_are_dead(survivors):
    model = bert(0)
    backbone = backbone_of(model)
    dead = {
        (kind, family.layer): range(survivors, family.count) for kind in KINDS for family in families(backbone, kind)
    }
    masks = mask_entries(backbone, dead)
    shrunk = shrink(model, masks)
    assert set(kept_counts(shrunk).values()) == {1}
    agree(masked(model, masks), shrunk.module, tokens(2, 9, 0))


def test_the_network_is_the_same_modules_and_they_state_their_new_sizes():
    model = bert(0)
    dead = all_but_some(model.bert, 0.5, 3)
    dead["heads", "encoder.layer.1.attention"] = [0]
    before = copy.deepcopy(model.state_dict())
    shrunk = shrink(model, mask_entries(model.bert, dead)).module
    assert [type(part) for part in shrunk.modules()] == [type(part) for part in model.modules()]
    attention = shrunk.bert.encoder.layer[1].attention.self
    assert (attention.num_attention_heads, attention.all_head_size, attention.attention_head_size) == (3, 12, 4)
    assert "out_features=12" in repr(attention.query)
    for part in shrunk.modules():
        if isinstance(part, nn.Linear):
            assert (part.out_features, part.in_features) == tuple(part.weight.shape)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    shrunk(**tokens(2, 9, 0))[0].sum().backward()  # and it can be trained further


def test_other_bert_like_encoders_are_shrunk_too():
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    rest = {"intermediate_size": 12, "max_position_embeddings": 40}
    configs = [
        transformers.RobertaConfig(**sizes, **rest, pad_token_id=0),
        transformers.ElectraConfig(**sizes, **rest, embedding_size=8),
        transformers.AlbertConfig(**sizes, **rest, embedding_size=8),
        transformers.MPNetConfig(**sizes, **rest),
        transformers.DistilBertConfig(vocab_size=30, dim=16, n_layers=2, n_heads=4, hidden_dim=12),
    ]
    for config in configs:
        model = randomize(transformers.AutoModel.from_config(config), 0).eval()
        masks = mask_entries(model, all_but_some(model, 0.5, 0))
        shrunk = shrink(model, masks)
        assert shrunk.is_smaller
        inputs = {name: tensor for name, tensor in tokens(2, 9, 0).items() if name != "token_type_ids"}
        agree(masked(model, masks), shrunk.module, inputs)


def test_grouped_convolutions_have_no_channels_to_remove():
    with pytest.raises(UserError, match="ResNet cannot be shrunk"):
        shrink(ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5, groups=2, width_per_group=4))


def test_what_cannot_be_shrunk_is_a_clear_error():
    with pytest.raises(UserError, match="Linear cannot be shrunk"):
        shrink(nn.Linear(3, 3))
    with pytest.raises(UserError, match="the ticket prunes layer9"):
        shrink(bert(0), {"layer9.weight": torch.ones(2, 2, dtype=torch.bool)})


@pytest.mark.parametrize("pattern", ["heads+neurons", "channels"])
def test_what_a_pattern_prunes_is_what_is_removed(pattern):
    """The smaller network has just the weights that the masks leave alive: nothing is missed, nothing too much."""
    model = resnet(0, lambda: CifarResNetModule(1, 5)) if pattern == "channels" else bert(0, neurons=40)
    backbone = backbone_of(model)
    names = [f"{name}.weight" for name, part in backbone.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    weights = {name: backbone.get_parameter(name).detach() for name in names if "pooler" not in name}
    pruner = Pruner.of(pattern, backbone, weights)
    scores = {name: weight.abs() for name, weight in weights.items()}
    masks = pruner.select(scores, pruner.dense(), 0.5)
    shrunk = shrink(model, masks)
    smaller = backbone_of(shrunk.module)
    for name in weights:
        assert smaller.get_parameter(name).numel() == int(masks[name].sum()), name
    agree(masked(model, masks), shrunk.module, images(2, 1) if pattern == "channels" else tokens(2, 9, 0))
