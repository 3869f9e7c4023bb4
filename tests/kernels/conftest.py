"""Kernels run here in Triton's interpreter (`-m interpreter`, with TRITON_INTERPRET=1) or on a GPU (`-m gpu`).

Both run the same tests: a test that takes `device` is collected once for each.
"""

import os

import pytest
import torch


def pytest_collection_modifyitems(config, items):
    """The interpreter gets bf16 products wrong: those cases are for a GPU (their code is held to equal fp16's)."""
    wrong = [i for i in items if hasattr(i, "callspec") and _is_bf16_in_the_interpreter(i.callspec.params)]
    config.hook.pytest_deselected(items=wrong)
    items[:] = [item for item in items if item not in wrong]


def _is_bf16_in_the_interpreter(params):
    return params.get("dtype") == torch.bfloat16 and params.get("device") == "cpu"


TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 1e-5}  # of the largest value


@pytest.fixture(
    params=[pytest.param("cpu", marks=pytest.mark.interpreter), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def device(request, monkeypatch):
    """Where kernels run; every tensor made with torch.empty is full of NaN first."""
    if request.param == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.fail("interpreter tests need TRITON_INTERPRET=1 from the start: run `make test`")
    empty, empty_like, new_empty = torch.empty, torch.empty_like, torch.Tensor.new_empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: poisoned(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poisoned(empty_like(*a, **k)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: poisoned(new_empty(*a, **k)))
    return request.param


@pytest.fixture
def close():
    """close(actual, exact, scale=1): one tensor, or each of several, agrees with float64 to what its dtype can hold."""
    return assert_close


def poisoned(tensor):
    return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor


def assert_close(actual, exact, scale=1.0):
    if isinstance(actual, tuple):
        for ours, theirs in zip(actual, exact, strict=True):
            assert_close(ours, theirs, scale)
        return
    actual = actual.detach()
    assert actual.shape == exact.shape
    assert torch.isfinite(actual).all(), "something was never written, or overflowed"
    if actual.numel():
        largest = max(float(exact.abs().max()), 1e-6)
        error = float((actual.double().cpu() - exact.cpu()).abs().max())
        assert error <= scale * TOLERANCE[actual.dtype] * largest, f"off by {error / largest:.2e} of the largest value"
