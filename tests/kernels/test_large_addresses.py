"""Offsets beyond 2^31 elements, in memory that is reserved and never filled: only the pages that are touched exist."""

import mmap

import pytest
import torch
import torch.nn.functional as F
import triton.language as tl

from sparseticket.kernels import bitmap, bsr, live_adamw, masked, masked_adamw, masked_sgd
from sparseticket.kernels.adamw import masked_adamw_kernel, scalars
from sparseticket.kernels.adamw_live import live_adamw_kernel, prefix_counts
from sparseticket.kernels.blocks import BlockLayout
from sparseticket.kernels.operands import MOST_SIDE
from sparseticket.kernels.sgd import masked_sgd_kernel
from sparseticket.kernels.words import pack_words

FAR = 2**31
HALF = 4 * FAR + 2**20  # bytes: fp32 that far, on either side
RESERVED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
DOT = 2e-3  # of the largest value, in fp16


@pytest.mark.parametrize("size", [(MOST_SIDE + 1, 16), (16, MOST_SIDE + 1)])
def test_a_side_that_no_grid_holds_is_refused(size):
    x, words = torch.zeros(1, size[1]), torch.zeros(size[0], -(-size[1] // 32), dtype=torch.int32)
    with pytest.raises(ValueError, match="too large for a grid"):
        masked.masked_linear(x, torch.zeros(1, 1).expand(size), words)


@pytest.fixture
def interpreted(monkeypatch):
    """Triton's interpreter copies each storage back over itself after a kernel, which would fill it."""
    copy = torch.UntypedStorage.copy_
    monkeypatch.setattr(
        torch.UntypedStorage, "copy_", lambda to, of, *a: to if to.data_ptr() == of.data_ptr() else copy(to, of, *a)
    )


def reserved(elements):
    """Zeros ``[elements]`` of fp16 with as many before them, where an offset that wrapped around would lead."""
    return torch.frombuffer(mmap.mmap(-1, 4 * elements, RESERVED), dtype=torch.float16)[elements:]


def spread(matrix, dimension):
    """``matrix`` in storage where the last entry along ``dimension`` lies beyond 2^31 elements."""
    step = -(-FAR // (matrix.shape[dimension] - 1)) + 64
    strides = [1, 1]
    strides[dimension] = step
    far = reserved(step * matrix.shape[dimension]).as_strided(matrix.shape, strides)
    return far.copy_(matrix)


def agree(actual, exact):
    assert float((actual.detach().double() - exact).abs().max()) <= DOT * float(exact.abs().max())


def problem(m=20, n=32, k=48):
    draw = torch.Generator().manual_seed(0)
    x, weight, dy = (torch.randn(size, generator=draw).half() for size in ((m, k), (n, k), (m, n)))
    alive = torch.tensor([[True, False, True], [False, True, True]])
    mask = alive.repeat_interleave(16, 0).repeat_interleave(16, 1)
    return x, weight, dy, mask


@pytest.mark.interpreter
@pytest.mark.parametrize("dimension", [0, 1])
@pytest.mark.parametrize("which", ["block-sparse", "masked"])
def test_inputs_weights_and_gradients_are_read_far_away(which, dimension, interpreted):
    x, weight, dy, mask = problem()
    far_x, far_weight, far_dy = (spread(tensor, dimension).requires_grad_() for tensor in (x, weight, dy))
    if which == "masked":
        y = masked.masked_linear(far_x, far_weight, pack_words(mask))
        far_dy = dy  # its weight gradient is PyTorch's product
    else:
        y = bsr.bsr_linear(far_x, far_weight, BlockLayout.from_mask(mask, (16, 16)))
    of_x, of_weight = torch.autograd.grad(y, (far_x, far_weight), far_dy.detach())
    live = weight.double() * mask
    agree(y, x.double() @ live.T)
    agree(of_x, dy.double() @ live)
    agree(of_weight, dy.double().T @ x.double() * mask)


@pytest.mark.interpreter
@pytest.mark.parametrize("dimension", [0, 1])
def test_few_rows_are_read_far_away(dimension, interpreted):
    x, weight, _, mask = problem()
    y = bitmap.bitmap_linear(spread(x, dimension), bitmap.BitmapWeight.from_dense(weight, mask))
    agree(y, x.double() @ (weight.double() * mask).T)


SIZE = FAR // 2 + 64  # of a row of results: the third begins beyond 2^31
NONE = torch.empty(0)
PLAIN = dict(HAS_BIAS=False, ACTIVATION="none", PRECISION="ieee")


def write_block_sparse(x, weight, dy, mask, y):
    layout = BlockLayout.from_mask(mask, (16, 16))
    bsr.bsr_matmul_kernel[(1, 2)](
        x, weight, y, NONE, NONE, layout.crow, layout.col, 3, SIZE, 48, 48, 1, 48, 1,
        BLOCK_O=16, BLOCK_R=16, TILE_M=16, TILE_O=16, TILE_R=16, PACKED=False, EVEN=True, KEEP_PRE=False, **PLAIN,
    )  # fmt: skip
    return x @ (weight * mask).T


def write_masked(x, weight, dy, mask, y):
    masked.masked_matmul_kernel[(1, 1)](
        x, weight, pack_words(mask), y, NONE, NONE, 3, SIZE, 48, 2, 48, 1, 48, 1,
        TILE_M=16, TILE_O=32, TILE_R=32, K_IS_SUMMED=True, EVEN=False, KEEP_PRE=False, **PLAIN,
    )  # fmt: skip
    return x @ (weight * mask).T


def write_few_rows(x, weight, dy, mask, y):
    rows = torch.zeros(64, 16)  # of the product: a row for each of the weight's
    rows[:32, :3] = (x[:, :32] @ (weight * mask)[:, :32].T)[:, :32].T
    bitmap.bitmap_sum_kernel[(2,)](
        rows, NONE, NONE, NONE.int(), torch.zeros(SIZE, dtype=torch.int64), y, NONE, 3, SIZE, 64, SPLITS=1, TILE_M=16,
        TILE_N=16, TOGETHER=4, HAS_BIAS=False, ACTIVATION="none", OVERLAPS=False,
    )  # fmt: skip
    return rows[:32, :3].T


def write_weight_gradient(x, weight, dy, mask, y):
    block = torch.zeros(1, dtype=torch.int32)
    bsr.bsr_wgrad_kernel[(1, 1)](
        dy.T.contiguous().T, x, y, block, block, 3, 3, SIZE, 16, 1, 1, 3, 48, 1, BLOCK_N=16, BLOCK_K=16, TILE_N=16,
        TILE_K=16, TILE_M=16, PARTIAL=False, PRECISION="ieee",
    )  # fmt: skip
    return F.pad((dy.T @ x)[:3, :16], (0, 16))


def write_zeros_of_blocks(x, weight, dy, mask, y):
    y[:] = 1
    dead = torch.zeros(2, dtype=torch.int32)
    bsr.zero_dead_blocks_kernel[(1, 1)](y, dead, dead, 3, SIZE, SIZE, 1, BLOCK_N=16, BLOCK_K=16, TILE_N=16)
    return torch.ones(3, 32).index_fill(1, torch.arange(16), 0)


def write_zeros_of_a_mask(x, weight, dy, mask, y):
    y[:] = 1
    words = torch.tensor([[0x0000FFFF]], dtype=torch.int32).expand(3, 1).contiguous()
    masked.zero_dead_kernel[(1, 1)](y, words, 3, SIZE, 1, TILE_N=16, TILE_K=32)
    return torch.ones(3, 32).index_fill(1, torch.arange(16, 32), 0)


@pytest.mark.interpreter
@pytest.mark.parametrize(
    "write",
    [
        write_block_sparse,
        write_masked,
        write_few_rows,
        write_weight_gradient,
        write_zeros_of_blocks,
        write_zeros_of_a_mask,
    ],
)
def test_results_are_written_far_away(write, interpreted):
    x, weight, dy, mask = problem(m=3)
    y = reserved(3 * SIZE).as_strided((3, 32), (SIZE, 1))
    agree(y, write(x, weight, dy, mask, y).double())


CHUNK = 1024
HOW = {  # kernel, its function, dtypes of the columns
    "adamw": (masked_adamw_kernel, masked_adamw, (tl.float32,) * 3),
    "live": (live_adamw_kernel, live_adamw, (tl.float32,) * 2),
    "sgd": (masked_sgd_kernel, masked_sgd, (tl.float32,) * 3),
}


@pytest.mark.interpreter
@pytest.mark.parametrize("how", HOW)
def test_a_chunk_of_weights_that_begins_far_away_takes_the_same_step(how):
    draw = torch.Generator().manual_seed(0)
    mask = torch.rand(CHUNK, generator=draw) < 0.5
    words, live = pack_words(mask), int(mask.sum())
    weight, gradient = (torch.randn(CHUNK, generator=draw) * mask for _ in range(2))
    states = [torch.rand(live if how == "live" else CHUNK, generator=draw) for _ in range(1 if how == "sgd" else 2)]
    states = states if how == "live" else [state * mask for state in states]
    before = FAR - 1 - live  # live weights in front of the chunk: as many as prefixes can count
    near = [weight, gradient, *states, *([torch.empty(0)] if how == "live" else []), words]
    near += [prefix_counts(words)] if how == "live" else []

    untouched, memory = weight.clone(), torch.frombuffer(mmap.mmap(-1, 2 * HALF, RESERVED), dtype=torch.uint8)
    far, addresses = [], []
    for place, tensor in enumerate(near):
        begin, ahead = HALF + place * 2**16, before if len(tensor) == live else FAR // CHUNK * len(tensor)
        at = begin + ahead * tensor.element_size()
        far.append(memory[at : at + tensor.nbytes].view(tensor.dtype))
        far[-1].copy_(tensor + before if tensor.dtype == torch.int32 and tensor is not words else tensor)
        addresses.append(memory.data_ptr() + begin if len(tensor) else 0)
    kernel, function, dtypes = HOW[how]
    if how == "sgd":
        function(*([each] for each in near), lr=0.1, momentum=0.9, weight_decay=0.01)
        settings, constants = (0.1, 0.9, 0.01), (*dtypes, True, False)
    else:
        step = torch.zeros(())
        function(*([each] for each in near), [step], lr=0.1)
        addresses.append(step.data_ptr())
        settings, constants = scalars(0.1, 0.9, 0.999, 1e-8, 0.01), dtypes
    rows = torch.tensor([[FAR + CHUNK, -FAR // CHUNK, *addresses]])
    kernel[(1,)](rows, torch.zeros(1, dtype=torch.int32), *settings, None, None, None, *constants, CHUNK, True)
    assert not torch.equal(near[0], untouched), "nothing was done"
    for ours, theirs in zip(far, near, strict=True):
        assert torch.equal(ours, theirs + before if theirs is near[-1] and how == "live" else theirs)
