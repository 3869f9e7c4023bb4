import pytest
import torch
import torch.nn.functional as F

from sparseticket.kernels import bsr
from sparseticket.kernels.blocks import ARRAYS, BlockLayout
from sparseticket.kernels.bsr import DENSE_PASS, Tiles, bsr_linear, default_tiles, reference_bsr_linear

SHAPES = [  # M, N, K, block; K, N and M that no block or tile divides among them
    (1, 16, 16, (16, 16)),
    (37, 64, 96, (32, 32)),
    (50, 100, 70, (16, 32)),
    (70, 130, 200, (64, 32)),
    (33, 256, 128, (128, 64)),
    (130, 64, 130, (32, 128)),
]
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def problem(m, n, k, block, density, dtype, device, seed=0):
    draw = torch.Generator().manual_seed(seed)
    alive = torch.rand(-(-n // block[0]), -(-k // block[1]), generator=draw) < density
    mask = alive.repeat_interleave(block[0], 0)[:n].repeat_interleave(block[1], 1)[:, :k]
    layout = BlockLayout.from_mask(mask, block).to(device)
    x, weight, bias, dy = (
        torch.randn(shape, generator=draw).to(dtype).to(device) for shape in ((m, k), (n, k), (n,), (m, n))
    )
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), dy, layout, mask


def exact(x, weight, bias, dy, mask, activation):
    """Result and gradients in float64, from the inputs as they are in their dtype."""
    x, weight, bias = (t.detach().double().cpu().requires_grad_() for t in (x, weight, bias))
    y = reference_bsr_linear(x, weight, bias, mask, activation)
    y.backward(dy.double().cpu())
    return y.detach(), x.grad, weight.grad, bias.grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("density", [0, 0.3, 1])
@pytest.mark.parametrize("m,n,k,block", SHAPES)
def test_result_and_gradients_agree_with_float64(m, n, k, block, density, dtype, device, close):
    x, weight, bias, dy, layout, mask = problem(m, n, k, block, density, dtype, device)
    y = bsr_linear(x, weight, layout, bias)
    y.backward(dy)
    close((y, x.grad, weight.grad, bias.grad), exact(x, weight, bias, dy, mask, "none"))
    assert not weight.grad[~mask].any(), "a dead block has a gradient"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_an_activation_in_the_epilogue_and_its_gradient_agree_with_float64(activation, dtype, device, close):
    x, weight, bias, dy, layout, mask = problem(37, 64, 96, (32, 32), 0.5, dtype, device)
    y = bsr_linear(x, weight, layout, bias, activation=activation)
    y.backward(dy)
    expected = exact(x, weight, bias, dy, mask, activation)
    close((y, x.grad, weight.grad, bias.grad), expected, scale=2)  # the gradient meets a rounded pre-activation


def test_few_live_blocks_split_m_and_sum_it_twice_alike(device, close):
    x, weight, bias, dy, layout, mask = problem(250, 32, 64, (32, 32), 1, torch.float16, device)  # 8 splits, all filled
    tiles = [*(t.as_ints() for t in default_tiles((32, 32), 250, torch.float16)[:2]), Tiles(32, 32, 32, 4, 2).as_ints()]
    grads = []
    for _ in range(2):
        weight.grad = None
        bsr_linear(x, weight, layout, bias, tiles=tuple(tiles)).backward(dy)
        grads.append(weight.grad.clone())
    assert torch.equal(*grads)
    close(grads[0], exact(x, weight, bias, dy, mask, "none")[2])


@pytest.mark.parametrize(
    "density,shape", [(0, (33, 20, 40)), (0.3, (50, 100, 70)), (1, (33, 20, 40)), (0.7, (5, 20, 1100))]
)
def test_a_dense_weight_gradient_is_exactly_0_in_dead_blocks_and_expands_no_mask(
    density, shape, device, monkeypatch, close
):
    x, weight, bias, dy, layout, mask = problem(*shape, (32, 16), density, torch.float16, device)
    monkeypatch.setattr(bsr, "expand_blocks", lambda *a: pytest.fail("blocks were expanded in a step"))
    dy[0, 0] = float("inf")
    bsr_linear(x, weight, layout, bias, tiles=([], [], DENSE_PASS)).backward(dy)
    assert not weight.grad[~mask].any(), "a dead block has a gradient"
    dy[0, 0], weight.grad = 1, None
    bsr_linear(x, weight, layout, bias, tiles=([], [], DENSE_PASS)).backward(dy)
    close(weight.grad, exact(x, weight, bias, dy, mask, "none")[2])


@pytest.mark.parametrize("piece", [(16, 32, 16), (32, 16, 32)])
def test_tiles_smaller_than_a_block_give_the_same(piece, device, close):
    x, weight, bias, dy, layout, mask = problem(40, 128, 130, (64, 64), 0.5, torch.float16, device)
    tiles = Tiles(*piece, 4, 2).as_ints()
    y = bsr_linear(x, weight, layout, bias, tiles=(tiles, tiles, tiles))
    y.backward(dy)
    close((y, x.grad, weight.grad, bias.grad), exact(x, weight, bias, dy, mask, "none"))


def test_any_strides_are_right(device, close):
    x, weight, bias, dy, layout, mask = problem(20, 32, 48, (16, 16), 0.5, torch.float16, device)
    bias = bias.detach().repeat_interleave(2)[::2].requires_grad_()
    x_t = x.detach().T.contiguous().T.requires_grad_()
    w_t = weight.detach().T.contiguous().T.requires_grad_()
    y = bsr_linear(x_t, w_t, layout, bias)
    y.backward(dy.T.contiguous().T)
    close((y, x_t.grad, w_t.grad, bias.grad), exact(x, weight, bias, dy, mask, "none"))


def test_no_rows_and_several_dimensions_are_right(device):
    _, weight, bias, _, layout, _ = problem(4, 32, 48, (16, 16), 0.5, torch.float16, device)
    x = torch.zeros(2, 0, 48, dtype=torch.float16, device=device, requires_grad=True)
    y = bsr_linear(x, weight, layout, bias)
    y.sum().backward()
    assert y.shape == (2, 0, 32) and not weight.grad.any() and not bias.grad.any()


def test_what_lies_in_dead_blocks_is_never_read(device, close):
    x, weight, bias, dy, layout, mask = problem(20, 64, 64, (16, 16), 0.5, torch.float16, device)
    spoiled = weight.detach().masked_fill(~mask.to(device), float("nan")).requires_grad_()
    y = bsr_linear(x, spoiled, layout, bias)
    y.backward(dy)
    expected = exact(x, weight, bias, dy, mask, "none")
    close(y.detach(), expected[0])
    close(x.grad, expected[1])


@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_the_operators_pass_opcheck_on_the_reference(activation):
    check_operators("cpu", activation)


@pytest.mark.gpu
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_the_operators_pass_opcheck_on_the_device(activation):
    check_operators("cuda", activation)


def check_operators(device, activation):
    x, weight, bias, dy, layout, _ = problem(20, 48, 64, (16, 32), 0.5, torch.float32, device)
    tiles = [t.as_ints() for t in default_tiles((16, 32), 20, torch.float32)]
    indices = [getattr(layout, name) for name in ARRAYS]
    ops = torch.ops.sparseticket
    torch.library.opcheck(
        ops.bsr_linear.default, (x, weight, bias, *indices, [16, 32], activation, activation != "none", *tiles)
    )
    x, weight = x.detach(), weight.detach()
    by_column = (layout.row, layout.col, layout.ccol, layout.row_t, layout.schedule_t)
    torch.library.opcheck(ops.bsr_linear_dgrad.default, (dy, weight, *by_column, [16, 32], tiles[1]))
    torch.library.opcheck(ops.bsr_linear_wgrad.default, (dy, x, *indices[:3], [48, 64], [16, 32], tiles[2]))


def test_without_a_gpu_the_reference_runs_with_its_gradients():
    x, weight, bias, dy, layout, mask = problem(20, 48, 64, (16, 32), 0.5, torch.float32, "cpu")
    y = bsr_linear(x, weight, layout, bias, activation="gelu")
    y.backward(dy)
    expected = exact(x, weight, bias, dy, mask, "gelu")
    for ours, theirs in zip((y, x.grad, weight.grad, bias.grad), expected, strict=True):
        assert (ours.double() - theirs).abs().max() < 1e-4
    assert not weight.grad[~mask].any()


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda x, w, b: (x[:, :-1], w, b), "end with 64 features"),
        (lambda x, w, b: (x, w[:-1], b), "layout is of a weight"),
        (lambda x, w, b: (x, w, b[:-1]), "bias has to be"),
        (lambda x, w, b: (x, w.half(), b), "cast one of them"),
        (lambda x, w, b: (x.double(), w.double(), b.double()), "fp16, bf16 and fp32"),
        (lambda x, w, b: (x.to("meta"), w, b), "is on"),
    ],
)
def test_what_does_not_go_together_is_refused(change, message):
    x, weight, bias, _, layout, _ = problem(20, 48, 64, (16, 32), 0.5, torch.float32, "cpu")
    x, weight, bias = change(x, weight, bias)
    with pytest.raises(ValueError, match=message):
        bsr_linear(x, weight, layout, bias)


def test_a_mask_in_the_place_of_a_layout_is_refused():
    x, weight, bias, _, _, mask = problem(20, 48, 64, (16, 32), 0.5, torch.float32, "cpu")
    with pytest.raises(TypeError, match="from_mask"):
        bsr_linear(x, weight, mask, bias)


def test_an_unknown_activation_is_refused():
    x, weight, _, _, layout, _ = problem(20, 48, 64, (16, 32), 0.5, torch.float32, "cpu")
    with pytest.raises(ValueError, match="none, relu, gelu"):
        bsr_linear(x, weight, layout, activation="silu")


def test_autocast_casts_as_a_plain_linear_does():
    x, weight, bias, _, layout, mask = problem(20, 48, 64, (16, 32), 0.5, torch.float32, "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        y = bsr_linear(x, weight, layout, bias)
        plain = F.linear(x, weight * mask, bias)
    y.sum().backward()
    assert y.dtype == plain.dtype == torch.bfloat16 and torch.equal(y, plain)
    assert weight.grad.dtype == torch.float32


def test_relu_keeps_nan(device):
    x, weight, bias, _, layout, _ = problem(5, 16, 16, (16, 16), 1, torch.float32, device)
    broken = x.detach().clone()
    broken[2] = float("nan")
    assert bsr_linear(broken, weight, layout, bias, activation="relu")[2].isnan().all()


def test_tiles_that_do_not_divide_a_block_are_refused(device):
    x, weight, bias, dy, layout, _ = problem(20, 32, 32, (16, 16), 1, torch.float16, device)
    good, wide = Tiles(16, 16, 16, 4, 2).as_ints(), Tiles(16, 32, 16, 4, 2).as_ints()
    for tiles in ((wide, good, good), (good, wide, good), (good, good, wide)):
        with pytest.raises(ValueError, match="do not divide"):
            bsr_linear(x, weight, layout, bias, tiles=tiles).backward(dy)
