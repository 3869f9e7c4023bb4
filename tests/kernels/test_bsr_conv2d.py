import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparseticket.kernels.bsr import Tiles
from sparseticket.kernels.conv2d import BsrConv2d, PackedConv2d, bsr_conv2d, candidate_tiles, default_tiles

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
CONVOLUTIONS = [  # images, (I, O), (H, W), kernel, stride, padding, block: what no block or tile divides among them
    (1, (16, 16), (4, 4), 3, (1, 1), (1, 1), (16, 16)),
    (2, (40, 30), (4, 7), 3, (1, 1), (1, 1), (16, 32)),
    (3, (20, 70), (7, 5), 3, (2, 2), (1, 1), (64, 16)),
    (3, (33, 48), (6, 5), 1, (1, 1), (0, 0), (32, 32)),
    (2, (70, 40), (7, 9), 1, (2, 2), (0, 0), (32, 64)),
    (1, (150, 14), (5, 5), 3, (1, 2), (0, 2), (16, 128)),
    (2, (16, 130), (3, 4), 1, (2, 1), (1, 0), (128, 16)),
]


@pytest.fixture(autouse=True)
def exact_fp32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def problem(images, channels, size, kernel, block, density, dtype, device):
    draw = torch.Generator().manual_seed(0)
    i, o = channels
    alive = torch.rand(-(-o // block[0]), -(-i // block[1]), kernel, kernel, generator=draw) < density
    mask = alive.repeat_interleave(block[0], 0)[:o].repeat_interleave(block[1], 1)[:, :i]
    x, weight, bias = (
        torch.randn(shape, generator=draw).to(dtype).to(device)
        for shape in ((images, i, *size), (o, i, kernel, kernel), (o,))
    )
    packed = PackedConv2d.from_dense(weight, mask, block)
    return x.to(memory_format=torch.channels_last), weight * mask.to(device), bias, mask, packed


def exact(x, weight, bias, stride, padding):
    x, weight, bias = (tensor.double().cpu() for tensor in (x, weight, bias))
    return F.conv2d(x, weight, bias, stride, padding)


@pytest.mark.parametrize(
    "density,dtype",
    [(0.4, torch.float16), (1, torch.float16), (0.4, torch.float32), (0.4, torch.bfloat16), (1, torch.bfloat16)],
)
@pytest.mark.parametrize("images,channels,size,kernel,stride,padding,block", CONVOLUTIONS)
def test_a_convolution_agrees_with_float64(
    images, channels, size, kernel, stride, padding, block, density, dtype, device, close
):
    x, weight, bias, _, packed = problem(images, channels, size, kernel, block, density, dtype, device)
    y = bsr_conv2d(x, packed, bias, stride=stride, padding=padding)
    close(y, exact(x, weight, bias, stride, padding))
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kernel", [1, 3])
def test_an_all_zero_mask_leaves_the_bias(kernel, device):
    x, _, bias, _, packed = problem(2, (20, 40), (5, 5), kernel, (16, 16), 0, torch.float16, device)
    assert packed.nnzb == 0
    y = bsr_conv2d(x, packed, bias)
    assert torch.equal(y, bias[:, None, None].expand_as(y))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_a_residual_is_added_before_the_activation(activation, dtype, device, close):
    x, weight, bias, _, packed = problem(2, (32, 20), (5, 4), 3, (16, 32), 0.5, dtype, device)
    residual = torch.randn(2, 20, 3, 2).to(device, dtype)
    y = bsr_conv2d(x, packed, bias, stride=(2, 2), padding=(1, 1), residual=residual, activation=activation)
    sums = exact(x, weight, bias, (2, 2), (1, 1)) + residual.double().cpu()
    close(y, sums.relu() if activation == "relu" else sums)


@pytest.mark.parametrize("tiles", [Tiles(16, 32, 16, 4, 2), Tiles(64, 16, 64, 4, 3)])
def test_tiles_smaller_than_a_block_give_the_same(tiles, device, close):
    x, weight, bias, _, packed = problem(1, (70, 50), (4, 5), 3, (64, 64), 0.3, torch.float16, device)
    close(bsr_conv2d(x, packed, bias, tiles=tiles.as_ints()), exact(x, weight, bias, (1, 1), (0, 0)))


def test_tiles_that_do_not_divide_a_block_are_refused(device):
    x, _, bias, _, packed = problem(1, (20, 30), (4, 5), 1, (16, 16), 1, torch.float16, device)
    for tiles in (Tiles(16, 32, 16, 4, 2), Tiles(16, 16, 32, 4, 2)):
        with pytest.raises(ValueError, match="do not divide"):
            bsr_conv2d(x, packed, bias, tiles=tiles.as_ints())


@pytest.mark.parametrize("where", ["contiguous", "sliced"])
def test_what_is_not_channels_last_is_converted(where, device, close):
    x, weight, bias, _, packed = problem(2, (24, 30), (5, 6), 3, (32, 16), 0.5, torch.float16, device)
    x = x.contiguous() if where == "contiguous" else x.repeat(1, 2, 1, 1)[:, ::2]
    y = bsr_conv2d(x, packed, bias, padding=(1, 1))
    close(y, exact(x, weight, bias, (1, 1), (1, 1)))
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_no_images_give_none(device):
    x, _, bias, _, packed = problem(1, (16, 30), (5, 6), 3, (16, 16), 0.5, torch.float16, device)
    y = bsr_conv2d(x[:0], packed, bias, stride=(2, 2))
    assert y.shape == (0, 30, 2, 2) and y.dtype == torch.float16


def test_what_lies_in_dead_blocks_and_beyond_the_channels_is_never_read(device, close):
    x, weight, bias, mask, _ = problem(1, (20, 30), (5, 6), 3, (16, 32), 0.5, torch.float16, device)
    spoiled = weight.masked_fill(~mask.to(device), float("nan"))
    wide = torch.full((1, 5, 6, 21), float("nan"), device=device, dtype=torch.float16)
    wide[..., :20] = x.permute(0, 2, 3, 1)
    packed = PackedConv2d.from_dense(spoiled, mask, (16, 32))
    close(bsr_conv2d(wide[..., :20].permute(0, 3, 1, 2), packed, bias), exact(x, weight, bias, (1, 1), (0, 0)))


@pytest.mark.parametrize("block", [(16, 16), (32, 64), (128, 16)])
def test_the_weight_comes_back_bit_equal(block):
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(70, 90, 3, 3, generator=draw).half()
    weight[3, 5] = -0.0
    mask = torch.rand(70, 90, 3, 3, generator=draw) < 0.01  # live blocks with dead entries
    mask[3, 5] = True
    dense = PackedConv2d.from_dense(weight, mask, block).to_dense()
    assert torch.equal(dense.view(torch.int16), weight.masked_fill(~mask, 0).view(torch.int16))


def test_a_module_replaces_a_convolution_with_its_batch_norm_and_gives_it_back():
    conv, norm = nn.Conv2d(20, 30, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(30)
    nn.init.uniform_(norm.weight), nn.init.normal_(norm.bias)
    norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
    _, _, _, mask, _ = problem(1, (20, 30), (1, 1), 3, (16, 16), 0.5, torch.float32, "cpu")
    conv.weight.data *= mask
    folded = nn.utils.fuse_conv_bn_eval(conv.eval(), norm.eval())
    module = BsrConv2d.from_conv(folded, mask, (16, 16), activation="relu")
    x = torch.randn(2, 20, 7, 7)
    torch.testing.assert_close(module(x), norm(conv(x)).relu())
    assert module(x).is_contiguous(memory_format=torch.channels_last)
    assert module.state_dict().keys() == folded.state_dict().keys()
    assert torch.equal(module.to_conv().weight, folded.weight) and torch.equal(module.to_conv().bias, folded.bias)
    with pytest.raises(RuntimeError, match="to_conv"):
        module.load_state_dict(folded.state_dict())


@pytest.mark.parametrize(
    "options,message",
    [
        (dict(kernel_size=3, dilation=2), "dilation"),
        (dict(kernel_size=3, groups=4), "groups"),
        (dict(kernel_size=3, stride=3), "strides of 1 and 2"),
        (dict(kernel_size=3, padding="same"), "padding by numbers"),
        (dict(kernel_size=3, padding=1, padding_mode="reflect"), "with zeros"),
        (dict(kernel_size=5), r"\[O, I, 3, 3\]"),
    ],
)
def test_a_convolution_that_no_kernel_runs_is_refused(options, message):
    conv = nn.Conv2d(16, 16, **options)
    with pytest.raises(ValueError, match=message):
        BsrConv2d.from_conv(conv, torch.ones_like(conv.weight).bool(), (16, 16))


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda a: a | {"x": a["x"][:, :-1]}, r"x has to be \[B, 20, H, W\]"),
        (lambda a: a | {"x": a["x"][0]}, r"x has to be \[B, 20, H, W\]"),
        (lambda a: a | {"x": a["x"].half()}, "the packed weight torch.float32"),
        (lambda a: a | {"x": a["x"].int()}, "fp16, bf16 and fp32"),
        (lambda a: a | {"x": a["x"].to("meta")}, "on meta"),
        (lambda a: a | {"x": a["x"][..., :2]}, "smaller than the kernel"),
        (lambda a: a | {"bias": a["bias"][:-1]}, "bias has to be of"),
        (lambda a: a | {"residual": a["x"]}, "residual has to be of"),
        (lambda a: a | {"stride": (3, 1)}, "1 or 2"),
        (lambda a: a | {"padding": (-1, 0)}, "0 or more"),
        (lambda a: a | {"stride": 2}, "two numbers"),
        (lambda a: a | {"padding": 1}, "two numbers"),
        (lambda a: a | {"activation": "silu"}, "none, relu, gelu"),
    ],
)
def test_what_does_not_go_together_is_refused(change, message):
    x, _, bias, _, weight = problem(1, (20, 30), (5, 5), 3, (16, 16), 0.5, torch.float32, "cpu")
    with pytest.raises(ValueError, match=message):
        bsr_conv2d(**change(dict(x=x, weight=weight, bias=bias)))


@pytest.mark.parametrize("mask", [torch.ones(30, 20, 3, 3), torch.ones(30, 20, 1, 1).bool()])
def test_a_mask_that_does_not_fit_is_refused(mask):
    with pytest.raises(ValueError, match="mask has to be bool"):
        PackedConv2d.from_dense(torch.ones(30, 20, 3, 3), mask, (16, 16))


def test_few_pixels_get_smaller_tiles_and_many_the_largest():
    few, many = (default_tiles((128, 128), pixels, 512, torch.float16) for pixels in (1568, 100352))
    assert (few.rows, many.rows) == (64, 128)


@pytest.mark.parametrize("block", [(16, 128), (64, 32)])
def test_every_candidate_cuts_a_block_evenly(block):
    candidates = candidate_tiles(block, torch.float16)
    assert candidates and not any(block[0] % tiles.out or block[1] % tiles.reduce for tiles in candidates)


def test_the_operator_passes_opcheck_on_the_reference():
    check_operator("cpu")


@pytest.mark.gpu
def test_the_operator_passes_opcheck_on_the_device():
    check_operator("cuda")


def check_operator(device):
    x, _, bias, _, packed = problem(2, (20, 40), (5, 6), 3, (16, 16), 0.5, torch.float32, device)
    residual = torch.randn(2, 40, 3, 3, device=device)
    args = (packed.values, bias, residual, packed.crow, packed.place, packed.row, list(packed.shape), [2, 2], [1, 1])
    torch.library.opcheck(torch.ops.sparseticket.bsr_conv2d.default, (x, *args, "relu", [16, 16, 16, 4, 2]))


def module_and_input(device="cpu", dtype=torch.float32):
    x, _, bias, _, packed = problem(3, (20, 40), (6, 7), 3, (16, 16), 0.5, dtype, device)
    return BsrConv2d(packed, bias, padding=(1, 1), activation="relu").eval(), x


def test_it_compiles_without_a_break_and_exports_with_any_batch(tmp_path):
    module, x = module_and_input()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), module(x))
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("images", min=1, max=64)},))
    torch.export.save(program, tmp_path / "conv.pt2")
    loaded = torch.export.load(tmp_path / "conv.pt2").module()
    torch.testing.assert_close(loaded(x[:2]), module(x[:2]))


def test_a_backward_is_refused():
    module, x = module_and_input()
    with pytest.raises(RuntimeError, match="no autograd formula"):
        module(x.requires_grad_()).sum().backward()


@pytest.mark.gpu
def test_it_runs_compiled_and_in_a_cuda_graph():
    module, x = module_and_input("cuda", torch.float16)
    eager = module(x)
    torch.testing.assert_close(torch.compile(module, fullgraph=True)(x), eager)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = module(x)
    graph.replay()
    assert torch.equal(y, eager)


@pytest.mark.gpu
def test_more_elements_than_2_to_the_31_are_addressed_right():
    _, weight, bias, _, packed = problem(1, (16, 16), (1, 1), 1, (16, 16), 1, torch.float16, "cuda")
    x = torch.randn(3, 7000, 7000, 16, device="cuda", dtype=torch.float16).permute(0, 3, 1, 2)
    y = bsr_conv2d(x, packed, bias)
    torch.testing.assert_close(y[2:, :, -4:], F.conv2d(x[2:, :, -4:], weight, bias), rtol=5e-3, atol=2e-2)
