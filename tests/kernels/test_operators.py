"""An operator runs without torch.library where nothing needs the library, and through it where something does."""

import numpy as np
import pytest
import torch
from torch._library.triton import get_triton_kernels_for_op
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from sparseticket.bench.stand_in_gpu import stand_in_gpu
from sparseticket.kernels import bitmap, bsr, bsr_resident, conv2d, masked
from sparseticket.kernels.adamw import MaskedAdamW
from sparseticket.kernels.adamw_live import LiveAdamW
from sparseticket.kernels.blocks import BlockLayout
from sparseticket.kernels.bsr import bsr_linear
from sparseticket.kernels.bsr_packed import bsr_linear_packed  # noqa: F401  (registers its operator)
from sparseticket.kernels.sgd import MaskedSGD

BLOCK = (16, 32)


class Seen(TorchDispatchMode):
    """Names of what is called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def problem(device):
    draw = torch.Generator().manual_seed(0)
    x, weight, bias, dy = (torch.randn(shape, generator=draw) for shape in ((40, 64), (48, 64), (48,), (40, 48)))
    mask = (torch.rand(3, 2, generator=draw) < 0.6).repeat_interleave(16, 0).repeat_interleave(32, 1)
    inputs = [tensor.to(device).requires_grad_() for tensor in (x, weight, bias)]
    return inputs, dy.to(device), BlockLayout.from_mask(mask, BLOCK).to(device)


def step(problem):
    (x, weight, bias), dy, layout = problem
    y = bsr_linear(x, weight, layout, bias, activation="gelu")
    return (y.detach(), *torch.autograd.grad(y, (x, weight, bias), dy))


def library_calls(call):
    with torch.autograd.profiler.profile(use_cpu=True) as profile:
        call()
    return {event.name for event in profile.function_events if "sparseticket::" in event.name}


def test_a_call_from_python_does_not_go_through_the_library(problem):
    assert not library_calls(lambda: step(problem))
    (x, weight, bias), _, layout = problem
    names = library_calls(lambda: bsr.bsr_linear_forward._overload(x, weight, bias, *arrays(layout), *settings()))
    assert names == {"sparseticket::bsr_linear"}, "the profiler would not have seen it"
    with torch.no_grad():
        assert not bsr_linear(x, weight, layout, bias).requires_grad
    assert not bsr_linear(x.detach(), weight.detach(), layout).requires_grad


def arrays(layout):
    return [getattr(layout, name) for name in bsr.ARRAYS]


def settings():
    return list(BLOCK), "none", False, [], [], []


def test_under_a_dispatch_mode_the_operators_are_seen_and_give_the_same(problem):
    plain = step(problem)
    with Seen() as seen:
        through_library = step(problem)
    assert {f"sparseticket.{name}.default" for name in ("bsr_linear", "bsr_linear_dgrad", "bsr_linear_wgrad")} <= set(
        seen.names
    )
    assert all(torch.equal(one, other) for one, other in zip(plain, through_library, strict=True))


def test_a_graph_of_it_holds_the_operator(problem):
    (x, weight, bias), _, layout = problem
    x, weight, bias = x.detach(), weight.detach(), bias.detach()
    graph = make_fx(lambda x: bsr_linear(x, weight, layout, bias))(x)
    assert "sparseticket.bsr_linear" in str(graph.graph)
    assert torch.equal(graph(x), bsr_linear(x, weight, layout, bias))


def test_what_has_no_gradient_says_so(problem):
    (x, weight, bias), dy, layout = problem
    y = bsr_linear(x, weight, layout, bias)
    for given in (dy, dy.requires_grad_()):
        (dx,) = torch.autograd.grad(y, x, given, create_graph=True)
        with pytest.raises(RuntimeError, match="bsr_linear_dgrad"):
            (dx.sum() + y.sum()).backward(retain_graph=True)
    by_column = layout.row, layout.col, layout.ccol, layout.row_t, layout.schedule_t
    dx = bsr.bsr_linear_dgrad(dy, weight, *by_column, list(BLOCK), [])
    with pytest.raises(RuntimeError, match="bsr_linear_dgrad"):
        dx.sum().backward()


def test_hooks_on_saved_tensors_see_what_is_saved(problem):
    (x, weight, bias), _, layout = problem
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.data_ptr()), lambda _: x):
        bsr_linear(x, weight, layout, bias)
    assert {x.data_ptr(), weight.data_ptr()} <= set(packed)


def test_torch_knows_every_kernel_of_an_operator_for_the_key_of_its_cache():
    """Not known to it, a changed kernel would be taken from the cache as it was."""
    found = {
        name: {kernel.__name__ for kernel in get_triton_kernels_for_op(f"sparseticket::{name}")}
        for name in ("bsr_linear", "bsr_linear_dgrad", "bsr_linear_wgrad", "bsr_linear_packed", "bitmap_linear",
                     "masked_linear", "masked_linear_dgrad", "masked_linear_wgrad", "bsr_conv2d")
    }  # fmt: skip
    products = {bsr.bsr_matmul_kernel.__name__, bsr_resident.bsr_resident_kernel.__name__}
    sums = {
        bsr.bsr_wgrad_kernel.__name__, bsr.bsr_wgrad_sum_kernel.__name__, bsr_resident.bsr_tma_wgrad_kernel.__name__,
        bsr.zero_dead_blocks_kernel.__name__,
    }  # fmt: skip
    assert found["bsr_linear"] >= products and found["bsr_linear_dgrad"] >= products
    assert found["bsr_linear_packed"] >= products and found["bsr_linear_wgrad"] >= sums
    assert found["bitmap_linear"] >= {bitmap.bitmap_matmul_kernel.__name__, bitmap.bitmap_sum_kernel.__name__}
    assert found["bsr_conv2d"] >= {conv2d.bsr_conv2d_kernel.__name__}
    for name in ("masked_linear", "masked_linear_dgrad"):
        assert found[name] >= {masked.masked_matmul_kernel.__name__}
    assert found["masked_linear_wgrad"] >= {masked.zero_dead_kernel.__name__}


def test_a_step_without_the_library_launches_three_kernels_and_counts_as_a_write():
    parameters = [torch.nn.Parameter(torch.ones(64, 64)), torch.nn.Parameter(torch.ones(64))]
    mask = torch.ones(64, 64, dtype=torch.bool)
    with stand_in_gpu() as gpu:
        optimizer = MaskedAdamW(parameters, {parameters[0]: mask})
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer.clip_grad_norm(1.0)
        optimizer.step()
        before, gpu.launched[:] = [parameter._version for parameter in parameters], []
        assert not library_calls(lambda: (optimizer.clip_grad_norm(1.0), optimizer.step()))
    assert gpu.launched == ["squares_kernel", "total_kernel", "masked_adamw_kernel"]
    assert [parameter._version for parameter in parameters] == [version + 1 for version in before]


class Tagged(torch.Tensor):
    """A subclass that only goes by another name."""


def test_what_does_not_hold_its_values_or_is_of_another_type_goes_through_the_library():
    layout = BlockLayout.from_mask(torch.ones(48, 64, dtype=torch.bool), BLOCK)
    x, weight = torch.ones(40, 64), torch.ones(48, 64)
    negated = torch.complex(x, x).conj().imag
    with stand_in_gpu() as gpu:
        assert not library_calls(lambda: bsr_linear(x, weight, layout))
        for odd in (negated, torch._efficientzerotensor((40, 64)), x.as_subclass(Tagged)):
            assert library_calls(lambda odd=odd: bsr_linear(odd, weight, layout))
        assert gpu.launched == ["bsr_matmul_kernel"] * 4
        assert "bsr_linear" in str(make_fx(lambda x: bsr_linear(x, weight, layout), pre_dispatch=True)(x).graph)


def test_several_gradients_at_once_go_through_the_library():
    layout = BlockLayout.from_mask(torch.ones(48, 64, dtype=torch.bool), BLOCK)
    x = torch.ones(40, 64, requires_grad=True)
    with stand_in_gpu():
        y = bsr_linear(x, torch.ones(48, 64), layout)
        names = library_calls(lambda: torch.autograd.grad(y, x, torch.ones(3, 40, 48), is_grads_batched=True))
    assert names == {"sparseticket::bsr_linear_dgrad"}


@pytest.mark.parametrize("kind", [MaskedAdamW, MaskedSGD, LiveAdamW])
def test_gradients_that_do_not_hold_their_values_go_through_the_library(kind):
    weight = torch.nn.Parameter(torch.ones(64))
    with stand_in_gpu():
        for odd in (torch._neg_view(torch.ones(64)), torch.ones(64).as_subclass(Tagged)):
            weight.grad = odd
            assert library_calls(kind([weight], {}).step)


@pytest.mark.parametrize("number", [np.float32(0.5), torch.tensor(0.5)], ids=["numpy", "tensor"])
def test_settings_are_numbers_of_any_kind(number):
    weight = torch.nn.Parameter(torch.ones(64))
    weight.grad = torch.ones(64)
    with stand_in_gpu() as gpu:
        MaskedSGD([weight], {}, momentum=number, weight_decay=number).step()
        MaskedAdamW([weight], {}, betas=(number, number), eps=number, weight_decay=number).step()
        layout = BlockLayout.from_mask(torch.ones(48, 64, dtype=torch.bool), BLOCK)
        bsr_linear(torch.ones(40, 64), torch.ones(48, 64), layout, tiles=((0,), (0,), (0,)))
    assert gpu.launched == ["masked_sgd_kernel", "masked_adamw_kernel"]
