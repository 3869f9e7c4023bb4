"""Permutations that a network absorbs: its tensors are reordered along an axis, and its outputs stay the same.

A permutation p of an axis with n entries is an int32 tensor of n indices: entry i of the permuted network is entry
p[i] of the original one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sparseticket.errors import UserError
from sparseticket.models import Network
from sparseticket.models.base import POOLER
from sparseticket.models.families import Family, Slice, families

RESIDUAL = "residual"
# what of BERT carries the hidden dimension, by the end of the tensor's name: its dimension there
HIDDEN_ROWS = (
    "attention.output.dense.weight",
    "attention.output.dense.bias",
    "output.dense.weight",
    "output.dense.bias",
    "LayerNorm.weight",
    "LayerNorm.bias",
)
HIDDEN_COLUMNS = (
    "_embeddings.weight",
    "self.query.weight",
    "self.key.weight",
    "self.value.weight",
    "intermediate.dense.weight",
    "pooler.dense.weight",
)
# heads on the hidden states; an MLM head ends in the (permuted) word embeddings or in a decoder of its own
HEAD_ROWS = tuple(f"predictions.transform.{end}" for end in ("dense.weight", "dense.bias", *HIDDEN_ROWS[-2:]))
HEAD_COLUMNS = ("predictions.transform.dense.weight", "predictions.decoder.weight", "qa_outputs.weight")
# what a head may hold besides: nothing that touches the hidden states
HEAD_REST = ("predictions.bias", "predictions.decoder.bias", "qa_outputs.bias")
# whose attention sees nothing of the order of heads and of the dimensions in them; others rotate these (RoFormer, ESM)
PLAIN_ATTENTION = ("albert", "bert", "camembert", "distilbert", "electra", "mobilebert", "roberta", "xlm-roberta")
PER_HEAD_TABLES = ("distance_embedding", "relative_attention_bias")
MOST_DIFFERENCE = 1e-6  # of the largest output; in fp64, where rounding alone is below 1e-12


@dataclass(frozen=True)
class Axis:
    """``count`` entries that may change places; entry i is index i of dimension ``dim`` of each end.

    Attributes:
        heads: None where any order will do. Of an attention the entries are the dimensions of this many heads: heads
            move as wholes and dimensions inside their head.
        partner: the axis whose heads must move alike (an attention's other one).
    """

    count: int
    ends: tuple[Slice, ...]
    heads: int | None = None
    partner: str | None = None


def axes(backbone: nn.Module) -> dict[str, Axis]:
    """Every axis of a backbone that may be permuted, by name, names of ends being those inside the backbone.

    - ``residual``: the hidden dimension of a BERT, one for the whole model; the pooler absorbs it at the end, other
      heads are permuted with the backbone (:func:`permute`);
    - ``neurons/LAYER``: the neurons of an FFN;
    - ``query-key/ATTENTION`` and ``value-output/ATTENTION``: the dimensions inside the heads, and the heads, of
      encoders whose attention is known to see nothing of their order;
    - ``channels/CONVOLUTION``: the channels between two convolutions of a residual block.
    """
    found: dict[str, Axis] = {}
    names = [name for name, _ in backbone.named_parameters()]
    model_type = getattr(getattr(backbone, "config", None), "model_type", None)
    if model_type == "bert":
        found[RESIDUAL] = Axis(backbone.config.hidden_size, tuple(_residual_ends(names)))
    if model_type in PLAIN_ATTENTION and not any(table in name for name in names for table in PER_HEAD_TABLES):
        for family in families(backbone, "heads"):
            found |= _attention(family)
    for kind in ("neurons", "channels"):
        found |= {f"{kind}/{family.layer}": Axis(family.count, family.slices) for family in families(backbone, kind)}
    return found


def _residual_ends(names: list[str]) -> Iterator[Slice]:
    for name in names:
        if name.endswith(HIDDEN_ROWS):
            yield Slice(name, 0, 1)
        if name.endswith(HIDDEN_COLUMNS):
            yield Slice(name, 1, 1)


def _attention(family: Family) -> dict[str, Axis]:
    *rows, output = family.slices
    query, key, value = dict.fromkeys(map(_layer_of, rows))
    query_key, value_output = f"query-key/{family.layer}", f"value-output/{family.layer}"

    def axis(ends: list[Slice], partner: str) -> Axis:
        return Axis(family.count * output.size, tuple(replace(end, size=1) for end in ends), family.count, partner)

    return {
        query_key: axis([end for end in rows if _layer_of(end) in (query, key)], value_output),
        value_output: axis([*(end for end in rows if _layer_of(end) == value), output], query_key),
    }


def _layer_of(end: Slice) -> str:
    return end.name.rpartition(".")[0]


def check_fits(network: Network, permutations: Mapping[str, Tensor]) -> None:
    """Raise the :class:`UserError` of :func:`permute` where a network cannot be permuted so; changes nothing."""
    known, model = axes(network.backbone_module), network.spec.name
    for name, permutation in permutations.items():
        if name not in known:
            raise UserError(f"this ticket permutes {name}, which {model!r} does not have: use it with its own model.")
        axis = known[name]
        if len(permutation) != axis.count or not is_permutation(permutation):
            raise UserError(
                f"this ticket's permutation of {name} is none of the {axis.count} entries that {model!r} has."
            )
        if name == RESIDUAL:
            head_ends(network)
        if axis.heads and not _heads_stay_whole(axis.heads, permutation, permutations.get(axis.partner)):
            raise UserError(f"this ticket's permutation of {name} tears heads apart: make the ticket again.")


def _heads_stay_whole(heads: int, permutation: Tensor, partner: Tensor | None) -> bool:
    """Whether heads move as wholes, and alike on both axes of an attention; None is the order that there was."""
    order = head_order(permutation, heads)
    other = torch.arange(heads) if partner is None else head_order(partner, heads)
    return order is not None and other is not None and torch.equal(order, other)


@torch.no_grad()
def permute(network: Network, permutations: Mapping[str, Tensor]) -> None:
    """Permute a network in place, head included: its outputs stay what they were, but for rounding.

    Raises:
        UserError: the network has no such axis, or one of another length, heads would be torn apart, or the head is
            one whose part in the residual permutation is not known. The network is then unchanged.
    """
    if not permutations:
        return
    check_fits(network, permutations)
    known = axes(network.backbone_module)
    live = network.backbone()
    for name, permutation in permutations.items():
        ends = {(id(live[end.name]), end.dim): live[end.name] for end in known[name].ends if end.name in live}
        for (_, dim), tensor in ends.items():  # what is tied once
            reorder(tensor, dim, permutation)
    if RESIDUAL in permutations:
        state = network.module.state_dict(keep_vars=True)
        for name, dims in head_ends(network).items():
            for dim in dims:
                reorder(state[name], dim, permutations[RESIDUAL])


@torch.no_grad()
def check_absorbed(network: Network, permutations: Mapping[str, Tensor]) -> None:
    """Check that a permuted copy of ``network`` answers like it, on a random batch in fp64.

    Raises:
        UserError: it does not, or :func:`permute` refuses.
    """
    tried = replace(network, module=copy.deepcopy(network.module).double().eval())
    before = _answer(tried)
    permute(tried, permutations)
    difference = float((_answer(tried) - before).abs().max() / before.abs().max())
    if not difference <= MOST_DIFFERENCE:
        raise UserError(
            f"{network.spec.name!r} does not absorb the permutations that regrouping found (its outputs change by "
            f"{difference:.1e} of the largest): convert this ticket with --by score or --by refill."
        )


def _answer(network: Network) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    if network.spec.kind == "vision":
        found = network.module(torch.rand(2, 3, 32, 32, generator=draw).double())
    else:
        found = network.module(torch.randint(network.module.config.vocab_size, (2, 16), generator=draw))
    return found if isinstance(found, Tensor) else found[0]


def reorder(tensor: Tensor, dim: int, permutation: Tensor) -> None:
    """Reorder a tensor in place along one dimension."""
    tensor.copy_(tensor.index_select(dim, permutation.long().to(tensor.device)))


def permuted(
    tensors: Mapping[str, Tensor], permutations: Mapping[str, Tensor], known: Mapping[str, Axis]
) -> dict[str, Tensor]:
    """Tensors by their names inside a backbone (masks, scores), as they are in the permuted one."""
    found = dict(tensors)
    for axis, permutation in permutations.items():
        for end in known[axis].ends:
            if end.name in found:
                found[end.name] = found[end.name].index_select(end.dim, permutation.long())
    return found


def head_ends(network: Network) -> dict[str, tuple[int, ...]]:
    """The dimensions of the head's tensors (by their names inside the module) that carry the hidden dimension.

    Raises:
        UserError: a head that is none of: classifier on a pooler, masked LM, question answering.
    """
    has_pooler = any(name.startswith(POOLER) for name in network.backbone())
    ends: dict[str, tuple[int, ...]] = {}
    for name in network.head:
        dims = (0,) * name.endswith(HEAD_ROWS) + (1,) * name.endswith(HEAD_COLUMNS)
        on_pooler = has_pooler and (name.startswith("classifier.") or "seq_relationship" in name)
        if not dims and not on_pooler and not name.endswith(HEAD_REST):
            raise UserError(
                f"this ticket permutes the hidden dimension, and how {name} of this network's head would follow is not "
                "known. It works under classifiers on a pooler, masked LM and question answering."
            )
        ends[name] = dims
    if not ends:
        raise UserError("this ticket permutes the hidden dimension, which a network without a head would give away.")
    return ends


def is_permutation(tensor: Tensor) -> bool:
    """True for a 1-D int32 tensor that holds each of 0 … n − 1 once."""
    return (
        tensor.dtype == torch.int32
        and tensor.ndim == 1
        and torch.equal(tensor.sort().values, torch.arange(len(tensor), dtype=torch.int32))
    )


def head_order(permutation: Tensor, heads: int) -> Tensor | None:
    """Which head each head of the permuted attention was, int64 [heads]; None where one is made of several."""
    came_from = permutation.long().reshape(heads, -1) // (len(permutation) // heads)
    return came_from[:, 0] if bool((came_from == came_from[:, :1]).all()) else None
