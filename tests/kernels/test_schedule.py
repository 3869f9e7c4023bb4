import itertools

import pytest
import torch

from sparseticket.kernels.blocks import BlockLayout
from sparseticket.kernels.schedule import GROUPS, groups_for, groups_of


def lists_of(schedule, groups):
    """The four lists themselves; each ends somewhere before the next begins."""
    at = groups_of(schedule, groups)
    return [schedule[begin:].tolist() for begin in at]


def layout_of(blocks):
    return BlockLayout.from_mask(blocks.repeat_interleave(16, 0).repeat_interleave(32, 1), (16, 32))


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("density", [0, 0.4, 1])
def test_every_block_is_in_the_list_of_one_group_and_rows_stay_together(groups, density):
    blocks = torch.rand(11, 5, generator=torch.Generator().manual_seed(0)) < density
    layout = layout_of(blocks)
    start, row, col, place = lists_of(layout.schedule, groups)
    begins, entries = start[: groups + 1], start[groups]
    assert begins == sorted(begins) and begins[0] == 0 and row[entries] == -1
    alive = [(r, c, p) for r, c, p in zip(row[:entries], col, place, strict=False) if c >= 0]
    assert sorted(pair[:2] for pair in alive) == [tuple(pair) for pair in blocks.nonzero().tolist()]
    assert all((int(layout.row[p]), int(layout.col[p])) == (r, c) for r, c, p in alive)
    changes = [row[at] for at in range(entries) if at in begins or row[at] != row[at - 1]]
    assert sorted(changes) == list(range(11)), "each row once, also one without blocks"


def test_groups_have_nearly_the_same_to_do():
    blocks = torch.zeros(16, 8, dtype=torch.bool)
    for row in range(16):
        blocks[row, : 1 + row % 8] = True
    start = lists_of(layout_of(blocks).schedule, 4)[0]
    lengths = [end - begin for begin, end in itertools.pairwise(start[:5])]
    assert sum(lengths) == 72 and max(lengths) - min(lengths) <= 1


def test_lists_begin_at_whole_sixteens():
    schedule = layout_of(torch.ones(3, 3, dtype=torch.bool)).schedule
    for groups in GROUPS:
        assert all(each % 16 == 0 for each in groups_of(schedule, groups))


@pytest.mark.parametrize(
    "row_tiles,programs,groups", [(64, 264, 4), (64, 132, 2), (16, 264, 16), (1000, 264, 1), (1, 264, 16)]
)
def test_as_many_groups_as_keep_the_device_busy(row_tiles, programs, groups):
    assert groups_for(row_tiles, programs) == groups
