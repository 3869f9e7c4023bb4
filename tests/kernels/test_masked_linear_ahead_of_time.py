"""What the compiler makes of the masked product, for three generations of GPUs, on a machine without one."""

import pytest
import torch
from triton_ir import only_ir

from sparseticket.kernels.aot import SHARED_LIMIT
from sparseticket.kernels.masked import default_tiles
from sparseticket.kernels.masked_aot import compile_masked


@pytest.mark.parametrize("which,arch", [("forward", 80), ("forward", 90), ("forward", 120), ("dgrad", 90)])
def test_large_tiles_are_pipelined_in_full_and_spill_nothing(which, arch):
    tiles = default_tiles(4096, torch.float16)
    made = compile_masked(which, tiles, arch)
    # x stays in shared memory while Hopper multiplies it, one buffer more; W leaves it for registers to be masked
    buffers = tiles.stages if arch == 90 else tiles.stages - 1
    needed = (buffers * tiles.rows + (tiles.stages - 1) * tiles.out) * tiles.reduce * 2
    assert needed <= made.shared <= SHARED_LIMIT[arch] and made.spilled == 0
    assert made.uses_wgmma if arch == 90 else made.uses_tensor_cores


def test_few_rows_use_hoppers_tensor_cores_too():
    made = compile_masked("forward", default_tiles(16, torch.float16), 90)
    assert made.uses_wgmma and made.spilled == 0


def test_exact_fp32_fits_and_spills_nothing():
    made = compile_masked("forward", default_tiles(4096, torch.float32), 80, torch.float32, precision="ieee")
    assert made.spilled == 0 and made.shared <= SHARED_LIMIT[120] and not made.uses_tensor_cores


@pytest.mark.parametrize("which", ["forward", "dgrad"])
def test_bf16_is_the_same_code_as_fp16(which):
    tiles = default_tiles(4096, torch.float16)
    with only_ir():
        half, brain = (compile_masked(which, tiles, 90, dtype).ttir for dtype in (torch.float16, torch.bfloat16))
    assert "bf16" in brain and brain.replace("bf16", "f16") == half
