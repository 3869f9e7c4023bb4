"""Products by TMA, with programs that stay for several block rows, against float64."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from sparseticket.kernels import bsr_resident
from sparseticket.kernels.blocks import BlockLayout
from sparseticket.kernels.bsr import Tiles, bsr_linear
from sparseticket.kernels.bsr_packed import PackedBlocks, bsr_linear_packed
from sparseticket.kernels.launch import as_compiled

PYTHON, COMPILED = nullcontext, as_compiled  # who makes descriptors: the CPU, or each program
SHAPES = [  # M, N, K, block; TMA wants rows of whole 16 bytes; no block or tile divides all of these
    (40, 64, 96, (32, 32), PYTHON),
    (50, 104, 72, (16, 32), COMPILED),
    (70, 136, 200, (64, 32), COMPILED),
    (33, 256, 128, (128, 64), PYTHON),
]


def problem(m, n, k, block, density, dtype, device):
    draw = torch.Generator().manual_seed(0)
    alive = torch.rand(-(-n // block[0]), -(-k // block[1]), generator=draw) < density
    alive[0], alive[:, 0] = False, False  # a row and a column without blocks
    mask = alive.repeat_interleave(block[0], 0)[:n].repeat_interleave(block[1], 1)[:, :k]
    x, weight, bias, dy = (
        torch.randn(shape, generator=draw).to(dtype).to(device) for shape in ((m, k), (n, k), (n,), (m, n))
    )
    return x, weight, bias, dy, BlockLayout.from_mask(mask, block).to(device), mask


def resident_tiles(block, residents=2):
    n, k = block
    tiles = (
        Tiles(32, n, min(k, 32), 4, 2, residents),
        Tiles(32, k, min(n, 32), 4, 2, residents),
        Tiles(n, k, 32, 4, 2, 1),
    )
    return tuple(each.as_ints() for each in tiles)


@pytest.fixture
def only_tma(monkeypatch):
    """What TMA cannot read fails, instead of running on other kernels."""
    reads = bsr_resident.tma_reads

    def must_read(*tensors, **result):
        assert reads(*tensors, **result), "these run without TMA"
        return True

    monkeypatch.setattr("sparseticket.kernels.bsr.tma_reads", must_read)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("m,n,k,block,called_from", SHAPES)
def test_result_and_gradients_agree_with_float64(
    m, n, k, block, called_from, activation, dtype, device, close, only_tma
):
    x, weight, bias, dy, layout, mask = problem(m, n, k, block, 0.5, dtype, device)
    ours = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    with called_from():
        y = bsr_linear(*ours[:2], layout, bias, activation=activation, tiles=resident_tiles(block))
        gradients = torch.autograd.grad(y, ours, dy)
    exact = [tensor.detach().double().cpu().requires_grad_() for tensor in ours]
    expected = F.linear(exact[0], exact[1] * mask, exact[2])
    expected = F.gelu(expected) if activation == "gelu" else expected
    close((y, *gradients), (expected.detach(), *torch.autograd.grad(expected, exact, dy.double().cpu())), scale=2)
    assert not gradients[1][~mask].any(), "a dead block has a gradient"


@pytest.mark.parametrize("residents,called_from", [(1, COMPILED), (4, PYTHON)])
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_packed_blocks_agree_with_float64(activation, residents, called_from, device, close, only_tma):
    x, weight, bias, _, layout, mask = problem(70, 136, 200, (64, 32), 0.5, torch.float16, device)
    packed = PackedBlocks.from_dense(weight, layout)
    with called_from():
        y = bsr_linear_packed(x, packed, bias, activation=activation, tiles=resident_tiles((64, 32), residents)[0])
    exact = F.linear(x.double().cpu(), weight.double().cpu() * mask, bias.double().cpu())
    close(y, F.gelu(exact) if activation == "gelu" else exact)


def test_what_lies_in_dead_blocks_is_never_read(device, close, only_tma):
    x, weight, bias, dy, layout, mask = problem(20, 64, 64, (16, 16), 0.5, torch.float16, device)
    spoiled = weight.masked_fill(~mask.to(device), float("nan"))
    x.requires_grad_()
    y = bsr_linear(x, spoiled, layout, bias, tiles=resident_tiles((16, 16)))
    exact_x, exact_weight = x.detach().double().cpu(), weight.double().cpu() * mask
    close(y, F.linear(exact_x, exact_weight, bias.double().cpu()))
    close(torch.autograd.grad(y, x, dy)[0], dy.double().cpu() @ exact_weight)


@pytest.mark.parametrize("density", [0, 1])
def test_weights_wholly_dead_or_alive_are_right(density, device, close):
    x, weight, bias, dy, _, _ = problem(40, 64, 96, (32, 32), 0.5, torch.float16, device)
    mask = torch.full((64, 96), bool(density))
    layout = BlockLayout.from_mask(mask, (32, 32)).to(device)
    ours = [x.requires_grad_(), weight.requires_grad_()]
    y = bsr_linear(*ours, layout, bias, tiles=resident_tiles((32, 32)))
    exact = weight.detach().double().cpu() * mask
    close(y, F.linear(x.detach().double().cpu(), exact, bias.double().cpu()))
    expected = dy.double().cpu() @ exact, dy.double().cpu().T @ x.detach().double().cpu() * mask
    close(torch.autograd.grad(y, ours, dy), expected)


@pytest.mark.parametrize("why", ["rows of odd bytes", "turned", "an odd begin", "one row for all"])
def test_what_tma_cannot_read_runs_on_the_other_kernels(why, device, close):
    x, weight, bias, _, layout, mask = problem(40, 64, 96, (32, 32), 0.5, torch.float16, device)
    if why == "rows of odd bytes":
        x = F.pad(x, (0, 1))[:, :-1]
    elif why == "one row for all":
        x = x[:1].expand(40, 96)
    elif why == "turned":
        x = x.T.contiguous().T
    else:
        x = F.pad(x.flatten(), (1, 0))[1:].view(40, 96)
    assert not bsr_resident.tma_reads(x)
    y = bsr_linear(x, weight, layout, bias, tiles=resident_tiles((32, 32)))
    close(y, F.linear(x.double().cpu(), weight.double().cpu() * mask, bias.double().cpu()))


def test_results_whose_rows_are_not_of_16_bytes_are_written_by_the_other_kernels(device, close):
    x, weight, bias, _, layout, mask = problem(40, 61, 96, (32, 32), 0.5, torch.float16, device)
    exact = F.linear(x.double().cpu(), weight.double().cpu() * mask, bias.double().cpu())
    tiles = resident_tiles((32, 32))
    close(bsr_linear(x, weight, layout, bias, tiles=tiles), exact)
    close(bsr_linear_packed(x, PackedBlocks.from_dense(weight, layout), bias, tiles=tiles[0]), exact)


def test_an_infinite_weight_does_not_reach_packed_rows_without_blocks(device):
    x, weight, bias, _, layout, mask = problem(40, 64, 96, (32, 32), 0.5, torch.float16, device)
    row, column = int(layout.row[0]) * 32, int(layout.col[0]) * 32
    weight[row, column] = float("inf")
    y = bsr_linear_packed(x, PackedBlocks.from_dense(weight, layout), bias, tiles=resident_tiles((32, 32))[0])
    empty = ~mask.any(1)
    assert empty.any() and torch.equal(y[:, empty], bias[empty].expand(40, -1))


def test_tiles_that_hold_part_of_a_block_are_refused(device):
    x, weight, bias, _, layout, _ = problem(40, 64, 96, (32, 32), 0.5, torch.float16, device)
    with pytest.raises(ValueError, match="hold a block's 32 columns"):
        bsr_linear(x, weight, layout, bias, tiles=([32, 16, 32, 4, 2, 1], [], []))
    with pytest.raises(ValueError, match="divide its 32 terms"):
        bsr_linear(x, weight, layout, bias, tiles=([32, 32, 64, 4, 2, 1], [], []))


@pytest.mark.gpu
@pytest.mark.parametrize("called_from", [PYTHON, COMPILED])
def test_a_cuda_graph_of_it_gives_the_same(called_from):
    x, weight, bias, _, layout, _ = problem(70, 136, 200, (64, 32), 0.5, torch.float16, "cuda")
    call = lambda: bsr_linear(x, weight, layout, bias, tiles=resident_tiles((64, 32)))  # noqa: E731
    with called_from():
        expected = call()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = call()
    y.zero_()
    graph.replay()
    assert torch.equal(y, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("gradients", [False, True])
def test_compiled_by_torch_it_runs_by_tma_and_gives_the_same(gradients):
    x, weight, bias, dy, layout, _ = problem(70, 136, 200, (64, 32), 0.5, torch.float16, "cuda")
    ours = [tensor.requires_grad_(gradients) for tensor in (x, weight, bias)]

    def step(x, weight, bias):
        y = bsr_linear(x, weight, layout, bias, activation="gelu", tiles=resident_tiles((64, 32)))
        return y, *(torch.autograd.grad(y, (x, weight, bias), dy) if gradients else ())

    expected = step(*ours)
    compiled, sources = torch._inductor.utils.run_and_get_code(torch.compile(step), *ours)
    assert any("bsr_resident_kernel" in source for source in sources)
    assert torch.equal(compiled[0], expected[0])
    for one, other in zip(compiled[1:], expected[1:], strict=True):  # behind GELU's gradient, which Inductor fuses
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-2)
