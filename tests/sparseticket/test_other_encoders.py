"""Encoders that are BERT-like, but not BERT: what is permuted or removed changes no output, or is left alone."""

import json
from types import SimpleNamespace

import pytest
import torch
import transformers

from sparseticket import permute as permutations
from sparseticket.convert import coarsen
from sparseticket.errors import UserError
from sparseticket.export.shrink import shrink
from sparseticket.models import Head, Network, resolve
from sparseticket.models.families import families
from sparseticket.models.positions import USUAL, longest_sequence
from sparseticket.pattern import parse
from sparseticket.permute import axes, check_absorbed, permute
from sparseticket.pruning import Pruner
from sparseticket.ticket import Ticket

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
ENCODERS = {
    "MobileBert": {"embedding_size": 16, "true_hidden_size": 16, "intra_bottleneck_size": 16},
    "RoFormer": {"embedding_size": 32},
    "Esm": {"position_embedding_type": "rotary", "pad_token_id": 1, "mask_token_id": 2},
    "Nystromformer": {},
    "ConvBert": {"embedding_size": 32},
    "Roberta": {},
    "XLMRoberta": {},
    "Camembert": {},
    "Albert": {"embedding_size": 16},
}
HEADS_STAY = ("Nystromformer", "ConvBert")  # a convolution follows their heads
ATTENTION_STAYS = (*HEADS_STAY, "RoFormer", "Esm")  # rotated


def network(name):
    """With biases and LayerNorms as after training."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, **ENCODERS[name], num_labels=3)
    module = getattr(transformers, f"{name}ForSequenceClassification")(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.rand_like(parameter) + 0.5)
            else:
                parameter.normal_(0, 0.3)
    prefix = f"{module.base_model_prefix}."
    head = frozenset(key for key in module.state_dict() if not key.startswith(prefix))
    return Network(SimpleNamespace(name=name, kind="text"), module, prefix, (), head, frozenset())


def saved(folder, kind, auto=transformers.AutoModelForSequenceClassification, **changes):
    """A folder as a user has it; its tokenizer is not looked at here."""
    sizes = {name: size for name, size in (SIZES | changes).items() if size is not None}
    auto.from_config(transformers.AutoConfig.for_model(kind, **sizes)).save_pretrained(folder)
    return resolve(str(folder))


def in_random_order(axis):
    if axis.heads is None:
        return torch.randperm(axis.count, generator=torch.Generator().manual_seed(0)).int()
    inside = torch.arange(axis.count).reshape(axis.heads, -1)
    heads = torch.randperm(axis.heads, generator=torch.Generator().manual_seed(0))
    return inside[heads].flip(1).flatten().int()


@pytest.mark.parametrize("name", ENCODERS)
def test_every_axis_that_may_be_permuted_is_absorbed(name):
    made = network(name)
    found = axes(made.backbone_module)
    assert any(axis.startswith("neurons/") for axis in found)
    assert any(axis.startswith("query-key/") for axis in found) == (name not in ATTENTION_STAYS)
    check_absorbed(made, {axis: in_random_order(found[axis]) for axis in found})


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_a_network_whose_dead_heads_and_neurons_are_removed_answers_like_the_masked_one(name):
    module = network(name).module.double()
    kinds = ["neurons"] if name in HEADS_STAY else ["heads", "neurons"]
    assert bool(families(module.base_model, "heads")) == ("heads" in kinds)
    state = module.base_model.state_dict()
    for kind in kinds:
        for family in families(module.base_model, kind):
            for end in family.slices:
                state[end.name].narrow(end.dim, end.size, end.size).zero_()  # the second entry
    fed = torch.randint(3, 60, (2, 12))
    shrunk = shrink(module)
    assert all(layer.kept == tuple(i for i in range(layer.count) if i != 1) for layer in shrunk.kept)
    torch.testing.assert_close(shrunk.module(fed).logits, module(fed).logits, rtol=1e-6, atol=1e-9)


def unstructured(made):
    """A ticket that keeps the larger half of every layer."""
    backbone = made.backbone()
    names = [
        f"{path}.weight"
        for path, part in made.backbone_module.encoder.named_modules(prefix="encoder")
        if isinstance(part, torch.nn.Linear)
    ]
    masks = {name: backbone[name].abs() > backbone[name].abs().median() for name in names}
    return Ticket(masks, made.spec.name, dict.fromkeys(masks, "0" * 64), 0.5)


def test_rotated_dimensions_that_were_taken_for_plain_ones_are_found_out_and_the_ticket_is_refused(monkeypatch):
    made = network("RoFormer")
    ticket = unstructured(made)
    assert not any(
        axis.startswith("query-key")
        for axis in coarsen(ticket, made, parse("block:4x4"), "regroup", 0.5).ticket.permutations
    )
    monkeypatch.setattr(permutations, "PLAIN_ATTENTION", ("roformer",))
    with pytest.raises(UserError, match=r"'RoFormer' does not absorb .* --by score or --by refill"):
        coarsen(ticket, made, parse("block:4x4"), "regroup", 0.5)
    coarsen(ticket, made, parse("block:4x4"), "refill", 0.5)


@pytest.mark.parametrize("name", HEADS_STAY)
def test_heads_that_a_convolution_follows_are_refused_as_a_pattern(name):
    made = network(name)
    weights = {key: made.backbone()[key] for key in unstructured(made).masks}
    with pytest.raises(UserError, match="has no heads"):
        Pruner.of("heads", made.backbone_module, weights)


def test_a_permutation_that_the_network_does_not_have_is_refused_and_changes_nothing():
    made = network("RoFormer")
    before = {name: tensor.clone() for name, tensor in made.module.state_dict().items()}
    with pytest.raises(UserError, match="does not have"):
        permute(made, {"query-key/encoder.layer.0.attention": torch.arange(32, dtype=torch.int32)})
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.module.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "changes", "why"),
    [
        ("bart", {"d_model": 32}, "is an encoder with a decoder"),
        ("fnet", {}, "takes no attention_mask"),
        ("llama", {}, "is a decoder"),
        ("ibert", {}, "no linear layers"),
        ("squeezebert", {"embedding_size": 32}, "no linear layers"),  # but its pooler
        ("xlnet", {"d_head": 8, "max_position_embeddings": None}, "is a decoder, or trained as one"),
    ],
)
def test_what_is_no_bert_like_encoder_is_refused_with_the_reason_before_it_is_trained(kind, changes, why, tmp_path):
    spec = saved(tmp_path, kind, **changes)
    with pytest.raises(UserError, match=f"{why}.*: give a BERT-like encoder"):
        spec.build(Head("sequence-classification", 3), seed=0)


@pytest.mark.parametrize("head", [Head("regression", 1), Head("question-answering", 2)])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_decoder_is_refused_for_every_task(kind, head, tmp_path):
    with pytest.raises(UserError, match="is a decoder"):
        saved(tmp_path, kind).build(head, seed=0)


def test_a_bert_that_is_configured_as_a_decoder_is_refused(tmp_path):
    with pytest.raises(UserError, match="is a decoder"):
        saved(tmp_path, "bert", is_decoder=True).build(Head("sequence-classification", 3), seed=0)


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "deberta-v2", "distilbert", "modernbert"])
def test_of_a_head_of_two_layers_as_wide_as_there_are_classes_only_the_last_is_put_in_order(kind, tmp_path):
    sizes = {"dim": 4, "n_heads": 4} if kind == "distilbert" else {"hidden_size": 4}
    spec = saved(tmp_path, kind, **sizes, id2label=dict(enumerate("abcd")), pad_token_id=0, sep_token_id=3)
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = dict(reversed(config["id2label"].items()))  # a file may name them in any order
    (tmp_path / "config.json").write_text(json.dumps(config))
    inputs = {"input_ids": torch.tensor([[2, 5, 6, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}
    network = spec.build(Head("sequence-classification", 4, tuple("dabc")), seed=0)
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert network.head_pretrained
    torch.testing.assert_close(network.module.eval()(**inputs).logits, plain(**inputs).logits[:, [3, 0, 1, 2]])


def test_weights_in_no_linear_layer_are_said_to_be_left_alone(tmp_path):
    spec = saved(tmp_path, "convbert", embedding_size=32)
    network = spec.build(Head("sequence-classification", 3), seed=0)
    left = [tensor.numel() for name, tensor in network.backbone().items() if ".key_conv_attn_layer." in name]
    pruned = [network.backbone()[name].numel() for name in network.prunable]
    assert network.notes[0].startswith(f"{sum(left) / (sum(left) + sum(pruned)):.1%} of the encoder's weights")
    assert not any(
        "no linear layer" in note for note in saved(tmp_path / "b", "bert").build(Head("masked-lm"), seed=0).notes
    )


def test_a_configuration_that_names_no_longest_sequence_is_taken_for_the_usual_one():
    assert longest_sequence(transformers.XLNetConfig()) == USUAL
