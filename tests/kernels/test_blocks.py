import pytest
import torch

from sparseticket.kernels import BlockLayout


def layout_of(density, shape=(100, 90), block=(16, 32)):
    blocks = torch.rand(7, 3, generator=torch.Generator().manual_seed(0)) < density
    mask = blocks.repeat_interleave(16, 0)[:100].repeat_interleave(32, 1)[:, :90]
    return BlockLayout.from_mask(mask, block), blocks, mask


@pytest.mark.parametrize("density", [0, 0.4, 1])
def test_a_layout_holds_just_the_live_blocks_by_row_and_by_column(density):
    layout, blocks, mask = layout_of(density)
    by_row = [(row, int(col)) for row in range(7) for col in layout.col[layout.crow[row] : layout.crow[row + 1]]]
    by_col = [(int(row), col) for col in range(3) for row in layout.row_t[layout.ccol[col] : layout.ccol[col + 1]]]
    assert by_row == [tuple(pair) for pair in blocks.nonzero().tolist()]
    assert sorted(by_col) == by_row
    assert torch.equal(layout.dense_mask(), mask) and layout.whole
    assert layout.density == int(blocks.sum()) / 21


def test_one_live_entry_makes_a_block_live_and_the_layout_not_whole():
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[40, 3] = True
    layout = BlockLayout.from_mask(mask, (32, 32))
    assert layout.nnzb == 1 and layout.crow.tolist() == [0, 0, 1] and not layout.whole


@pytest.mark.parametrize("block", [(8, 16), (16, 256), (24, 32), (16,)])
def test_blocks_that_no_kernel_runs_are_refused(block):
    with pytest.raises(ValueError, match="sides"):
        BlockLayout.from_mask(torch.ones(64, 64, dtype=torch.bool), block)


@pytest.mark.parametrize("mask", [torch.ones(4, 4), torch.ones(4, dtype=torch.bool), torch.ones(0, 4).bool()])
def test_what_is_no_mask_of_a_matrix_is_refused(mask):
    with pytest.raises(ValueError, match="2-D bool mask"):
        BlockLayout.from_mask(mask, (16, 16))
