import pytest
import torch
import torch.nn.functional as F

from sparseticket.kernels.blocks import BlockLayout
from sparseticket.kernels.bsr_packed import PackedBlocks, bsr_linear_packed, reference_bsr_linear_packed

DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def problem(m, n, k, block, density, dtype, device):
    draw = torch.Generator().manual_seed(0)
    alive = torch.rand(-(-n // block[0]), -(-k // block[1]), generator=draw) < density
    mask = alive.repeat_interleave(block[0], 0)[:n].repeat_interleave(block[1], 1)[:, :k]
    x, weight, bias = (torch.randn(size, generator=draw).to(dtype).to(device) for size in ((m, k), (n, k), (n,)))
    weight = weight.masked_fill(~mask.to(device), 0)
    return x, weight, bias, PackedBlocks.from_dense(weight, BlockLayout.from_mask(mask, block).to(device))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("density", [0, 0.4, 1])
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_packed_blocks_agree_with_float64(activation, density, dtype, device, close):
    x, weight, bias, packed = problem(35, 100, 130, (32, 64), density, dtype, device)
    y = bsr_linear_packed(x, packed, bias, activation=activation)
    exact = PackedBlocks.from_dense(weight.double().cpu(), packed.layout.to("cpu"))
    close(y, reference_bsr_linear_packed(x.double().cpu(), exact, bias.double().cpu(), activation))


@pytest.mark.parametrize("density", [0, 0.4, 1])
@pytest.mark.parametrize("block", [(16, 16), (64, 32)])
def test_the_weight_comes_back_bit_equal(block, density):
    _, weight, _, packed = problem(1, 100, 130, block, density, torch.float32, "cpu")
    assert torch.equal(packed.to_dense(), weight)
    assert not torch.signbit(packed.to_dense()[weight == 0]).any()


def test_the_operator_passes_opcheck_and_gives_the_reference_without_a_gpu():
    x, weight, bias, packed = problem(9, 48, 64, (16, 32), 0.5, torch.float32, "cpu")
    layout = packed.layout
    indices = (layout.crow, layout.col, layout.row, layout.schedule)
    args = (x, packed.values, bias, *indices, [48, 64], "relu", [16, 16, 32, 4, 2])
    torch.library.opcheck(torch.ops.sparseticket.bsr_linear_packed.default, args)
    torch.testing.assert_close(bsr_linear_packed(x, packed, bias, activation="relu"), F.relu(F.linear(x, weight, bias)))


def test_under_autocast_the_packed_weights_dtype_is_that_of_the_product():
    x, weight, bias, packed = problem(9, 48, 64, (16, 32), 0.5, torch.float32, "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        y = bsr_linear_packed(x.bfloat16(), packed, bias)
    assert torch.equal(y, F.linear(x.bfloat16().float(), weight, bias))


@pytest.mark.parametrize(
    "x,message",
    [
        (torch.zeros(3, 63), "end with 64 features"),
        (torch.zeros(3, 64, dtype=torch.float16), "the packed weight"),
        (torch.zeros(3, 64, dtype=torch.int32), "fp16, bf16 and fp32"),
    ],
)
def test_what_does_not_go_together_is_refused(x, message):
    *_, packed = problem(9, 48, 64, (16, 32), 0.5, torch.float32, "cpu")
    with pytest.raises(ValueError, match=message):
        bsr_linear_packed(x, packed)
