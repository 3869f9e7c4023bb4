"""The mask invariants of every pattern, over random small networks with non-zero biases and BatchNorm statistics."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparseticket import masks as algebra
from sparseticket.errors import UserError
from sparseticket.masking import MaskedParameters
from sparseticket.models.families import families
from sparseticket.pattern import Block, NOfM, Whole
from sparseticket.pruning import Pruner, magnitude_prune
from sparseticket.pruning.purity import check_masks
from sparseticket.pruning.select import reach


class Attention(nn.Module):
    """Multi-head attention with BERT's names, with or without biases; q and k may be tied."""

    def __init__(self, width, heads, head_dim, bias, tied):
        super().__init__()
        self.heads = heads
        inner = nn.Module()
        inner.attention_head_size = head_dim
        inner.query, inner.key, inner.value = (nn.Linear(width, heads * head_dim, bias=bias) for _ in range(3))
        if tied:
            inner.key.weight = inner.query.weight
        self.self, self.output = inner, nn.Module()
        self.output.dense = nn.Linear(heads * head_dim, width, bias=bias)

    def forward(self, x):
        parts = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in self.self.children())
        mixed = F.scaled_dot_product_attention(*parts)
        return x + self.output.dense(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, width, heads, head_dim, neurons, bias, tied):
        super().__init__()
        self.attention = Attention(width, heads, head_dim, bias, tied)
        self.intermediate, self.output = nn.Module(), nn.Module()
        self.intermediate.dense = nn.Linear(width, neurons, bias=bias)
        self.output.dense = nn.Linear(neurons, width, bias=bias)

    def forward(self, x):
        x = self.attention(x)
        return x + self.output.dense(F.gelu(self.intermediate.dense(x)))


class Encoder(nn.Sequential):
    def __init__(self, width, heads, head_dim, layers, bias, tied):
        super().__init__(*(Layer(width, heads, head_dim, neurons, bias, tied) for neurons in layers))


class Residual(nn.Module):
    """A residual block of two convolutions, or of three where there is a second inner width."""

    def __init__(self, width, inner, second):
        super().__init__()
        sides = [width, inner, *([second] if second else []), width]
        for i, (left, right) in enumerate(pairwise(sides), start=1):
            kernel = 3 if i == len(sides) // 2 else 1
            setattr(self, f"conv{i}", nn.Conv2d(left, right, kernel, padding=kernel // 2, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(right))
        self.count = len(sides) - 1

    def forward(self, x):
        out = x
        for i in range(1, self.count + 1):
            out = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(out))
            out = F.relu(out) if i < self.count else out + x
        return F.relu(out)


encoders = st.builds(
    Encoder,
    width=st.sampled_from([8, 12]),
    heads=st.integers(2, 4),
    head_dim=st.just(4),
    layers=st.lists(st.sampled_from([4, 8, 20]), min_size=1, max_size=3),
    bias=st.booleans(),
    tied=st.booleans(),
)
resnets = st.lists(
    st.builds(Residual, width=st.just(8), inner=st.sampled_from([4, 8, 12]), second=st.sampled_from([0, 4, 8])),
    min_size=1,
    max_size=3,
).map(lambda blocks: nn.Sequential(*blocks))
networks = st.one_of(encoders, resnets)


@torch.no_grad()
def lived_in(network, seed):
    draw = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            tensor.normal_(0, 0.5, generator=draw)
        if name.endswith("running_var"):
            tensor.abs_().add_(0.1)
    return network.eval()


def matrices(network):
    return {name: weight for name, weight in network.named_parameters(remove_duplicate=False) if weight.ndim > 1}


@dataclass(repr=False)
class Pruned:
    """A network, its pruner, and the masks of two rounds: at half the sparsity, and at the sparsity."""

    network: nn.Module
    pruner: Pruner
    sparsity: float
    first: algebra.Masks
    last: algebra.Masks
    seed: int

    @property
    def families(self):
        kinds = self.pruner.pattern.kinds if isinstance(self.pruner.pattern, Whole) else ()
        return [family for kind in kinds for family in families(self.network, kind)]

    @property
    def group_size(self):
        return 1 if self.pruner.groups is None else int(self.pruner.groups.sizes.max())


@st.composite
def pruned(draw, texts=("unstructured", "2:4", "1:2", "block:3x2", "block:4x1", "whole")):
    network, text, seed = draw(networks), draw(st.sampled_from(texts)), draw(st.integers(0, 1000))
    if text == "whole":
        text = draw(
            st.sampled_from(["heads", "neurons", "heads+neurons"] if isinstance(network, Encoder) else ["channels"])
        )
    pruner = Pruner.of(text, lived_in(network, seed), matrices(network))
    if isinstance(pruner.pattern, NOfM):
        sparsity = pruner.pattern.sparsity
    else:
        total, fewest = reach(pruner.groups, surely=True) if pruner.groups else (1, 0)
        sparsity = draw(st.floats(0.1, 0.95)) * (1 - fewest / total)
    first = magnitude_prune(matrices(network), pruner.dense(), sparsity / 2, pruner)
    last = magnitude_prune(matrices(network), first, sparsity, pruner)
    return Pruned(network, pruner, sparsity, first, last, seed)


def several(*texts):
    return lambda test: settings(max_examples=30, deadline=None)(given(pruned(texts) if texts else pruned())(test))


@several()
def test_sparsity_is_exact_to_a_group_and_counts_matrices_and_filters_alone(it):
    total = sum(weight.numel() for weight in matrices(it.network).values())
    dead = sum(int((~mask).sum()) for mask in it.last.values() if mask.ndim > 1)
    assert algebra.size(it.last) == total and algebra.sparsity(it.last) == pytest.approx(dead / total)
    assert abs(dead - it.sparsity * total) <= it.group_size


@several("block:3x2", "block:4x1", "whole")
def test_the_weights_counted_after_each_death_are_those_of_the_masks(it):
    groups = it.pruner.groups
    order = torch.randperm(groups.count, generator=torch.Generator().manual_seed(it.seed))
    kept = torch.ones(groups.count, dtype=torch.bool)
    alive_after = groups.alive_after(kept, order)
    for died in (0, 1, groups.count // 2, groups.count):
        kept[order[:died]] = False
        assert algebra.alive(groups.masks(kept)) == alive_after[died]
    assert torch.equal(groups.sums(it.pruner.dense()).long(), groups.sizes)


@several()
def test_masks_only_shrink(it):
    assert algebra.is_subset(it.first, it.pruner.dense()) and algebra.is_subset(it.last, it.first)


@several("block:3x2", "block:4x1")
def test_a_blocks_weights_live_or_die_together(it):
    pattern: Block = it.pruner.pattern
    for mask in it.last.values():
        blocks = [piece for rows in mask.split(pattern.rows, 0) for piece in rows.split(pattern.columns, 1)]
        assert all((block == block[:1, :1]).all() for block in blocks)


@several("2:4", "1:2")
def test_of_every_m_inputs_just_n_live_and_they_are_the_largest(it):
    n, m = it.pruner.pattern.n, it.pruner.pattern.m
    for name, weight in matrices(it.network).items():
        alive, size = (
            tensor.movedim(1, -1).unflatten(-1, (-1, m)) for tensor in (it.last[name], weight.detach().abs())
        )
        assert (alive.sum(-1) == n).all()
        assert (size.where(alive, torch.inf).amin(-1) >= size.where(~alive, -torch.inf).amax(-1)).all()


@several("whole")
def test_an_entry_is_dead_at_every_end_or_at_none_and_one_of_every_layer_survives(it):
    for family in it.families:
        masked = [end for end in family.slices if "running" not in end.name]
        lives = [
            [bool(it.last[end.name].narrow(end.dim, i * end.size, end.size).any()) for end in masked]
            for i in range(family.count)
        ]
        assert all(len(set(ends)) == 1 for ends in lives) and any(ends[0] for ends in lives)
    ends = {end.name for family in it.families for end in family.slices if "running" not in end.name}
    assert it.last.keys() == ends | matrices(it.network).keys()
    assert all(mask.all() for name, mask in it.last.items() if name not in ends)


@several("block:3x2", "block:4x1", "whole")
def test_what_dies_has_the_smallest_mean_magnitude_over_all_layers_together(it):
    groups = it.pruner.groups
    before, after = it.pruner.kept(it.first), it.pruner.kept(it.last)
    weights = {name: weight.detach().abs() * it.first[name] for name, weight in matrices(it.network).items()}
    mean = groups.sums(weights) / groups.sums(it.first).clamp(min=1)
    spared = torch.zeros_like(after)
    spared[groups.best_of_each_layer(mean.where(before, -1))] = True
    gone, living = mean[before & ~after], mean[after & ~spared]
    assert not len(gone) or not len(living) or gone.max() <= living.min()


@torch.no_grad()
def revive(it, dim):
    """Write over the dead entries' ends of one side, producers' (0, statistics too) or consumers' (1)."""
    state, dead = it.network.state_dict(), iter((~it.pruner.kept(it.last)).tolist())
    for family in it.families:
        for i in (i for i in range(family.count) if next(dead)):
            for end in (end for end in family.slices if end.dim == dim):
                state[end.name].narrow(dim, i * end.size, end.size).add_(0.7)


@several("whole")
def test_a_dead_group_gives_exactly_nothing_whichever_of_its_ends_is_altered(it):
    shape = (2, 5, it.network[0].intermediate.dense.in_features) if isinstance(it.network, Encoder) else (2, 8, 6, 6)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(it.seed))
    parameters = dict(it.network.named_parameters(remove_duplicate=False))
    masked = MaskedParameters(parameters, it.last)
    for dim in (0, 1):
        masked.mask_parameters()
        with torch.no_grad():
            before = it.network(x)
            revive(it, dim)
            assert torch.equal(it.network(x), before)


@several()
def test_a_random_mask_is_of_the_same_pattern_and_as_sparse_to_a_group(it):
    drawn = [it.pruner.draw(it.last, seed=seed) for seed in (0, 0, 1)]
    for masks in drawn:
        it.pruner.check(masks)
        check_masks(it.pruner.pattern, masks)
        assert abs(algebra.alive(masks) - algebra.alive(it.last)) <= it.group_size
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])


@several()
def test_masks_with_one_weight_more_or_less_are_not_of_the_pattern(it):
    if isinstance(it.pruner.pattern, Block | NOfM | Whole):
        name = next(iter(matrices(it.network)))
        altered = dict(it.last) | {name: it.last[name].clone()}
        altered[name].flatten()[0] ^= True
        with pytest.raises((UserError, ValueError), match=r"whole groups|not [12]:[24]"):
            it.pruner.check(altered)
            check_masks(it.pruner.pattern, altered)
