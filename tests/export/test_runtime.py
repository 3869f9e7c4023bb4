"""Sessions of exported files: with the library where it is built, without it anywhere; and what ``env`` says of it."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparseticket.errors import RunFailure, UserError
from sparseticket.export import native, runtime, sparse_op, verify

BUILT = pytest.mark.skipif(native.find_library() is None, reason=f"the library is {native.MISSING}")
X = np.random.default_rng(1).standard_normal((3, 16)).astype(np.float32)


@pytest.fixture
def sparse_file(tmp_path) -> Path:
    weight = np.zeros((16, 8), np.float32)
    weight[3, 4:] = 2
    encoded = sparse_op.encode(weight, 4)
    arrays = {"values": encoded.values, "index": encoded.index, "bias": np.ones(8, np.float32)}
    graph = helper.make_graph(
        [sparse_op.make_node(encoded, ["x", *arrays], "y", "Relu")],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 8])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    sparse_op.add_functions(model)
    onnx.save(model, tmp_path / "sparse.onnx")
    return tmp_path / "sparse.onnx"


def expected() -> np.ndarray:
    return np.maximum(1 + 2 * X[:, 3:4] * (np.arange(8) >= 4), 0)


@BUILT
def test_a_session_runs_the_operator_of_the_library(sparse_file):
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(sparse_file.with_suffix(""))
    session = runtime.session(sparse_file, session_options=options)
    np.testing.assert_allclose(session.run(None, {"x": X})[0], expected(), atol=1e-6)
    assert '"op_name" : "BlockSparseLinearRelu"' in Path(session.end_profiling()).read_text()


@BUILT
def test_the_documented_line_makes_a_session_of_the_users_own_fast(sparse_file):
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(runtime.library_path())
    session = onnxruntime.InferenceSession(sparse_file, options)
    np.testing.assert_allclose(session.run(None, {"x": X})[0], expected(), atol=1e-6)


def test_without_the_library_the_body_runs_after_one_warning(sparse_file, monkeypatch):
    monkeypatch.setattr(native, "find_library", lambda: None)
    with pytest.warns(UserWarning, match="make native") as caught:
        session = runtime.session(sparse_file)
    assert len(caught) == 1
    np.testing.assert_allclose(session.run(None, {"x": X})[0], expected(), atol=1e-6)
    with pytest.raises(UserError, match="C\\+\\+17 compiler"):
        runtime.library_path()


def test_a_file_without_sparse_operators_needs_no_library_and_gets_no_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "find_library", lambda: None)
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 16])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "a.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runtime.session(tmp_path / "a.onnx")


def test_an_onnxruntime_that_refuses_the_library_is_an_error_that_says_what_to_do(sparse_file, tmp_path, monkeypatch):
    broken = tmp_path / "_sparse_linear.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(native, "find_library", lambda: broken)
    with pytest.raises(UserError, match=r"does not take the library .* pip install --upgrade onnxruntime"):
        runtime.session(sparse_file)
    assert "build it again" in native.report()
    assert native.target("this") in (*native.INSTRUCTIONS, "portable")


@pytest.mark.parametrize("content", [None, b"", b"no model", "half of it"])
@pytest.mark.parametrize("built", [pytest.param(True, marks=BUILT), False])
def test_a_file_that_cannot_be_loaded_is_named_in_one_error(sparse_file, tmp_path, monkeypatch, content, built):
    if not built:
        monkeypatch.setattr(native, "find_library", lambda: None)
    file = tmp_path / "other.onnx"
    if content is not None:
        whole = sparse_file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2] if content == "half of it" else content)
    with pytest.raises(UserError, match=r"cannot load .*other\.onnx"):
        runtime.session(file)
    with pytest.raises(UserError, match=f"cannot load .*{tmp_path.name}"):
        runtime.session(tmp_path)
    with pytest.raises(RunFailure, match="does not load the exported file"):  # an export that fails its verification
        verify.open_session(file)


def test_what_is_no_path_is_refused(sparse_file):
    with pytest.raises(UserError, match="not of bytes"):
        runtime.session(sparse_file.read_bytes())


@BUILT
def test_session_options_that_have_the_library_already_are_refused(sparse_file):
    options = onnxruntime.SessionOptions()
    runtime.session(sparse_file, session_options=options)
    with pytest.raises(UserError, match="give each call new ones"):
        runtime.session(sparse_file, session_options=options)


@BUILT
@pytest.mark.parametrize("providers", [runtime.CPU, [(runtime.CPU, {})]])
def test_each_way_to_name_the_cpu_registers_the_library(sparse_file, tmp_path, providers):
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    session = runtime.session(sparse_file, providers, options)
    session.run(None, {"x": X})
    assert '"op_name" : "BlockSparseLinearRelu"' in Path(session.end_profiling()).read_text()


def in_a_new_process(code: str, **variables: str) -> str:
    """What it prints: the instruction set is chosen once a process."""
    root = str(Path(native.__file__).absolute().parents[3])
    done = subprocess.run(
        [sys.executable, "-c", f"from sparseticket.export import native, runtime\n{code}"],
        env=os.environ | {"PYTHONPATH": root} | variables,
        capture_output=True,
        text=True,
    )
    return (done.stdout + done.stderr).strip()


@BUILT
def test_an_instruction_set_is_forced_for_a_process(sparse_file):
    code = f"runtime.session({str(sparse_file)!r}); print(native.isa())"
    assert in_a_new_process(code, SPARSETICKET_ISA="portable") == "portable"


@BUILT
def test_an_instruction_set_that_the_cpu_lacks_is_an_error(sparse_file):
    said = in_a_new_process(f"print(native.report()); runtime.session({str(sparse_file)!r})", SPARSETICKET_ISA="sse9")
    assert said.startswith("built, but this CPU has no sse9, which SPARSETICKET_ISA asks for")
    assert "UserError" in said and "does not take the library" in said


def test_env_says_whether_the_library_is_built_and_what_it_runs_on(monkeypatch):
    from typer.testing import CliRunner

    from sparseticket.cli.app import app

    (line,) = [one for one in CliRunner().invoke(app, ["env"]).output.splitlines() if "sparse operator" in one]
    assert ("runs on" in line) == (native.find_library() is not None)
    monkeypatch.setattr(native, "find_library", lambda: None)
    assert "not built: it needs a C++17 compiler" in CliRunner().invoke(app, ["env"]).output.replace("\n", " ")


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ("fma avx2", "avx2"),
        ("fma avx2 avx512f avx512bw avx512vl avx512dq", "avx512"),
        ("avx512f avx512bw avx512vl avx512dq avx512_vnni avx2", "vnni"),
        ("sse2", "portable"),
    ],
)
def test_without_the_library_the_target_this_is_read_from_the_processors_flags(tmp_path, monkeypatch, flags, found):
    monkeypatch.setattr(native, "find_library", lambda: None)
    monkeypatch.setattr(native, "CPU_INFO", tmp_path / "cpuinfo")
    native.CPU_INFO.write_text(f"processor : 0\nflags\t\t: fpu {flags}\n")
    assert native.target("this") == found
    assert native.target("avx2") == "avx2"


def test_onnx_runtime_keeps_and_sends_nothing_about_models(sparse_file, tmp_path):
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    home.mkdir()
    scratch.mkdir()
    silences = ("ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "CI", "GITHUB_ACTIONS", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in silences}
    script = f"from sparseticket.export.runtime import session\nsession({str(sparse_file)!r})"
    subprocess.run(
        [sys.executable, "-c", script], env=environment | {"HOME": str(home), "TMPDIR": str(scratch)}, check=True
    )
    assert [*home.rglob("*"), *scratch.rglob("*")] == []
