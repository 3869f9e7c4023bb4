"""What sparse products and masked steps take beside dense ones: on a GPU the kernels, on a CPU their plain references.

A CPU says what the references cost that tests and CPUs without kernels run on, and nothing of the kernels' speed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import sparseticket.kernels as kernels
from sparseticket.kernels.words import pack_words

BLOCK, SPARSITY = (64, 64), 0.5
ATOL = 1e-2  # of values around 1; fp16 on a GPU


@dataclass(frozen=True)
class Problem:
    """``x [M, K]`` and a weight ``[N, K]`` that is 0 outside its live blocks; the mask is made of whole blocks."""

    x: Tensor
    weight: Tensor
    mask: Tensor

    @classmethod
    def on(cls, device: str) -> "Problem":
        """The FFN of BERT-base on a GPU in fp16; 1/12 of its sides on a CPU in fp32."""
        (m, n, k), dtype = ((4096, 3072, 768), torch.float16) if device == "cuda" else ((64, 256, 128), torch.float32)
        torch.manual_seed(0)
        blocks = torch.rand(n // BLOCK[0], k // BLOCK[1]) >= SPARSITY
        mask = blocks.repeat_interleave(BLOCK[0], 0).repeat_interleave(BLOCK[1], 1)
        weight = torch.randn(n, k) * mask / k**0.5
        return cls(torch.randn(m, k).to(device, dtype), weight.to(device, dtype), mask.to(device))


def _dense(of: Problem) -> Callable[[Tensor], Tensor]:
    return lambda x: F.linear(x, of.weight)


def _bsr(of: Problem) -> Callable[[Tensor], Tensor]:
    layout = kernels.BlockLayout.from_mask(of.mask, BLOCK)
    return lambda x: kernels.bsr_linear(x, of.weight, layout)


def _bsr_packed(of: Problem) -> Callable[[Tensor], Tensor]:
    packed = kernels.PackedBlocks.from_dense(of.weight, kernels.BlockLayout.from_mask(of.mask, BLOCK))
    return lambda x: kernels.bsr_linear_packed(x, packed)


def _masked(of: Problem) -> Callable[[Tensor], Tensor]:
    words = pack_words(of.mask)
    return lambda x: kernels.masked_linear(x, of.weight, words)


def _bitmap(of: Problem) -> Callable[[Tensor], Tensor]:
    packed = kernels.BitmapWeight.from_dense(of.weight, of.mask)
    return lambda x: kernels.bitmap_linear(x, packed)


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
PRODUCTS = {"dense": _dense, "bsr": _bsr, "bsr packed": _bsr_packed, "masked": _masked}
OPTIMIZERS = {
    "torch": lambda weight, mask: torch.optim.AdamW([weight], fused=True),
    "masked": lambda weight, mask: kernels.MaskedAdamW([weight], {weight: mask}),
}


def _timed(benchmark: BenchmarkFixture, device: str, call: Callable[[], Tensor]) -> Tensor:
    """Time until the device is done; returns what the last call made."""

    def done() -> Tensor:
        made = call()
        if device == "cuda":
            torch.cuda.synchronize()
        return made

    done()  # compiled before it is timed
    return benchmark(done)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def problem(device: str) -> Iterator[Problem]:
    with torch.no_grad():
        yield Problem.on(device)


@pytest.mark.benchmark(group="kernels: a product of half its blocks")
@pytest.mark.parametrize("product", PRODUCTS)
def test_product(benchmark: BenchmarkFixture, problem: Problem, device: str, product: str) -> None:
    run = PRODUCTS[product](problem)
    made = _timed(benchmark, device, lambda: run(problem.x))
    torch.testing.assert_close(made, F.linear(problem.x, problem.weight), atol=ATOL, rtol=ATOL)


@pytest.mark.benchmark(group="kernels: a product of one row")
@pytest.mark.parametrize("product", [_dense, _bitmap])
def test_product_of_one_row(benchmark: BenchmarkFixture, problem: Problem, device: str, product: Callable) -> None:
    run, row = product(problem), problem.x[:1]
    made = _timed(benchmark, device, lambda: run(row))
    torch.testing.assert_close(made, F.linear(row, problem.weight), atol=ATOL, rtol=ATOL)


@pytest.mark.benchmark(group="kernels: forward and backward of half the blocks")
@pytest.mark.parametrize("product", ["dense", "bsr", "masked"])
def test_training_product(benchmark: BenchmarkFixture, device: str, product: str) -> None:
    of = Problem.on(device)
    of.weight.requires_grad_()
    run = PRODUCTS[product](of)

    def step() -> Tensor:
        (gradient,) = torch.autograd.grad(run(of.x).sum(), of.weight)
        return gradient

    gradient = _timed(benchmark, device, step)
    expected = of.x.float().sum(0).expand(of.weight.shape)
    alive = of.mask if product != "dense" else torch.ones_like(of.mask)
    torch.testing.assert_close(gradient.float(), expected * alive, atol=0.5, rtol=ATOL)


@pytest.mark.benchmark(group="kernels: a step of AdamW")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizer_step(benchmark: BenchmarkFixture, problem: Problem, device: str, optimizer: str) -> None:
    weight = torch.nn.Parameter(problem.weight.float())
    weight.grad = torch.randn_like(weight)
    steps = OPTIMIZERS[optimizer](weight, problem.mask)
    before = weight.detach().clone()
    _timed(benchmark, device, steps.step)
    assert (weight != before)[problem.mask].all()
    assert optimizer == "torch" or not weight[~problem.mask].any()
