"""What the compiler makes of the kernels for few rows, on a machine without a GPU."""

import re
from functools import partial
from itertools import product

import pytest
import torch
from triton_ir import only_ir

from sparseticket.kernels import fours
from sparseticket.kernels.aot import SHARED_LIMIT
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


def test_the_second_pass_spills_nothing_whatever_the_splits():
    assert compile_bitmap_sum(64, LAUNCH._replace(splits=MOST_SPLITS, overlap=1), 90).spilled == 0


def test_an_overlapping_second_pass_touches_nothing_of_the_first_before_it_waited():
    with only_ir():
        ir = compile_bitmap_sum(16, LAUNCH._replace(overlap=1), 90).ttir
    _, body = ir.split("attributes", 1)  # behind the kernel's arguments
    before, after = re.split(r"grid_dependency_wait|griddepcontrol\.wait", body)
    early, late = (set(re.findall(r"%(\w+)", part)) for part in (before, after))
    assert not {"PARTIALS", "COLUMNS_OF_X"} & early and {"PARTIALS", "COLUMNS_OF_X"} <= late
    assert {"REST", "COLUMNS", "STARTS"} <= early, "what it may load meanwhile"


def test_the_shift_in_ptx_puts_a_value_at_its_place_among_four():
    """The interpreter cannot run it, and shifts otherwise: here each of its three instructions is carried out."""
    for value, position in product((0x0001, 0x8000, 0xBEEF), range(4)):
        got = carried_out(fours._SHIFT.value, value, 16 * position)
        assert got == [value if place == position else 0 for place in range(4)]


def carried_out(ptx, value, shift):
    registers = {"$4": value, "$5": shift}
    for instruction in ptx.strip().removeprefix("{").removesuffix("}").split(";"):
        match re.findall(r"[$.\w]+", instruction):
            case ["cvt.u64.u16", into, of]:
                registers[into] = registers[of] & 0xFFFF
            case ["shl.b64", into, of, by]:
                registers[into] = registers[of] << registers[by] & 2**64 - 1 if registers[by] < 64 else 0
            case ["mov.b64", *parts, of]:  # the first part is the lowest
                registers |= {part: registers[of] >> 16 * place & 0xFFFF for place, part in enumerate(parts)}
            case [] | [".reg", *_]:
                pass
            case other:
                raise AssertionError(f"an instruction that this does not know: {other}")
    return [registers[f"${place}"] for place in range(4)]


def test_exact_fp32_fits_and_spills_nothing():
    made = compile_bitmap(64, default_launch(4096, 4096, torch.float32), 120, torch.float32, precision="ieee")
    assert made.spilled == 0 and made.shared <= SHARED_LIMIT[120] and not made.uses_tensor_cores


@pytest.mark.parametrize("compiled", [partial(compile_bitmap, 16, LAUNCH), partial(compile_bitmap_sum, 16, LAUNCH)])
def test_bf16_is_the_same_code_as_fp16(compiled):
    with only_ir():
        half, brain = (compiled(90, dtype).ttir for dtype in (torch.float16, torch.bfloat16))
    assert "bf16" in brain and brain.replace("bf16", "f16") == half.replace("fp16", "f16")  # as mangled names have it
