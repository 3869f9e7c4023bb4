"""What the compiler makes of the product over a bitmap weight, on a machine without a GPU."""

import pytest
import torch

from sparseticket.kernels.aot import SHARED_LIMIT, only_ir
from sparseticket.kernels.bitmap import default_launch
from sparseticket.kernels.bitmap_aot import compile_bitmap

LAUNCH = default_launch(4096, 4096)


@pytest.mark.parametrize("rows,arch", [(16, 80), (16, 90), (16, 120), (64, 90)])
def test_it_uses_tensor_cores_pipelines_x_and_spills_nothing(rows, arch):
    made = compile_bitmap(rows, LAUNCH, arch)
    buffers = LAUNCH.stages if arch == 90 else LAUNCH.stages - 1
    assert made.shared == (buffers * rows * 64 + 64 * 64) * 2  # x's tiles, and the one of the weight
    assert made.uses_wgmma if arch == 90 else made.uses_tensor_cores
    assert made.spilled == 0


def test_exact_fp32_fits_and_spills_nothing():
    made = compile_bitmap(64, LAUNCH, 80, torch.float32, precision="ieee")
    assert made.spilled == 0 and made.shared <= SHARED_LIMIT[120] and not made.uses_tensor_cores


def test_bf16_is_the_same_code_as_fp16():
    with only_ir():
        half, brain = (compile_bitmap(16, LAUNCH, 90, dtype).ttir for dtype in (torch.float16, torch.bfloat16))
    assert "bf16" in brain and brain.replace("bf16", "f16") == half.replace("fp16", "f16")  # as mangled names have it
