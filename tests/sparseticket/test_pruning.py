from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparseticket import masks as algebra
from sparseticket.errors import RunFailure, UserError
from sparseticket.pruning import Pruner, magnitude_prune
from sparseticket.pruning.select import global_groups
from sparseticket.schedule import round_sparsities

WEIGHTS = {"a": torch.tensor([[0.5, -0.1], [0.2, -3.0]]), "b": torch.tensor([[0.05, -0.3, 4.0, 0.0]])}


def test_the_smallest_magnitudes_go_over_all_tensors_together():
    masks = magnitude_prune(WEIGHTS, algebra.ones(WEIGHTS), 0.5)
    assert masks["a"].tolist() == [[True, False], [False, True]]
    assert masks["b"].tolist() == [[False, True, True, False]]


@given(st.floats(0.01, 0.99), st.integers(0, 50), st.booleans())
def test_sparsity_is_exact_to_one_weight_and_masks_only_shrink(sparsity, seed, ties):
    draw = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(shape, generator=draw) for name, shape in (("a", (17, 5)), ("b", (1, 31)))}
    if ties:
        weights = {name: weight.sign() for name, weight in weights.items()}
    half = magnitude_prune(weights, algebra.ones(weights), sparsity / 2)
    masks = magnitude_prune(weights, half, sparsity)
    assert abs(algebra.sparsity(masks) - sparsity) <= 0.5 / algebra.size(masks) + 1e-9
    assert algebra.is_subset(masks, half)


def test_what_is_dead_is_not_ranked_however_large_it_grew():
    masks = {"w": torch.tensor([[True, False, True, True]])}
    pruned = magnitude_prune({"w": torch.tensor([[1.0, 99.0, 2.0, 3.0]])}, masks, 0.5)
    assert pruned["w"].tolist() == [[False, False, True, True]]


def test_a_selection_that_revives_a_weight_is_an_error():
    masks = {"w": torch.tensor([[True, False, True, True]])}
    pruner = SimpleNamespace(select=lambda *_: {"w": torch.tensor([[True, True, False, False]])})
    with pytest.raises(RunFailure, match="revived a weight"):
        magnitude_prune({"w": torch.ones(1, 4)}, masks, 0.5, pruner)


def test_equal_scores_live_in_order():
    pruned = magnitude_prune({"w": torch.ones(2, 3)}, {"w": torch.ones(2, 3, dtype=torch.bool)}, 0.5)
    assert pruned["w"].tolist() == [[True] * 3, [False] * 3]


def test_pruning_to_less_than_there_is_is_refused():
    with pytest.raises(UserError, match="only shrink"):
        magnitude_prune(WEIGHTS, {name: torch.zeros_like(w, dtype=torch.bool) for name, w in WEIGHTS.items()}, 0.5)


def test_weights_that_are_not_finite_are_refused_by_name():
    with pytest.raises(RunFailure, match="b holds"):
        magnitude_prune({**WEIGHTS, "b": torch.full((1, 4), float("nan"))}, algebra.ones(WEIGHTS), 0.5)


def test_the_linear_schedule_is_a_share_of_the_original_a_round():
    assert round_sparsities("linear:0.1", 0.5) == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert round_sparsities("linear:0.1", 0.7, prune_first=True) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


def test_the_geometric_schedule_is_the_vision_papers_sequence_to_two_decimals():
    papers = [0, 20, 36, 48.8, 59.04, 67.23, 73.79, 79.03, 83.22, 86.58, 89.26, 91.41, 93.13, 94.50, 95.60, 96.48]
    papers += [97.19, 97.75, 98.20]
    assert [round(100 * s, 2) for s in round_sparsities("geometric:0.2", 0.982)] == papers


def test_a_target_near_a_step_is_that_step_and_another_cuts_the_last_pruning():
    assert round_sparsities("geometric:0.2", 0.6723)[-1] == pytest.approx(1 - 0.8**5, abs=1e-9)
    assert round_sparsities("geometric:0.2", 0.65) == pytest.approx([0, 0.2, 0.36, 0.488, 0.5904, 0.65])
    assert round_sparsities("linear:0.1", 0.25) == pytest.approx([0, 0.1, 0.2, 0.25])


@pytest.mark.parametrize(
    ("schedule", "target"), [("geometric:0.2", 0.9995), ("geometric:0.1", 0.9992), ("linear:0.0005", 0.0009)]
)
def test_a_step_that_leaves_another_number_of_weights_is_not_the_target(schedule, target):
    assert round_sparsities(schedule, target)[-1] == pytest.approx(target, abs=0.01 * min(target, 1 - target))


def test_one_round_trains_twice_and_one_shot_once():
    assert round_sparsities("one-round", 0.7) == [0.0, 0.7]
    assert round_sparsities("one-shot", 0.7) == [0.7]


@pytest.mark.parametrize("target", [0.0, 1.0, 1.5, -0.1, float("nan")])
def test_a_sparsity_that_no_ticket_has_is_refused(target):
    with pytest.raises(UserError, match="share of zeros"):
        round_sparsities("linear:0.1", target)


def test_steps_are_the_sparsities_of_the_rounds_up_to_the_target():
    assert round_sparsities("steps:0.3,0.5,0.7", 0.7) == [0.0, 0.3, 0.5, 0.7]
    assert round_sparsities("steps:0.3, 0.5, 0.7", 0.5) == [0.0, 0.3, 0.5]
    assert round_sparsities("steps:0.3,0.5,0.7", 0.6, prune_first=True) == [0.3, 0.5, 0.6]


@pytest.mark.parametrize("schedule", ["steps:", "steps:0.5,0.3", "steps:0.3,0.3", "steps:0.3,x", "steps:0.3,0.4"])
def test_steps_that_do_not_grow_or_end_too_early_are_refused(schedule):
    with pytest.raises(UserError, match="steps"):
        round_sparsities(schedule, 0.5)


@pytest.mark.parametrize("schedule", ["", "linear", "linear:0", "linear:1", "linear:x", "cubic:0.1", "geometric:nan"])
def test_a_schedule_that_is_none_is_refused(schedule):
    with pytest.raises(UserError, match=r"linear:0\.1"):
        round_sparsities(schedule, 0.5)


def test_a_step_so_small_that_a_run_would_never_end_is_refused():
    with pytest.raises(UserError, match="larger step"):
        round_sparsities("linear:0.0000001", 0.5)


def test_a_sparsity_is_refused_where_the_largest_block_is_too_large_in_any_order_of_layers():
    shapes = {"wide": (64, 60), "narrow": (64, 20)}  # one block in all has to live: of 2048, 1792 or 1280 weights
    for order in (("wide", "narrow"), ("narrow", "wide")):
        pruner = Pruner.of("block:64x32", nn.Module(), {name: torch.zeros(shapes[name]) for name in order})
        pruner.check_reachable(0.6)
        with pytest.raises(UserError, match="the largest, it is 0"):
            pruner.check_reachable(0.61)
        for scores in pruner.groups.sizes, -pruner.groups.sizes:  # a ticket of one block has its controls
            kept = global_groups(pruner.groups, scores, torch.ones(3, dtype=torch.bool), 0.75)
            assert kept.tolist() == (scores == scores.max()).tolist()
