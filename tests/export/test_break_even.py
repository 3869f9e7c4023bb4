"""From its zeros alone: which pattern a layer has, and whether the operator wins with it."""

import numpy as np
import pytest

from sparseticket.export import break_even
from sparseticket.export.break_even import BLOCKS, Figures, block_density, choose

BREAK_EVENS = {"1x1": 0.35, "2x1": 0.45, "4x1": 0.6, "8x1": 0.62}
INT8_BREAK_EVENS = {"4x1": 0.35, "4x4": 0.45}


def in_proportion(break_evens: dict[str, float]) -> dict[str, Figures]:
    """A table in which time is in proportion to density, so that tests hold whatever was measured last."""
    return {name: Figures(one, {0.9: one / 0.9, 0.01: one / 0.01}) for name, one in break_evens.items()}


FIGURES = in_proportion(BREAK_EVENS)


def blocks(outputs: int, inputs: int, density: float, size: int = 256) -> np.ndarray:
    """[inputs, outputs] with live blocks at random."""
    draw = np.random.default_rng(0)
    live = draw.random((-(-size // inputs), -(-size // outputs))) < density
    live = live.repeat(inputs, 0).repeat(outputs, 1)[:size, :size]
    return np.where(live, 1 + draw.random((size, size)), 0).astype(np.float32)


@pytest.mark.parametrize("pattern", ["1x1", "2x1", "4x1", "8x1"])
@pytest.mark.parametrize("density", [0.3, 0.1])
def test_the_pattern_is_found_from_the_zeros_themselves(pattern, density):
    choice = choose(blocks(*BLOCKS[pattern], density), FIGURES)
    assert choice.wins and choice.pattern == pattern
    assert choice.density == pytest.approx(density, abs=0.05)
    assert choice.block == int(pattern[0])


@pytest.mark.parametrize("pattern", ["1x1", "2x1", "4x1", "8x1"])
def test_a_layer_stays_dense_above_its_break_even_and_says_where_that_is(pattern):
    known = {pattern: FIGURES[pattern]}
    limit = known[pattern].break_even
    below, above = (choose(blocks(*BLOCKS[pattern], limit + step), known) for step in (-0.08, 0.08))
    assert below.wins and not above.wins
    assert above.speedup == 1 and f"break-even {limit:.0%}" in above.why


def test_int8_tells_groups_of_four_inputs_from_single_ones():
    known = in_proportion(INT8_BREAK_EVENS)
    assert choose(blocks(4, 4, 0.2), known).pattern == "4x4"
    assert choose(blocks(4, 1, 0.2), known).pattern == "4x1"
    assert choose(blocks(1, 1, 0.2), known).wins is False
    assert {choose(blocks(4, inputs, 0.1), known).block for inputs in (1, 4)} == {4}


def test_outputs_that_no_block_divides_count_as_a_smaller_block():
    live = np.zeros((4, 6), bool)
    live[0, 5] = True
    assert block_density(live, 4, 1) == 1 / 8


def test_a_layer_beyond_a_uint16_is_not_considered():
    assert choose(np.zeros((2, 65_537), np.float32), FIGURES) is None
    assert choose(np.zeros((2, 65_536), np.float32), FIGURES).wins


def test_speedups_between_measured_densities_lie_between_theirs():
    figures = Figures(0.6, {0.3: 3.0, 0.1: 7.0})
    assert figures.speedup_at(0.3) == pytest.approx(3) and 3 < figures.speedup_at(0.2) < 7
    assert figures.speedup_at(0.01) == pytest.approx(7)  # never more than was measured


def test_every_figure_of_the_committed_table_makes_sense():
    table = break_even.table()
    assert table["measured"]
    for kind in ("fp32", "int8"):
        for target in table[kind]:
            for pattern, one in break_even.figures(target, int8=kind == "int8").items():
                assert pattern in BLOCKS and 0 < one.break_even <= 1
                assert list(one.speedup) == sorted(one.speedup, reverse=True)
                assert one.speedup_at(one.break_even) >= 0.95, (target, pattern)
    assert set(break_even.figures("avx2", int8=False)) == {"1x1", "2x1", "4x1", "8x1"}
