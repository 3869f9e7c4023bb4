"""The compiled operator against float64 on every instruction set, and against files that lie.

Run as a program (LIBRARY), it is the check of one instruction set: a process keeps the one that it began with.
"""

import ctypes
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from sparseticket.export import native, sparse_op
from sparseticket.export.native import build

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "export" / "native"
SETS = ("portable", "avx2", "avx512", "avx512-vnni")
SHAPES = [(rows,) for rows in (0, 1, 2, 3, 4, 7, 8, 17, 64, 65, 128)] + [(), (2, 33), (2, 1, 3), (3, 0), (1025,)]
SIZES = ((7, 16), (131, 77), (517, 137))  # K, N: odd, and just over 64 rows' worth of inputs, 128 outputs, 512 inputs
KINDS = [(block, False) for block in (1, 2, 4, 8)] + [(4, True)]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> str:
    """The one that is built, if nothing was written since; else one of our own, of these sources as they are."""
    found, sources = native.find_library(), [*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h"), *SOURCES.glob("*.inl")]
    if found and found.stat().st_mtime > max(source.stat().st_mtime for source in sources):
        return str(found)
    compiler = build.compiler()
    if compiler is None:
        pytest.skip("no C++ compiler, and no library of these sources")
    made = tmp_path_factory.mktemp("native") / "sparse.so"
    command = [compiler, "-std=c++17", "-O0", "-fPIC", "-shared", "-Wall", "-Wextra", *map(str, SOURCES.glob("*.cpp"))]
    done = subprocess.run([*command, "-o", str(made)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr
    return str(made)


def sparse_weight(inputs: int, outputs: int, block: int, axis: int) -> np.ndarray:
    """[inputs, outputs] of about 30 %, with one full line that makes the other axis the shorter one."""
    draw = np.random.default_rng(inputs * outputs + block)
    live = draw.random((inputs, outputs // block)) < 0.3
    live[3, :] |= axis == 0
    live[:, 1] |= axis == 1
    weight = draw.standard_normal((inputs, outputs)).astype(np.float32)
    return np.where(live.repeat(block, 1), weight, np.float32(0))


def parts(encoded: sparse_op.Encoded, bias: np.ndarray) -> dict[str, np.ndarray]:
    arrays = {"index": encoded.index, "values": encoded.values, "scale": encoded.scale, "bias": bias}
    return {name: array for name, array in arrays.items() if array is not None}


def model_of(nodes: list[onnx.NodeProto], arrays: dict[str, np.ndarray], inputs: tuple[str, ...] = ()) -> bytes:
    """Without bodies, so that nothing but the library can run it; ``inputs`` are fed, not stored."""
    feeds = [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)]
    feeds += [
        helper.make_tensor_value_info(one, helper.np_dtype_to_tensor_dtype(arrays[one].dtype), arrays[one].shape)
        for one in inputs
    ]
    results = [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None) for node in nodes]
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items() if name not in inputs]
    graph = helper.make_graph(nodes, "net", feeds, results, weights)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(sparse_op.DOMAIN, sparse_op.VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def session(model: bytes | str, library: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(library)
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def quantize(x: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """ONNX's DynamicQuantizeLinear: integers less their zero point, and the step."""
    low, high = min(x.min(initial=0), np.float32(0)), max(x.max(initial=0), np.float32(0))
    step = (high - low) / np.float32(255)
    zero = np.clip(np.rint(-low / step), 0, 255)
    return np.clip(np.rint(x / step) + zero, 0, 255).astype(np.float64) - zero, step


def expected(x: np.ndarray, encoded: sparse_op.Encoded, bias: np.ndarray, activation: str) -> tuple[np.ndarray, ...]:
    """y in float64, and how far float32 may be from it."""
    weight = encoded.dense().astype(np.float64)
    if encoded.scale is None:
        h, size, relative = x @ weight, np.abs(x) @ np.abs(weight), 1e-5
    else:
        integers, step = quantize(x)
        h = (integers @ weight) * (np.float64(step) * encoded.scale)
        size, relative = np.abs(h), 2e-6  # the integers are exact
    h = h + bias
    erf = np.vectorize(math.erf, otypes=[float])
    y = {"": lambda: h, "Relu": lambda: np.maximum(h, 0), "Gelu": lambda: h / 2 * (1 + erf(h / math.sqrt(2)))}
    return y[activation](), relative * (size + np.abs(bias)) + 1e-30


def check_all(library: str) -> int:
    """Every operator, axis and activation, on all ``SIZES`` and ``SHAPES``; returns how many results were compared."""
    compared = 0
    for axis in (0, 1):
        for inputs, most in SIZES:
            nodes, arrays, checks = [], {}, []
            for block, int8 in KINDS:
                outputs = most // block * block
                encoded = sparse_op.encode(sparse_weight(inputs, outputs, block, axis), block, int8=int8)
                assert encoded.axis == axis
                bias = np.random.default_rng(block).standard_normal(outputs).astype(np.float32)
                for activation in sparse_op.ACTIVATIONS:
                    own = {f"{name}{len(nodes)}": array for name, array in parts(encoded, bias).items()}
                    order = sorted(own, key=lambda name: ["val", "ind", "sca", "bia"].index(name[:3]))
                    nodes.append(sparse_op.make_node(encoded, ["x", *order], f"y{len(nodes)}", activation))
                    arrays |= own
                    checks.append((encoded, bias, activation))
            run = session(model_of(nodes, arrays), library).run
            for shape in SHAPES:
                x = np.random.default_rng(len(shape)).standard_normal((*shape, inputs)).astype(np.float32)
                for y, (encoded, bias, activation) in zip(run(None, {"x": x}), checks, strict=True):
                    assert y.shape == (*shape, encoded.shape[1])
                    wanted, allowed = expected(x, encoded, bias, activation) if y.size else (y, y)
                    assert (np.abs(y - wanted) <= allowed).all(), (
                        shape,
                        encoded.shape,
                        encoded.block,
                        axis,
                        activation,
                    )
                    compared += y.size
    return compared


def in_a_new_process(library: str, isa: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"SPARSETICKET_ISA": isa, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, __file__, library], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("isa", SETS)
def test_every_operator_gives_the_float64_product_on(library, isa):
    done = in_a_new_process(library, isa)
    if "SPARSETICKET_ISA names" in done.stderr:
        pytest.skip(f"this CPU has no {isa}")
    assert done.returncode == 0, done.stderr
    said, compared = done.stdout.split()
    assert said == isa and int(compared) > 500_000


def test_an_unknown_instruction_set_is_refused_by_name(library):
    done = in_a_new_process(library, "sse9")
    assert done.returncode != 0
    assert "SPARSETICKET_ISA names an instruction set that is unknown or not this CPU's: portable, avx2" in done.stderr


def test_an_onnxruntime_without_the_version_asked_for_is_refused_with_what_to_do(library):
    said = []

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
    def create_status(_code, message):
        said.append(message.decode())
        return 1

    table = (ctypes.c_void_p * 279)(ctypes.cast(create_status, ctypes.c_void_p).value)  # of version 1
    get_api = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)(lambda v: ctypes.addressof(table) if v == 1 else None)
    get_version = ctypes.CFUNCTYPE(ctypes.c_char_p)(lambda: b"1.16.3")
    base = (ctypes.c_void_p * 2)(*(ctypes.cast(one, ctypes.c_void_p).value for one in (get_api, get_version)))
    register = ctypes.CDLL(library).RegisterCustomOps
    register.argtypes, register.restype = [ctypes.c_void_p, ctypes.c_void_p], ctypes.c_void_p
    assert register(None, ctypes.addressof(base))
    assert said == ["sparseticket's operators need ONNX Runtime 1.17 or newer, and this is 1.16.3: "
                    "pip install --upgrade onnxruntime"]  # fmt: skip


INPUTS, OUTPUTS, BLOCK = 10, 24, 4


def node_of(encoded: sparse_op.Encoded) -> onnx.NodeProto:
    names = ["x", "values", "index", *(["scale"] if encoded.scale is not None else []), "bias"]
    return sparse_op.make_node(encoded, names, "y")


def good(int8: bool = False, axis: int = 1) -> tuple[onnx.NodeProto, dict[str, np.ndarray]]:
    encoded = sparse_op.encode(sparse_weight(INPUTS, OUTPUTS, BLOCK, axis), BLOCK, int8=int8)
    arrays = parts(encoded, np.zeros(OUTPUTS, np.float32))
    return node_of(encoded), {name: array.copy() for name, array in arrays.items()}


def set_attribute(node: onnx.NodeProto, name: str, value: object) -> None:
    kept = [one for one in node.attribute if one.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def put(name: str, place: tuple[int, ...], value: int):
    return lambda node, arrays: arrays[name].__setitem__(place, value)


def cut(name: str):
    return lambda node, arrays: arrays.update({name: arrays[name][:-1]})


def attribute(name: str, value: object):
    return lambda node, arrays: set_attribute(node, name, value)


def swap_two(node: onnx.NodeProto, arrays: dict[str, np.ndarray]) -> None:
    arrays["index"][0, :2] = arrays["index"][0, 1::-1]


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (put("index", (0, -1), OUTPUTS), "an index points outside of the weight"),
        (put("index", (2, -1), 65_532), "an index points outside of the weight"),
        (put("index", (0, -1), OUTPUTS - 1), "or into a block"),
        (swap_two, "the indices of a line must rise"),
        (cut("index"), "index has shape .* does not fit"),
        (cut("values"), r"values have shape \[9, .*\], not \[10, "),
        (cut("bias"), r"bias has shape \[23\], not \[24\]"),
        (attribute("axis", 2), "axis must be 0 or 1"),
        (attribute("axis", 0), "index has shape"),
        (attribute("shape", [INPUTS, OUTPUTS, 1]), r"shape must be \[inputs, outputs\]"),
        (attribute("shape", [INPUTS + 1, OUTPUTS]), "index has shape"),
        (attribute("shape", [INPUTS, 2**40]), "from 1 to 65536"),
        (attribute("shape", [-1, OUTPUTS]), "from 1 to 65536"),
        (attribute("offsets", [0, 1, 2]), "a block has 1, 2, 4 or 8 outputs|blocks of 4"),
    ],
)
def test_a_file_that_lies_is_refused_when_the_session_is_made(library, int8, breaks, message):
    node, arrays = good(int8)
    session(model_of([node], arrays), library)
    breaks(node, arrays)
    with pytest.raises(Exception, match=message):
        session(model_of([node], arrays), library)


@pytest.mark.parametrize("name", ["values", "index", "scale", "bias"])
def test_weights_that_are_fed_are_refused(library, name):
    node, arrays = good(int8=True)
    with pytest.raises(Exception, match=f"{name} must be constant"):
        session(model_of([node], arrays, inputs=(name,)), library)


@pytest.mark.parametrize("shape", [(3, INPUTS + 1), (INPUTS, 3), ()])
def test_an_x_of_another_length_is_refused_at_the_call(library, shape):
    run = session(model_of(*(lambda node, arrays: ([node], arrays))(*good())), library).run
    with pytest.raises(Exception, match=f"the last dimension of x must be {INPUTS}"):
        run(None, {"x": np.zeros(shape, np.float32)})
    assert run(None, {"x": np.zeros((3, INPUTS), np.float32)})[0].shape == (3, OUTPUTS)


def test_weights_may_begin_at_any_byte_of_a_file_beside_the_model(library, tmp_path):
    encoded = sparse_op.encode(sparse_weight(5, 7, 1, 1))
    arrays = parts(encoded, np.arange(7, dtype=np.float32))
    two_bytes = {"unused": np.zeros(1, np.uint16)}  # so the floats behind lie askew
    model = onnx.load_from_string(model_of([node_of(encoded)], two_bytes | arrays))
    onnx.save_model(model, tmp_path / "net.onnx", save_as_external_data=True, size_threshold=0)
    x = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    (y,) = session(str(tmp_path / "net.onnx"), library).run(None, {"x": x})
    np.testing.assert_allclose(y, x @ encoded.dense() + arrays["bias"], rtol=1e-5, atol=1e-6)


def test_what_a_layer_norm_reads_may_begin_there_too(library, tmp_path):
    node = helper.make_node("AddLayerNorm", ["x", "x", "scale", "bias"], ["y"], domain=sparse_op.DOMAIN, epsilon=1e-5)
    arrays = {
        "unused": np.zeros(1, np.uint16),
        "scale": np.linspace(1, 2, 37, dtype=np.float32),
        "bias": np.linspace(-1, 1, 37, dtype=np.float32),
    }
    model = onnx.load_from_string(model_of([node], arrays))
    onnx.save_model(model, tmp_path / "net.onnx", save_as_external_data=True, size_threshold=0)
    x = np.random.default_rng(0).standard_normal((5, 37)).astype(np.float32)
    (y,) = session(str(tmp_path / "net.onnx"), library).run(None, {"x": x})
    tensors = (torch.from_numpy(array).double() for array in (2 * x, arrays["scale"], arrays["bias"]))
    wanted = torch.nn.functional.layer_norm(next(tensors), (37,), *tensors)
    np.testing.assert_allclose(y, wanted.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize(("kernel", "strides", "pads"), [((1, 1), (1, 1), (0, 0)), ((3, 2), (2, 1), (1, 2))])
def test_a_convolution_is_torchs(library, block, kernel, strides, pads):
    channels, outputs = 5, 136
    weight = sparse_weight(channels * math.prod(kernel), outputs, block, 1)
    encoded = sparse_op.encode(weight, block)
    node = node_of(encoded)
    node.op_type = ("Block" if block > 1 else "") + "SparseConvRelu"
    for name, value in (("kernel_shape", kernel), ("strides", strides), ("pads", (*pads, *pads))):
        set_attribute(node, name, value)
    bias = np.linspace(-1, 1, outputs, dtype=np.float32)
    x = np.random.default_rng(0).standard_normal((2, channels, 13, 11)).astype(np.float32)
    (y,) = session(model_of([node], parts(encoded, bias)), library).run(None, {"x": x})
    filters = torch.from_numpy(weight.T.copy()).double().reshape(outputs, channels, *kernel)
    wanted = torch.conv2d(torch.from_numpy(x).double(), filters, torch.from_numpy(bias).double(), strides, pads).relu()
    np.testing.assert_allclose(y, wanted.numpy(), rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
    compared = check_all(sys.argv[1])
    ask = ctypes.CDLL(sys.argv[1]).sparseticket_isa
    ask.restype = ctypes.c_char_p
    print(ask().decode(), compared)
