import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseticket import masks as algebra
from sparseticket.errors import UserError

shapes = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)


def random_masks(seed, **shapes_by_name):
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=draw) < 0.4 for name, shape in shapes_by_name.items()}


@given(shapes, st.integers(0, 1000))
def test_a_packed_mask_unpacks_to_itself(shape, seed):
    mask = random_masks(seed, w=shape)["w"]
    assert torch.equal(algebra.unpack(algebra.pack(mask), shape), mask)


def test_bits_are_row_major_least_significant_first_with_zero_padding():
    mask = torch.tensor([[True, False, False], [True, True, False], [False, False, False], [True, False, True]])
    # bits 0, 3, 4, 9, 11 of 12
    assert algebra.pack(mask).tolist() == [0b00011001, 0b00001010]


@pytest.mark.parametrize("packed", [[1], [1, 2, 3], [255, 0b00010000]])
def test_bits_that_do_not_fit_the_shape_are_refused(packed):
    with pytest.raises(ValueError):
        algebra.unpack(torch.tensor(packed, dtype=torch.uint8), (3, 4))


def test_sparsity_counts_zeros_over_all_tensors_together():
    masks = {"a": torch.tensor([[True, False]]), "b": torch.tensor([[False, False, False], [True, True, False]])}
    assert algebra.sparsity(masks) == 5 / 8
    assert algebra.sparsity(algebra.complement(masks)) == 3 / 8


def test_intersection_is_a_subset_of_both():
    a, b = random_masks(0, w=(20, 20)), random_masks(1, w=(20, 20))
    both = algebra.intersect(a, b)
    assert algebra.is_subset(both, a) and algebra.is_subset(both, b) and not algebra.is_subset(a, b)


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_a_flip_moves_the_share_and_keeps_the_sparsity(share):
    masks = random_masks(2, a=(30, 40), b=(5, 10))
    flipped = algebra.flip(masks, share, seed=0)
    gone = sum(int((masks[name] & ~flipped[name]).sum()) for name in masks)
    assert algebra.alive(flipped) == algebra.alive(masks)
    assert gone == round(share * algebra.alive(masks))


def test_a_flip_that_cannot_be_is_refused():
    masks = {"w": torch.tensor([[True, True, True, False]])}
    with pytest.raises(UserError, match="only 1 are pruned"):
        algebra.flip(masks, 1.0, seed=0)
    with pytest.raises(UserError, match="between 0 and 1"):
        algebra.flip(masks, 1.5, seed=0)


def test_a_random_mask_has_the_same_count_in_all_but_another_place_for_another_seed():
    masks = random_masks(3, a=(100, 100), b=(50, 10))
    drawn = [algebra.random_like(masks, seed=seed) for seed in (0, 0, 1)]
    assert {algebra.alive(mask) for mask in drawn} == {algebra.alive(masks)}
    assert torch.equal(drawn[0]["a"], drawn[1]["a"]) and not torch.equal(drawn[0]["a"], drawn[2]["a"])


def test_a_random_mask_is_placed_over_all_tensors_together_whatever_each_had_alive():
    masks = {"thin": torch.zeros(100, 100, dtype=torch.bool), "thick": torch.ones(100, 100, dtype=torch.bool)}
    masks["thin"][:10], masks["thick"][:10] = True, False  # 10 % and 90 % alive
    drawn = algebra.random_like(masks, seed=0)
    assert [mask.float().mean().item() for mask in drawn.values()] == pytest.approx([0.5, 0.5], abs=0.03)


def test_overlap_of_independent_masks_is_near_its_chance_level():
    a, b = ({"w": torch.rand(400, 400, generator=torch.Generator().manual_seed(seed)) < 0.33} for seed in (0, 1))
    found = algebra.overlap(a, b)
    assert found.iou == pytest.approx(found.chance, abs=0.01)
    assert found.chance == pytest.approx(0.20, abs=0.01)  # the papers' 67 % masks, by protocol
    assert algebra.overlap(a, a).iou == 1.0


def test_overlap_against_a_case_by_hand():
    a = {"w": torch.tensor([[True, True, False, False]])}
    b = {"w": torch.tensor([[True, False, True, False]])}
    found = algebra.overlap(a, b)
    assert found.iou == 1 / 3
    assert found.chance == pytest.approx((4 * 0.5 * 0.5) / (2 + 2 - 1))


def test_masks_of_different_models_do_not_mix():
    with pytest.raises(UserError, match="in one only"):
        algebra.intersect(random_masks(0, a=(2,)), random_masks(0, b=(2,)))
    with pytest.raises(UserError, match=r"\(1, 2\).*\(1, 3\)"):
        algebra.overlap(random_masks(0, a=(1, 2)), random_masks(0, a=(1, 3)))


def test_packing_agrees_with_numpy_written_out():
    mask = random_masks(5, w=(13, 7))["w"]
    bits = np.concatenate([mask.flatten().numpy(), np.zeros(5, bool)]).reshape(-1, 8)
    assert algebra.pack(mask).tolist() == [int(sum(bit << i for i, bit in enumerate(row))) for row in bits.astype(int)]
