import copy

import pytest
import torch
from torch import nn

from sparseticket.kernels.semi_structured import (
    SemiStructuredLinear,
    SemiStructuredWeight,
    reference_semi_structured_linear,
    semi_structured_linear,
)

PLACES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 1e-5}  # of the largest value


def problem(rows=(37,), n=64, k=128, dtype=torch.float16, where="cpu", alive=2):
    draw = torch.Generator().manual_seed(0)
    mask = torch.rand(n, k // 4, 4, generator=draw).argsort(2).argsort(2).lt(alive).reshape(n, k)
    x, weight, bias = (torch.randn(size, generator=draw).to(where, dtype) for size in ((*rows, k), (n, k), (n,)))
    return x, weight, bias, mask


def exact(x, weight, bias, mask, activation="none"):
    x, weight, bias = (t.double().cpu() for t in (x, weight, bias))
    return reference_semi_structured_linear(x, weight * mask, bias, activation)


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    assert (actual.double().cpu() - expected).abs().max() <= TOLERANCE[actual.dtype] * expected.abs().max()


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [(1,), (37,), (2, 3, 5)])
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_it_agrees_with_float64(activation, rows, dtype, where):
    x, weight, bias, mask = problem(rows, dtype=dtype, where=where)
    y = semi_structured_linear(x, SemiStructuredWeight.from_dense(weight, mask), bias, activation=activation)
    assert_close(y, exact(x, weight, bias, mask, activation))


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("alive", [0, 1])
def test_fewer_than_two_of_four_are_fine(alive, where):
    x, weight, bias, mask = problem(where=where, alive=alive)
    y = semi_structured_linear(x, SemiStructuredWeight.from_dense(weight, mask), bias)
    assert_close(y, exact(x, weight, bias, mask))


@pytest.mark.parametrize("where", PLACES)
def test_no_rows_and_any_strides_are_right(where):
    x, weight, bias, mask = problem((6, 10), where=where)
    packed = SemiStructuredWeight.from_dense(weight.T.contiguous().T, mask)
    assert semi_structured_linear(x[:, :0], packed, bias).shape == (6, 0, 64)
    strided = x.transpose(0, 1)
    torch.testing.assert_close(
        semi_structured_linear(strided, packed, bias), semi_structured_linear(strided.contiguous(), packed, bias)
    )


@pytest.mark.parametrize("where", PLACES)
def test_the_weight_comes_back_bit_equal_and_its_dead_entries_as_positive_zeros(where):
    _, weight, _, mask = problem(where=where)
    weight[3] = -0.0
    dense = SemiStructuredWeight.from_dense(weight, mask).to_dense()
    assert dense.device == weight.device
    assert torch.equal(dense.view(torch.int16), weight.masked_fill(~mask.to(where), 0).view(torch.int16))


@pytest.mark.parametrize("where", PLACES)
def test_a_module_replaces_a_linear_and_gives_it_back(where):
    x, weight, bias, mask = problem(where=where)
    linear = nn.Linear(128, 64).to(where, torch.float16)
    linear.load_state_dict({"weight": weight.masked_fill(~mask.to(where), 0), "bias": bias})
    module = SemiStructuredLinear.from_linear(linear, mask, activation="relu")
    assert_close(module(x), exact(x, weight, bias, mask, "relu"))
    assert module.packed.is_sparse == (where == "cuda")
    assert module.state_dict().keys() == linear.state_dict().keys()
    assert torch.equal(module.to_linear().weight, linear.weight) and torch.equal(module.to_linear().bias, bias)
    with pytest.raises(RuntimeError, match="to_linear"):
        module.load_state_dict(linear.state_dict())


@pytest.mark.parametrize("where", PLACES)
def test_it_is_a_packed_weight_as_use_kernels_holds_them(where):
    x, weight, bias, mask = problem(where=where)
    packed = SemiStructuredWeight.from_dense(weight, mask)
    holder = nn.Module()
    for name, tensor in packed.tensors().items():
        holder.register_buffer(name, tensor, persistent=False)
    again = packed.with_tensors(dict(holder.to(where).named_buffers()))
    assert torch.equal(again.linear(x, bias, "relu", ()), semi_structured_linear(x, packed, bias, activation="relu"))
    assert torch.equal(again.to_dense(), packed.to_dense())


def test_a_cast_module_packs_its_weight_anew():
    x, weight, bias, mask = problem(dtype=torch.float32)
    module = SemiStructuredLinear(SemiStructuredWeight.from_dense(weight, mask), bias)
    same = module.packed
    assert module.to("cpu").packed is same
    half = copy.deepcopy(module).half()
    assert_close(half(x.half()), exact(x, weight, bias, mask))
    assert half.state_dict()["weight"].dtype == torch.float16
    assert module.state_dict()["weight"].dtype == torch.float32
    with pytest.raises(ValueError, match="fp16 or bf16"):
        module.double()


@pytest.mark.gpu
def test_a_module_made_without_a_gpu_is_sparse_once_it_moves_to_one():
    x, weight, bias, mask = problem()
    module = SemiStructuredLinear(SemiStructuredWeight.from_dense(weight, mask), bias)
    before = module(x)
    module.cuda()
    assert module.packed.is_sparse
    torch.testing.assert_close(module(x.cuda()).cpu(), before, rtol=2e-3, atol=2e-2)
    module.cpu()
    assert torch.equal(module(x), before)


@pytest.mark.gpu
def test_it_runs_compiled_and_in_a_cuda_graph():
    x, weight, bias, mask = problem((64,), where="cuda")
    module = SemiStructuredLinear(SemiStructuredWeight.from_dense(weight, mask), bias)
    eager = module(x)
    torch.testing.assert_close(torch.compile(module, fullgraph=True)(x), eager)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = module(x)
    graph.replay()
    assert torch.equal(y, eager)


def test_it_compiles_without_a_break_and_exports_with_any_number_of_rows(tmp_path):
    x, weight, bias, mask = problem(dtype=torch.float32)
    module = SemiStructuredLinear(SemiStructuredWeight.from_dense(weight, mask), bias).eval()
    assert torch.equal(torch.compile(module, fullgraph=True, backend="aot_eager")(x), module(x))
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=1, max=64)},))
    torch.export.save(program, tmp_path / "linear.pt2")
    torch.testing.assert_close(torch.export.load(tmp_path / "linear.pt2").module()(x[:5]), module(x[:5]))


def test_a_mask_that_is_two_of_four_along_the_output_only_is_refused():
    _, weight, _, mask = problem()
    with pytest.raises(ValueError, match="not 2:4 along the input dimension: 4 of four are alive in row 0, columns 0"):
        SemiStructuredWeight.from_dense(weight, torch.arange(64)[:, None].expand_as(mask) % 4 < 2)


@pytest.mark.parametrize(
    "n,k,dtype,message",
    [
        (24, 128, torch.float16, "multiples of 16, and are 24 and 128"),
        (64, 136, torch.float16, "multiples of 16"),
        (64, 130, torch.float16, "no multiple of 4"),
        (64, 128, torch.float64, "fp16 or bf16"),
    ],
)
def test_a_weight_that_torch_cannot_run_is_refused(n, k, dtype, message):
    with pytest.raises(ValueError, match=message):
        SemiStructuredWeight.from_dense(torch.ones(n, k, dtype=dtype), torch.zeros(n, k, dtype=torch.bool))


@pytest.mark.gpu
def test_fp32_is_refused_on_a_gpu():
    _, weight, _, mask = problem(dtype=torch.float32, where="cuda")
    with pytest.raises(ValueError, match="cast it first"):
        SemiStructuredWeight.from_dense(weight, mask)


@pytest.mark.parametrize("mask", [torch.ones(64, 128), torch.zeros(64, 64).bool(), torch.zeros(64).bool()])
def test_a_mask_that_does_not_fit_is_refused(mask):
    with pytest.raises(ValueError, match="with a bool mask"):
        SemiStructuredWeight.from_dense(torch.ones(64, 128), mask)


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda x, b: (x[:, :-1], b), "end with 128 features"),
        (lambda x, b: (x.bfloat16(), b.bfloat16()), "the 2:4 weight torch.float16"),
        (lambda x, b: (x, b[:-1]), "bias has to be"),
        (lambda x, b: (x, b.float()), "the bias torch.float32"),
        (lambda x, b: (x.to("meta"), b), "on meta"),
        (lambda x, b: (x.requires_grad_(), b), "torch.no_grad"),
    ],
)
def test_what_does_not_go_together_is_refused(change, message):
    x, weight, bias, mask = problem()
    x, bias = change(x, bias)
    with pytest.raises(ValueError, match=message):
        semi_structured_linear(x, SemiStructuredWeight.from_dense(weight, mask), bias)
