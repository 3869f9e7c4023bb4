import io
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from sparseticket.kernels import bitmap, fours
from sparseticket.kernels.bitmap import (
    BitmapLaunch,
    BitmapLinear,
    BitmapWeight,
    bitmap_linear,
    candidate_launches,
    default_launch,
)
from sparseticket.kernels.launch import as_compiled

SHAPES = [(1, 64, 64), (16, 100, 200), (37, 5, 70), (64, 130, 33)]  # M, N, K
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def problem(m, n, k, density, dtype, device):
    draw = torch.Generator().manual_seed(0)
    mask = torch.rand(n, k, generator=draw) < density
    x, weight, bias = (torch.randn(shape, generator=draw).to(dtype) for shape in ((m, k), (n, k), (n,)))
    packed = BitmapWeight.from_dense(weight, mask).to(device)
    return x.to(device), weight.masked_fill(~mask, 0), bias.to(device), packed, mask


def strided(packed):
    return packed.with_tensors(packed.tensors() | {"rest": packed.fours.rest.repeat_interleave(2)[::2]})


def exact(x, weight, bias, activation="none"):
    y = F.linear(x.double().cpu(), weight.double(), bias.double().cpu())
    return {"none": y, "relu": F.relu(y), "gelu": F.gelu(y)}[activation]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("density", [0, 0.2, 1])
@pytest.mark.parametrize("m,n,k", SHAPES)
def test_the_result_agrees_with_float64(m, n, k, density, dtype, device, close):
    x, weight, bias, packed, _ = problem(m, n, k, density, dtype, device)
    close(bitmap_linear(x, packed, bias), exact(x, weight, bias))


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_bias_and_activation_come_once_after_all_splits(activation, splits, device, close):
    x, weight, bias, packed, _ = problem(5, 70, 200, 0.3, torch.float16, device)
    y = bitmap_linear(x, packed, bias, activation=activation, launch=BitmapLaunch(splits, 4, 2))
    close(y, exact(x, weight, bias, activation))


def test_splits_give_the_same_result_every_time(device, close):
    x, weight, bias, packed, _ = problem(5, 70, 260, 0.3, torch.float16, device)
    first, again = (bitmap_linear(x, packed, bias, launch=BitmapLaunch(2, 4, 2)) for _ in range(2))  # 2 tiles and 1
    assert torch.equal(first, again)
    close(first, exact(x, weight, bias))


def test_any_strides_and_several_dimensions_and_no_rows_are_right(device, close):
    x, weight, bias, packed, _ = problem(6, 70, 100, 0.3, torch.float16, device)
    strided = x.T.contiguous().T.unflatten(0, (2, 3))
    close(bitmap_linear(strided, packed, bias).flatten(0, 1), exact(x, weight, bias))
    assert bitmap_linear(x[:0].reshape(2, 0, 100), packed, bias).shape == (2, 0, 70)


@pytest.mark.gpu
@pytest.mark.parametrize("overlap", [0, 1])
@pytest.mark.parametrize("splits", [1, 4])
def test_a_captured_graph_gives_the_same_whether_its_kernels_overlap(splits, overlap):
    x, _, bias, packed, _ = problem(16, 256, 512, 0.1, torch.bfloat16, "cuda")
    launch = BitmapLaunch(splits, 4, 3, overlap)
    eager = bitmap_linear(x, packed, bias, launch=BitmapLaunch(splits, 4, 3))
    assert torch.equal(bitmap_linear(x, packed, bias, launch=launch), eager)  # compiled, which a capture cannot be
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = bitmap_linear(x, packed, bias, launch=launch)
    for _ in range(100):
        graph.replay()
        assert torch.equal(y, eager)


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_operator_passes_opcheck_and_compiles(where):
    x, _, bias, packed, _ = problem(5, 70, 100, 0.3, torch.float32, where)
    torch.library.opcheck(
        torch.ops.sparseticket.bitmap_linear.default,
        (x, *packed.fours, bias, 70, "gelu", list(default_launch(70, 100, x.dtype))),
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )
    module = BitmapLinear(packed, bias, activation="gelu")
    compiled = torch.compile(module, fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x), rtol=1e-4, atol=1e-4)


def test_exported_and_built_ahead_of_time_it_gives_the_same(tmp_path):
    x, _, bias, packed, _ = problem(5, 70, 100, 0.3, torch.float32, "cpu")
    module = BitmapLinear(packed, bias, activation="relu")
    program = torch.export.export(module, (x,))
    torch.export.save(program, tmp_path / "bitmap.pt2")
    again = torch.export.load(tmp_path / "bitmap.pt2")
    assert torch.equal(again.module()(x), module(x))
    package = torch._inductor.aoti_compile_and_package(again, package_path=str(tmp_path / "built.pt2"))
    torch.testing.assert_close(torch._inductor.aoti_load_package(package)(x), module(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("density", [0, 0.1, 1])
@pytest.mark.parametrize("shape", [(64, 128), (1, 1), (130, 200)])
def test_a_weight_comes_back_bit_equal(shape, density, dtype):
    _, weight, _, packed, _ = problem(1, *shape, density, dtype, "cpu")
    assert torch.equal(packed.to_dense(), weight)


def test_minus_zero_and_a_live_zero_come_back_as_they_are():
    weight = torch.tensor([[-0.0, -0.0, 0.0, -1.0]])
    packed = BitmapWeight.from_dense(weight, torch.tensor([[True, True, True, False]]))
    assert packed.fours.rest.tolist() == [0, 0] and packed.fours.columns[0] == 1  # columns 0, 1, 8 and 9 are a four
    assert torch.equal(packed.to_dense().signbit(), torch.tensor([[True, True, False, False]]))


def test_at_nine_tenths_zeros_it_is_a_third_of_dense_and_a_seventh_of_the_live_is_left_over():
    _, weight, _, packed, mask = problem(1, 1024, 1024, 0.1, torch.bfloat16, "cpu")
    assert 0.315 < packed.nbytes / weight.nbytes < 0.33
    assert 0.13 < (len(packed.fours.rest) - 1) / int(mask.sum()) < 0.15


def test_a_module_comes_back_from_its_state_whatever_its_mask_was_and_shares_nothing_with_the_linear():
    draw = torch.Generator().manual_seed(0)
    mask, other = torch.rand(70, 100, generator=draw) < 0.3, torch.rand(70, 100, generator=draw) < 0.5
    linear = torch.nn.Linear(100, 70)
    module = BitmapLinear.from_linear(linear, mask)
    file, x = io.BytesIO(), torch.randn(3, 100)
    expected = F.linear(x, linear.weight.masked_fill(~mask, 0), linear.bias)
    torch.save(module.state_dict(), file)
    linear.bias.data.zero_()
    again = BitmapLinear.from_linear(torch.nn.Linear(100, 70), other)
    again.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert torch.equal(module(x), expected) and torch.equal(again(x), expected)


@pytest.mark.parametrize(
    "spoil,message",
    [
        (
            lambda state: BitmapLinear.from_linear(torch.nn.Linear(90, 70), torch.ones(70, 90).bool()).state_dict(),
            "beyond",
        ),
        (
            lambda state: BitmapLinear.from_linear(torch.nn.Linear(200, 70), torch.ones(70, 200).bool()).state_dict(),
            "no weight",
        ),
        (lambda state: state | {"columns": state["columns"] + 99}, "beyond"),
        (lambda state: state | {"columns": -state["columns"] - 1}, "beyond"),
        (lambda state: state | {"starts": state["starts"] + 1}, "beyond"),
        (lambda state: state | {"starts": state["starts"].flip(0)}, "beyond"),
        (lambda state: state | {"rest": state["rest"][1:]}, "no weight"),
    ],
)
def test_a_state_that_points_beyond_the_weight_is_refused(spoil, message):
    mask = torch.ones(70, 80, dtype=torch.bool)
    module = BitmapLinear.from_linear(torch.nn.Linear(80, 70), mask)
    with pytest.raises(ValueError, match=message):
        module.load_state_dict(spoil(dict(module.state_dict())))


def test_a_large_weight_is_packed_in_pieces_like_a_small_one(monkeypatch):
    _, weight, _, whole, mask = problem(1, 200, 130, 0.3, torch.bfloat16, "cpu")
    monkeypatch.setattr(fours, "PACKED_AT_ONCE", 64 * 130)
    pieces = BitmapWeight.from_dense(weight, mask)
    assert all(torch.equal(one, other) for one, other in zip(pieces.fours, whole.fours, strict=True))


def test_under_autocast_x_takes_the_weights_dtype():
    x, weight, bias, packed, _ = problem(5, 70, 100, 0.3, torch.bfloat16, "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(bitmap_linear(x.float(), packed, bias.float()), F.linear(x, weight, bias))


def test_under_autocast_an_fp32_weight_stays_fp32_and_integers_are_refused():
    x, weight, bias, packed, _ = problem(5, 70, 100, 0.3, torch.float32, "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        y = bitmap_linear(x.bfloat16(), packed, bias)
        with pytest.raises(ValueError, match="int64; this runs"):
            bitmap_linear(x.long(), packed, bias)
    assert torch.equal(y, F.linear(x.bfloat16().float(), weight, bias))


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda x, p, b: (x.repeat(13, 1), p, b), "at most 64 rows, and these are 65.*to_dense"),
        (lambda x, p, b: (x[:, :-1], p, b), "end with 100 features"),
        (lambda x, p, b: (x, p, b[:-1]), "bias has to be"),
        (lambda x, p, b: (x.half(), p, b), "cast one of them"),
        (lambda x, p, b: (x, p.to("meta"), b), "on meta"),
        (lambda x, p, b: (x, strided(p), b), "contiguous: pack"),
    ],
)
def test_what_does_not_go_together_is_refused(change, message):
    x, _, bias, packed, _ = problem(5, 70, 100, 0.3, torch.float32, "cpu")
    with pytest.raises(ValueError, match=message):
        bitmap_linear(*change(x, packed, bias))


@pytest.mark.parametrize("hopper", [True, False])
@pytest.mark.parametrize("overlap", [0, 1])
@pytest.mark.parametrize("form", [nullcontext, as_compiled])
def test_kernels_overlap_where_the_launch_says_so_the_gpu_can_and_compiled_code_need_not(
    form, overlap, hopper, monkeypatch
):
    launched = []

    class Recorded:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return lambda *_, **constants: launched.append((constants["OVERLAPS"], constants.get("launch_pdl", False)))

    monkeypatch.setattr(bitmap, "wrap_triton", Recorded)
    monkeypatch.setattr(bitmap, "runs_kernel", lambda _: True)
    monkeypatch.setattr(bitmap, "is_hopper_or_later", lambda _: hopper)
    x, _, bias, packed, _ = problem(5, 70, 100, 0.3, torch.float16, "cpu")
    with form():
        bitmap_linear(x, packed, bias, launch=BitmapLaunch(1, 4, 2, overlap))
    overlaps = bool(overlap and hopper and form is nullcontext)
    assert launched == [(overlaps, False), (overlaps, overlaps)]


def test_a_gpu_is_filled_and_every_split_gets_a_tile():
    half = torch.float16
    assert [default_launch(*shape, half).splits for shape in ((4096, 4096), (1024, 4096), (64, 64))] == [9, 16, 1]
    assert not any(default_launch(n, 1024, dtype).overlap for n in (64, 4096) for dtype in DTYPES)
    for n, k in ((768, 768), (768, 3072), (4096, 1024)):
        launches = candidate_launches(n, k, half)
        tiles = -(-k // 128)
        assert all(-(-tiles // -(-tiles // one.splits)) == one.splits for one in launches), "two would be the same"
        assert len(set(launches)) == len(launches) and default_launch(n, k, half) in launches


@pytest.mark.parametrize("launch", [(0, 4, 2), (1, 0, 2), (1, 4, 0)])
def test_a_launch_of_nothing_is_refused(launch):
    x, _, bias, packed, _ = problem(5, 70, 100, 0.3, torch.float32, "cpu")
    with pytest.raises(ValueError, match="or more, not"):
        bitmap_linear(x, packed, bias, launch=BitmapLaunch(*launch))


@pytest.mark.parametrize(
    "weight,mask",
    [
        (torch.ones(4, 4, dtype=torch.float64), torch.ones(4, 4, dtype=torch.bool)),
        (torch.ones(4, 0), torch.ones(4, 0, dtype=torch.bool)),
        (torch.ones(4, 4), torch.ones(4, 4)),
        (torch.ones(4, 4), torch.ones(4, 5, dtype=torch.bool)),
    ],
)
def test_what_cannot_be_packed_is_refused(weight, mask):
    with pytest.raises(ValueError):
        BitmapWeight.from_dense(weight, mask)
