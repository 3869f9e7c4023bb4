"""What the compiler makes of the block-sparse kernels, for three generations of GPUs, on a machine without one."""

from functools import cache

import pytest
import torch
import triton
import triton.language as tl
from triton_ir import only_ir

from sparseticket.kernels.aot import FEWEST_ACCUMULATORS, SHARED_LIMIT, Compiled, compile_ahead
from sparseticket.kernels.bsr import MOST_SPLITS, Tiles, default_tiles
from sparseticket.kernels.bsr_aot import (
    SIZES,
    STRIDES,
    TYPES,
    compile_product,
    compile_wgrad,
    compile_wgrad_sum,
    compile_zero_dead_blocks,
)


@triton.jit
def dense_matmul_kernel(
    A, B, C, m_size, o_size, r_size, stride_am, stride_ar, stride_bo, stride_br,
    TILE_M: tl.constexpr, TILE_O: tl.constexpr, TILE_R: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The control: the same tiles over a dense weight, no indices."""
    m = tl.program_id(0) * TILE_M + tl.arange(0, TILE_M)
    o = tl.program_id(1) * TILE_O + tl.arange(0, TILE_O)
    r_in_tile = tl.arange(0, TILE_R)
    acc = tl.zeros((TILE_M, TILE_O), dtype=tl.float32)
    for begin in range(0, r_size, TILE_R):
        r = begin + r_in_tile
        a_tile = A + m[:, None].to(tl.int64) * stride_am + r[None, :] * stride_ar
        a = tl.load(a_tile, mask=(m < m_size)[:, None], other=0.0)
        b = tl.load(B + o[None, :].to(tl.int64) * stride_bo + r[:, None] * stride_br)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    live = (m < m_size)[:, None] & (o < o_size)[None, :]
    tl.store(C + m[:, None].to(tl.int64) * o_size + o[None, :], acc.to(C.dtype.element_ty), mask=live)


@cache
def compile_control(which, tiles, arch):
    wide, one = STRIDES[which]
    return compile_ahead(
        dense_matmul_kernel,
        SIZES | dict.fromkeys("ABC", TYPES[torch.float16]) | {wide: "i32"},
        dict(TILE_M=tiles.rows, TILE_O=tiles.out, TILE_R=tiles.reduce, PRECISION="tf32"),
        arch=arch, num_warps=tiles.warps, num_stages=tiles.stages, ones=("stride_ar", one),
    )  # fmt: skip


@pytest.mark.parametrize("which,arch", [("forward", 80), ("forward", 90), ("forward", 120), ("dgrad", 90)])
def test_large_tiles_are_pipelined_as_a_dense_loop_and_spill_nothing(which, arch):
    tiles = default_tiles((128, 128), 4096, torch.float16)[which == "dgrad"]
    ours, control = compile_product(which, (128, 128), tiles, arch), compile_control(which, tiles, arch)
    assert ours.shared == control.shared <= SHARED_LIMIT[arch]
    assert ours.spilled == 0
    assert ours.uses_wgmma if arch == 90 else ours.uses_tensor_cores


@pytest.mark.parametrize("arch", [80, 90])
def test_packed_blocks_cost_the_same_shared_memory(arch):
    tiles = default_tiles((128, 128), 4096, torch.float16)[0]
    ours = compile_product("forward", (128, 128), tiles, arch, packed=True, activation="gelu")
    assert ours.shared == compile_control("forward", tiles, arch).shared and ours.spilled == 0


@pytest.mark.parametrize("arch", [80, 90])
def test_the_weight_gradient_spills_nothing(arch):
    made = compile_wgrad((128, 128), default_tiles((128, 128), 4096, torch.float16)[2], arch)
    assert made.spilled == 0 and made.shared <= SHARED_LIMIT[arch]
    assert made.uses_wgmma if arch == 90 else made.uses_tensor_cores


@pytest.mark.parametrize("which,arch", [("forward", 90), ("forward", 120), ("dgrad", 90), ("packed", 90)])
def test_programs_that_stay_fetch_by_tma_one_tile_pair_a_stage_and_spill_nothing(which, arch):
    activation = {"packed": which == "packed", "activation": "gelu" if which == "packed" else "none"}
    shared = []
    for stages, on_device in ((2, False), (3, True)):  # descriptors of the CPU's, and of the program's: no other loop
        tiles = Tiles(64, 128, 64, 4, stages, 2)
        made = compile_product(
            which.replace("packed", "forward"), (128, 128), tiles, arch, **activation, on_device=on_device
        )
        assert made.spilled == 0 and made.shared <= SHARED_LIMIT[arch]
        assert made.ptx.count("cp.async.bulk.tensor") >= 3 and made.uses_wgmma == (arch == 90)
        assert made.selected_in_flight < FEWEST_ACCUMULATORS, "results of a product that may still run are read"
        shared.append(made.shared)
    pair = (64 + 128) * 64 * 2
    assert pair <= shared[1] - shared[0] < pair + 1024, "the loop has lost its pipelining"


def test_results_that_are_selected_before_their_product_has_ended_are_counted():
    running, ended = "wgmma.wait_group.sync.aligned 1;\n", "wgmma.wait_group.sync.aligned 0;\n"
    selected = "selp.f32 \t%r1, 0f00000000, %r2, %p1;\n" * 32
    for ptx, count in (
        (running + selected + ended, 32),
        (running + "@%p3 bra \t$L__BB0_4;\n" + ended + selected, 0),
        (ended + selected + running, 0),
        ("", 0),
    ):
        assert Compiled("", ptx, 0, 0).selected_in_flight == count


def test_the_weight_gradient_by_tma_is_pipelined_too():
    made = [compile_wgrad((128, 128), Tiles(64, 128, 64, 4, stages, 1), 90, on_device=stages == 4) for stages in (3, 4)]
    assert all(one.spilled == 0 and one.uses_wgmma and "cp.async.bulk.tensor" in one.ptx for one in made)
    assert made[1].shared - made[0].shared >= (64 + 128) * 64 * 2


@pytest.mark.parametrize("block", [(16, 16), (64, 64)])
def test_small_blocks_use_tensor_cores_and_spill_nothing(block):
    tiles = default_tiles(block, 4096, torch.float16)
    for made in (compile_product("forward", block, tiles[0], 90), compile_wgrad(block, tiles[2], 90)):
        assert made.spilled == 0 and made.uses_tensor_cores


@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_fp32_fits_and_spills_nothing(precision):
    made = compile_product(
        "forward", (128, 128), default_tiles((128, 128), 4096, torch.float32)[0], 80, torch.float32, precision=precision
    )
    assert made.spilled == 0 and made.shared <= SHARED_LIMIT[120]
    assert made.uses_tensor_cores == (precision == "tf32")


def test_the_sum_over_splits_of_m_is_16_bytes_wide_and_spills_nothing():
    made = compile_wgrad_sum((128, 128), MOST_SPLITS, 90)
    assert made.spilled == 0 and "ld.global.v4.b32" in made.ptx and "st.global.v4.b32" in made.ptx


def test_zeros_in_dead_blocks_are_16_bytes_wide_and_spill_nothing():
    made = compile_zero_dead_blocks((128, 128), 90)
    assert made.spilled == 0 and "st.global.v4.b32" in made.ptx


def test_bf16_is_the_same_code_as_fp16():
    forward, dgrad, wgrad = default_tiles((64, 64), 4096, torch.float16)
    with only_ir():
        for compiled in (
            lambda dtype: compile_product("forward", (64, 64), forward, 90, dtype),
            lambda dtype: compile_product("forward", (64, 64), forward, 90, dtype, packed=True, activation="gelu"),
            lambda dtype: compile_product("dgrad", (64, 64), dgrad, 90, dtype),
            lambda dtype: compile_wgrad((64, 64), wgrad, 90, dtype),
            lambda dtype: compile_product("forward", (64, 64), Tiles(64, 64, 64, 4, 3, 1), 90, dtype),
            lambda dtype: compile_wgrad((64, 64), Tiles(64, 64, 64, 4, 3, 1), 90, dtype),
        ):
            half, brain = (compiled(dtype).ttir for dtype in (torch.float16, torch.bfloat16))
            assert "bf16" in brain and brain.replace("bf16", "f16") == half
