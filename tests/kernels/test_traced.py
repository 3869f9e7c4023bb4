"""What torch.compile makes of an operator on a GPU, traced here for a stand-in."""

from dataclasses import replace

import pytest
import torch
from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from sparseticket.bench.stand_in_gpu import stand_in_gpu
from sparseticket.kernels.bitmap import BitmapWeight, bitmap_linear, default_launch
from sparseticket.kernels.blocks import ARRAYS, BlockLayout
from sparseticket.kernels.bsr import Tiles, bsr_linear, bsr_linear_dgrad, bsr_linear_forward, bsr_linear_wgrad
from sparseticket.kernels.bsr_packed import PackedBlocks, bsr_linear_packed

BLOCK = (128, 128)
STAYING = [Tiles(64, 128, 64, 4, 3, 2).as_ints()] * 2 + [Tiles(64, 128, 64, 4, 3, 1).as_ints()]


@pytest.fixture
def gpu():
    with stand_in_gpu() as driver:
        yield driver


def kernels_in(function, *inputs, constant="ON_DEVICE"):
    """For each kernel in the traced function, which of its arguments it writes, and one of its constants."""
    graph = make_fx(dispatch_functionalize(function))(*inputs).graph
    nodes = [node for node in graph.nodes if "triton_kernel_wrapper" in str(node.target)]
    return [(node.kwargs["tensors_to_clone"], constants_of(node).get(constant, False)) for node in nodes]


def constants_of(node):
    return {**kernel_side_table.get_constant_args(node.kwargs["constant_args_idx"]), **node.kwargs["kwargs"]}


def on_gpu(shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="cuda")


@pytest.fixture
def layout():
    draw = torch.Generator().manual_seed(0)
    alive = torch.rand(4, 6, generator=draw) < 0.5
    return BlockLayout.from_mask(alive.repeat_interleave(128, 0).repeat_interleave(128, 1), BLOCK)


def fakes_of(layout):
    return replace(layout, **{name: on_gpu(getattr(layout, name).shape, torch.int32) for name in ARRAYS})


@pytest.mark.parametrize("tiles", [None, STAYING], ids=["pointers", "TMA"])
def test_each_pass_is_kernels_that_write_nothing_but_their_results(tiles, gpu, layout):
    def passes(x, weight, bias, dy):
        _, _, wgrad_tiles = tiles or ([], [], [])
        y = bsr_linear(x, weight, there, bias, tiles=tiles)
        dx = bsr_linear_dgrad(
            dy, weight, there.row, there.col, there.ccol, there.row_t, there.schedule_t, list(BLOCK),
            tiles[1] if tiles else [],
        )  # fmt: skip
        dw = bsr_linear_wgrad(dy, x, there.crow, there.col, there.row, list(weight.shape), list(BLOCK), wgrad_tiles)
        return y, dx, dw

    with FakeTensorMode(allow_non_fake_inputs=True):
        there = fakes_of(layout)
        traced = kernels_in(passes, on_gpu((512, 768)), on_gpu((512, 768)), on_gpu(512), on_gpu((512, 512)))
    assert [written for written, _ in traced] == [["C"], ["C"], ["OUT"], ["OUT"]]
    assert [on_device for _, on_device in traced[:3]] == [bool(tiles)] * 3


def test_packed_blocks_are_one_kernel(gpu, layout):
    with FakeTensorMode(allow_non_fake_inputs=True):
        packed = PackedBlocks(on_gpu((layout.nnzb, *BLOCK)), fakes_of(layout))
        call = lambda x: bsr_linear_packed(x, packed, activation="gelu", tiles=STAYING[0])  # noqa: E731
        assert kernels_in(call, on_gpu((512, 768))) == [(["C"], True)]


def test_few_rows_are_two_kernels(gpu):
    draw = torch.Generator().manual_seed(0)
    packed = BitmapWeight.from_dense(torch.zeros(512, 768), torch.rand(512, 768, generator=draw) < 0.1)
    with FakeTensorMode(allow_non_fake_inputs=True):
        there = packed.with_tensors(
            {name: on_gpu(array.shape, array.dtype) for name, array in packed.tensors().items()}
        )
        launch = default_launch(512, 768, torch.float32)._replace(overlap=1)  # which compiled code goes without
        call = lambda x: bitmap_linear(x, there, launch=launch)  # noqa: E731
        traced = kernels_in(call, on_gpu((16, 768), torch.float32), constant="OVERLAPS")
    assert traced == [(["PARTIALS", "COLUMNS_OF_X"], False), (["OUT"], False)]


def test_a_layout_that_is_a_constant_of_the_graph_is_traced_too(gpu, layout):
    packed = PackedBlocks(torch.zeros(layout.nnzb, *BLOCK, dtype=torch.bfloat16), layout)
    with FakeTensorMode(allow_non_fake_inputs=True):
        call = lambda x: bsr_linear_packed(x, packed, tiles=STAYING[0])  # noqa: E731
        assert kernels_in(call, torch.empty(512, 768, dtype=torch.bfloat16)) == [(["C"], True)]


def test_what_tma_cannot_read_is_traced_with_pointers(gpu, layout):
    with FakeTensorMode(allow_non_fake_inputs=True):
        there, weight = fakes_of(layout), on_gpu((512, 768))
        call = lambda x: bsr_linear(x[:, 4:772], weight, there, tiles=STAYING)  # noqa: E731  (begins at 8 bytes)
        assert [on_device for _, on_device in kernels_in(call, on_gpu((512, 784)))] == [False]


def test_a_number_of_rows_that_varies_is_compiled_for_once(gpu, layout):
    shapes = ShapeEnv()
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=shapes, static_shapes=False)
    rows = mode.from_tensor(torch.empty(520)).shape[0]
    with mode:
        arrays, weight = [getattr(fakes_of(layout), name) for name in ARRAYS], on_gpu((512, 768))
        call = lambda x: bsr_linear_forward(x, weight, None, *arrays, list(BLOCK), "none", False, *STAYING)  # noqa: E731
        ((written, on_device),) = kernels_in(call, on_gpu((rows, 768)))
    assert isinstance(rows, torch.SymInt) and "C" in written and on_device
    assert not shapes.guards, "the rows' value was asked for"
