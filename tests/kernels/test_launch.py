import pytest
import torch

from sparseticket.kernels.launch import fp32_precision


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize("backend", [torch.backends.cuda.matmul, torch.backends.cudnn], ids=["matmul", "cudnn"])
def test_fp32_is_multiplied_by_tf32_just_where_pytorch_is_allowed_to(backend, allowed):
    before, backend.allow_tf32 = backend.allow_tf32, allowed
    try:
        assert fp32_precision(convolution=backend is torch.backends.cudnn) == ("tf32" if allowed else "ieee")
    finally:
        backend.allow_tf32 = before
