import pytest
import torch
import torch.nn.functional as F

from sparseticket.kernels.masked import MaskedLinear, masked_linear, reference_masked_linear
from sparseticket.kernels.words import pack_words

SHAPES = [(1, 16, 32), (37, 100, 70), (16, 64, 128), (70, 130, 33), (3, 5, 7)]  # M, N, K
TILES = [16, 32, 32, 4, 2]  # small, so that every shape has several, and edges
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def problem(m, n, k, density, dtype, device):
    draw = torch.Generator().manual_seed(0)
    mask = torch.rand(n, k, generator=draw) < density
    x, weight, bias, dy = (
        torch.randn(shape, generator=draw).to(dtype).to(device) for shape in ((m, k), (n, k), (n,), (m, n))
    )
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), dy, mask


def exact(x, weight, bias, dy, mask, activation="none"):
    """Result and gradients in float64; the weight's is that of a weight with nothing masked."""
    x, weight, bias = (t.detach().double().cpu() for t in (x, weight, bias))
    x, bias, product = x.requires_grad_(), bias.requires_grad_(), weight.masked_fill(~mask, 0).requires_grad_()
    y = F.linear(x, product, bias)
    y = {"none": y, "relu": F.relu(y), "gelu": F.gelu(y)}[activation]
    y.backward(dy.double().cpu())
    return y.detach(), x.grad, product.grad, bias.grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("density", [0, 0.3, 1])
@pytest.mark.parametrize("m,n,k", SHAPES)
def test_result_and_gradients_agree_with_float64(m, n, k, density, dtype, device, close):
    x, weight, bias, dy, mask = problem(m, n, k, density, dtype, device)
    y = masked_linear(x, weight, pack_words(mask).to(device), bias, tiles=TILES)
    y.backward(dy)
    of_y, of_x, of_weight, of_bias = exact(x, weight, bias, dy, mask)
    close((y, x.grad, weight.grad, bias.grad), (of_y, of_x, of_weight * mask, of_bias))
    assert not weight.grad[~mask].any(), "a dead weight has a gradient"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_an_activation_in_the_epilogue_and_its_gradient_agree_with_float64(activation, dtype, device, close):
    x, weight, bias, dy, mask = problem(20, 64, 96, 0.5, dtype, device)
    y = masked_linear(x, weight, pack_words(mask).to(device), bias, activation=activation)
    y.backward(dy)
    of_y, of_x, of_weight, of_bias = exact(x, weight, bias, dy, mask, activation)
    close((y, x.grad, weight.grad, bias.grad), (of_y, of_x, of_weight * mask, of_bias), scale=2)


def test_with_a_dense_gradient_dead_weights_get_what_they_would_alive(device, close):
    x, weight, bias, dy, mask = problem(20, 64, 96, 0.5, torch.float32, device)
    masked_linear(x, weight, pack_words(mask).to(device), bias, dense_grad=True).backward(dy)
    close(weight.grad, exact(x, weight, bias, dy, mask)[2])
    assert weight.grad[~mask].all()


def test_dead_values_do_not_count_even_where_they_are_not_finite(device, close):
    x, weight, bias, dy, mask = problem(20, 64, 96, 0.5, torch.float16, device)
    spoiled = weight.detach().masked_fill(~mask.to(device), float("nan")).requires_grad_()
    y = masked_linear(x, spoiled, pack_words(mask).to(device), bias)
    y.backward(dy)
    close((y, x.grad), exact(x, weight, bias, dy, mask)[:2])


def test_any_strides_are_right(device, close):
    x, weight, bias, dy, mask = problem(20, 40, 70, 0.5, torch.float16, device)
    x_t, w_t = (t.detach().T.contiguous().T.requires_grad_() for t in (x, weight))
    words = pack_words(mask).to(device).T.contiguous().T
    y = masked_linear(x_t, w_t, words, bias)
    y.backward(dy.T.contiguous().T)
    of_y, of_x, of_weight, _ = exact(x, weight, bias, dy, mask)
    close((y, x_t.grad, w_t.grad), (of_y, of_x, of_weight * mask))


def test_no_rows_and_several_dimensions_are_right(device):
    _, weight, bias, _, mask = problem(4, 32, 48, 0.5, torch.float16, device)
    x = torch.zeros(2, 0, 48, dtype=torch.float16, device=device, requires_grad=True)
    y = masked_linear(x, weight, pack_words(mask).to(device), bias)
    y.sum().backward()
    assert y.shape == (2, 0, 32) and not weight.grad.any() and not bias.grad.any()


@pytest.mark.gpu
def test_a_captured_graph_sees_a_changed_mask():
    x, _, _, _, mask = problem(64, 128, 128, 0.5, torch.bfloat16, "cuda")
    linear = torch.nn.Linear(128, 128, bias=False, device="cuda", dtype=torch.bfloat16)
    module = MaskedLinear.from_linear(linear, mask.cuda())
    with torch.no_grad():
        module(x)  # compiles
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = module(x)
        module.set_mask(~mask.cuda())
        graph.replay()
        assert torch.allclose(y, reference_masked_linear(x, linear.weight, ~mask.cuda()), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_the_operators_pass_opcheck(where, activation):
    x, weight, bias, dy, mask = problem(20, 40, 70, 0.5, torch.float32, where)
    words, ops = pack_words(mask).to(where), torch.ops.sparseticket
    keep_pre = activation != "none"
    torch.library.opcheck(ops.masked_linear.default, (x, weight, bias, words, activation, keep_pre, False, TILES))
    x, weight = x.detach(), weight.detach()
    torch.library.opcheck(ops.masked_linear_dgrad.default, (dy, weight, words, TILES))
    torch.library.opcheck(ops.masked_linear_wgrad.default, (dy, x, words))


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_compiled_it_gives_the_same_result_and_gradients(where):
    x, weight, bias, dy, mask = problem(20, 40, 70, 0.5, torch.float32, where)
    words = pack_words(mask).to(where)

    def run(function):
        for tensor in (x, weight, bias):
            tensor.grad = None
        y = function(x, weight, words, bias, activation="gelu")
        y.backward(dy)
        return y.detach(), x.grad, weight.grad, bias.grad

    for compiled, eager in zip(run(torch.compile(masked_linear, fullgraph=True)), run(masked_linear), strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-4)


def test_exported_it_comes_back_from_a_file_with_its_mask(tmp_path):
    x, _, _, _, mask = problem(20, 40, 70, 0.5, torch.float32, "cpu")
    module = MaskedLinear.from_linear(torch.nn.Linear(70, 40), mask, activation="relu")
    torch.export.save(torch.export.export(module, (x.detach(),)), tmp_path / "masked.pt2")
    again = torch.export.load(tmp_path / "masked.pt2").module()
    assert torch.equal(again(x.detach()), module(x.detach()))


def test_two_modules_mask_one_weight_and_leave_it_whole():
    linear = torch.nn.Linear(40, 8)
    before = linear.weight.detach().clone()
    mask = torch.rand(8, 40, generator=torch.Generator().manual_seed(0)) < 0.5
    one, other = MaskedLinear.from_linear(linear, mask), MaskedLinear.from_linear(linear, ~mask)
    x = torch.randn(3, 40)
    torch.testing.assert_close(one(x) + other(x), linear(x) + linear.bias)
    assert one.weight is other.weight is linear.weight and torch.equal(linear.weight, before)


def test_a_mask_is_saved_with_its_module_and_can_be_changed():
    module = MaskedLinear(40, 8)
    assert torch.equal(module(torch.ones(1, 40)), F.linear(torch.ones(1, 40), module.weight, module.bias))
    module.set_mask(torch.zeros(8, 40, dtype=torch.bool))
    again = MaskedLinear(40, 8)
    again.load_state_dict(module.state_dict())
    assert torch.equal(again(torch.randn(2, 40)), module.bias.expand(2, 8))
    with pytest.raises(ValueError, match="does not fit"):
        module.set_mask(torch.ones(40, 8, dtype=torch.bool))


def test_autocast_leaves_alone_what_a_plain_linear_would_refuse():
    _, weight, _, _, mask = problem(20, 40, 70, 0.5, torch.float32, "cpu")
    ids = torch.full((2, 70), 30522)  # bf16 knows it as 30464
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="int64; this runs"):
        masked_linear(ids, weight, pack_words(mask))


def test_tiles_that_hold_no_whole_words_are_refused(device):
    x, weight, bias, _, mask = problem(20, 40, 70, 0.5, torch.float16, device)
    with pytest.raises(ValueError, match="multiples of 32"):
        masked_linear(x, weight, pack_words(mask).to(device), bias, tiles=[16, 32, 16, 4, 2])


def test_autocast_casts_as_a_plain_linear_does():
    x, weight, bias, _, mask = problem(20, 40, 70, 0.5, torch.float32, "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        y = masked_linear(x, weight, pack_words(mask), bias)
        plain = F.linear(x, weight * mask, bias)
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and torch.equal(y, plain) and weight.grad.dtype == torch.float32


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda x, w, m, b: (x[:, :-1], w, m, b), "end with 70 features"),
        (lambda x, w, m, b: (x, w[0], m, b), "two dimensions"),
        (lambda x, w, m, b: (x, w, m[:, :-1], b), "int32 words"),
        (lambda x, w, m, b: (x, w, m.long(), b), "int32 words"),
        (lambda x, w, m, b: (x, w, m, b[:-1]), "bias has to be"),
        (lambda x, w, m, b: (x, w.half(), m, b), "cast one of them"),
        (lambda x, w, m, b: (x.double(), w.double(), m, b.double()), "fp16, bf16 and fp32"),
        (lambda x, w, m, b: (x, w, m.to("meta"), b), "mask on meta"),
        (lambda x, w, m, b: (x[:, :0], w[:, :0], m[:, :0], b), "nothing to sum over"),
        (lambda x, w, m, b: (x[:1, :1].expand(2**31, 1), w[:, :1], m[:, :1], b), "2147483648 rows.*split it"),
    ],
)
def test_what_does_not_go_together_is_refused(change, message):
    x, weight, bias, _, mask = problem(20, 40, 70, 0.5, torch.float32, "cpu")
    with pytest.raises(ValueError, match=message):
        masked_linear(*change(x, weight, pack_words(mask), bias))
