import pytest
import torch

from sparseticket.tasks.row_batches import RowBatches


@pytest.mark.parametrize(
    ("rows", "size", "expected"),
    [
        (5, 2, [[4, 3], [2, 1]]),  # a last batch of one is left out
        (6, 4, [[5, 4, 3, 2], [1, 0]]),  # a short one is not
        (3, 1, [[2], [1], [0]]),  # nor one of one, where all are
        (1, 8, [[0]]),  # nor the only one
    ],
)
def test_training_leaves_out_a_single_row_that_is_left_over_and_no_other(rows, size, expected):
    batches = RowBatches(torch.Tensor.tolist, torch.arange(rows).flip(0), size, drop_single=True)
    assert list(batches) == expected and len(batches) == len(expected)
    every = RowBatches(torch.Tensor.tolist, torch.arange(rows), size)
    assert [row for batch in every for row in batch] == list(range(rows)) and len(every[-1]) == (rows - 1) % size + 1
