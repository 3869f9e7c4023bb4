"""What the compiler makes of the product over a bitmap weight, on a machine without a GPU."""

import pytest
import torch

from sparseticket.kernels.aot import SHARED_LIMIT, only_ir
from sparseticket.kernels.bitmap import MOST_SPLITS, default_launch
from sparseticket.kernels.bitmap_aot import compile_bitmap, compile_bitmap_sum

LAUNCH = default_launch(4096, 4096, torch.float16)
WEIGHT = 64 * 128 // 4  # bytes of its map and leading values: a tile of 64 x 128 has a four for each four weights


@pytest.mark.parametrize("rows,arch", [(16, 80), (16, 90), (64, 90)])
def test_it_uses_tensor_cores_pipelines_its_loads_and_spills_nothing(rows, arch):
    made = compile_bitmap(rows, LAUNCH._replace(overlap=int(arch == 90)), arch)
    ahead = LAUNCH.stages - 1
    buffers = (LAUNCH.stages if arch == 90 else ahead) * rows * 128 * 2  # of x
    unpacked = 0 if arch == 90 else 64 * 128 * 2  # on sm_90 the weight goes from its own registers to the product
    assert made.shared == buffers + ahead * (2 * WEIGHT + WEIGHT // 4) + unpacked
    assert ("griddepcontrol.launch_dependents" in made.ptx) == (arch == 90)
    assert made.uses_wgmma if arch == 90 else made.uses_tensor_cores
    assert made.spilled == 0


def test_the_second_pass_spills_nothing_and_reads_the_firsts_results_after_it_waited():
    made = compile_bitmap_sum(64, MOST_SPLITS, 90, overlaps=True)
    assert made.spilled == 0
    before, after = made.ptx.split("griddepcontrol.wait")
    assert 4 <= before.count("ld.global") < MOST_SPLITS < after.count("ld.global"), (
        "before: where the rest is, and some"
    )


def test_exact_fp32_fits_and_spills_nothing():
    made = compile_bitmap(64, default_launch(4096, 4096, torch.float32), 120, torch.float32, precision="ieee")
    assert made.spilled == 0 and made.shared <= SHARED_LIMIT[120] and not made.uses_tensor_cores


def test_bf16_is_the_same_code_as_fp16():
    with only_ir():
        half, brain = (compile_bitmap(16, LAUNCH, 90, dtype).ttir for dtype in (torch.float16, torch.bfloat16))
        assert "bf16" in brain and brain.replace("bf16", "f16") == half.replace(
            "fp16", "f16"
        )  # as mangled names have it
        half, brain = (compile_bitmap_sum(16, 8, 90, dtype).ttir for dtype in (torch.float16, torch.bfloat16))
        assert "bf16" in brain and brain.replace("bf16", "f16") == half.replace("fp16", "f16")
