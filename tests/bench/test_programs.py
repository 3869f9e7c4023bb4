"""bench of what PyTorch runs in other ways than from Python in fp32: programs, other dtypes, compiled code, graphs."""

import gc
import json
import shutil
import weakref
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from sparseticket.bench import alone, candidates, runner, sessions
from sparseticket.bench.alone import Alone
from sparseticket.bench.runner import bench
from sparseticket.errors import UserError
from sparseticket.export.exporter import export_model
from sparseticket.export.loaded_model import DTYPES
from sparseticket.ticket import Ticket

NAME = "encoder.layer.0.intermediate.dense.weight"


@pytest.fixture(scope="module")
def blocky(bert, tmp_path_factory) -> Path:
    """A round whose model has one layer of live and dead blocks, under its ticket."""
    import transformers

    folder = tmp_path_factory.mktemp("blocky") / "round-00"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(bert)
    weight = model.bert.get_parameter(NAME)
    torch.nn.init.normal_(weight)
    mask = (torch.arange(64)[:, None] // 16 + torch.arange(32)[None] // 16) % 2 == 0
    weight.data.masked_fill_(~mask, 0)
    model.save_pretrained(folder / "model")
    Ticket({NAME: mask}, "tiny", {NAME: "0" * 64}, 0.5, pattern="block:16x16").save(folder / "ticket.ticket")
    (folder / "done").touch()
    return folder


@pytest.fixture(scope="module")
def program(blocky) -> Path:
    export_model(blocky, format="pt2")
    return blocky / "pt2"


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """bench for a moment, its load times measured in no process of their own."""
    monkeypatch.setattr(candidates, "measure_alone", lambda *_, **__: Alone(load_ms=1.0, memory_bytes=1))

    def run(*named, **options):
        options = {"threads": (1,), "seconds": 0.02, "min_rounds": 2, "out": tmp_path / "out", **options}
        return bench([str(one) for one in named], **options)

    return run


def test_a_program_is_measured_beside_its_model_and_what_a_cpu_makes_of_it_is_said(blocky, program, tmp_path):
    result = bench([str(blocky), str(program)], tmp_path / "out", threads=(1,), seconds=0.02, min_rounds=2)
    model, ours = [record for record in result["records"] if record["provider"].endswith("-cpu")]
    assert (model["provider"], ours["provider"]) == ("pytorch-cpu", "pt2-cpu")
    assert ours["against"] == "round-00 (pytorch-cpu)" and ours["load_ms"] > 0 and ours["memory_bytes"] > 0
    assert ours["bytes"] == (program / "model.pt2").stat().st_size
    assert ours["sparsity"] == pytest.approx(model["sparsity"])
    assert any("1 block-sparse layers, which a CPU computes as dense ones" in note for note in result["notes"])
    assert not any("pt2 is" in note and "from its zeros alone" in note for note in result["notes"])


def test_the_inputs_of_a_program_have_its_limits(program, quick):
    with pytest.raises(UserError, match="at most 40 tokens"):
        quick(program, seq_length=[41])
    result = quick(program / "model.pt2", seq_length=[1, 40], batch=[1, 3])
    cells = [(one["batch"], one["tokens"]) for one in result["records"]]
    assert sorted(cells) == [(1, 1), (1, 40), (3, 1), (3, 40)]


def test_a_program_for_a_gpu_is_what_was_compiled_for_it(program, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    folder = shutil.copytree(program, tmp_path / "both")
    assert candidates.find("here", str(folder)).devices == ("cpu",)
    (folder / "model.aoti.pt2").write_bytes(b"compiled")
    found = candidates.find("there", str(folder))
    assert (found.devices, found.path.name, found.bytes) == (("cuda",), "model.aoti.pt2", 8)


@pytest.mark.parametrize("report", [None, "{}", '{"layers": [{"name": "a"}]}'])
def test_a_program_without_the_report_of_its_export_is_refused(report, program, tmp_path, quick):
    folder = shutil.copytree(program, tmp_path / "copy")
    (folder / "export_report.json").unlink()
    if report is not None:
        (folder / "export_report.json").write_text(report)
    with pytest.raises(UserError, match=r"export_report\.json"):
        quick(folder)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_a_model_folder_runs_in_the_dtype_that_was_asked_for(dtype, blocky, quick, monkeypatch):
    seen = []
    monkeypatch.setattr(
        torch.nn.Linear, "forward", lambda layer, x: seen.append((x.dtype, layer.weight.dtype)) or x @ layer.weight.T
    )
    result = quick(blocky, dtype=dtype, seq_length=[8])
    assert seen[-1] == (DTYPES[dtype], DTYPES[dtype])
    assert result["pytorch"] == f"{dtype}, called from Python"


def test_images_are_cast_with_the_model(tmp_path):
    from sparseticket.models import Head, resolve

    resolve("resnet20-cifar").build(Head("image-classification", 10), seed=0).save(tmp_path / "net")
    found = candidates.find("net", str(tmp_path / "net"))
    feeds = {"pixel_values": torch.zeros(1, 3, 32, 32).numpy()}
    session = sessions.open_session("pytorch", found.path, "cpu", feeds, 1, sessions.TorchCall(dtype="bf16"))
    assert session.call().dtype == torch.bfloat16


def test_compiled_is_by_torch_compile_and_said(blocky, quick, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module, **_: compiled.append(module) or module)
    result = quick(blocky, launched="compiled", seq_length=[8])
    assert len(compiled) == 1 and not compiled[0].training
    assert "model folders in PyTorch: fp32, called by torch.compile" in (tmp_path / "out" / "bench.md").read_text()
    assert result["pytorch"] == "fp32, called by torch.compile"


def test_every_cell_of_a_compiled_model_runs_compiled_code(blocky, quick, monkeypatch):
    """Of one function torch keeps 8 forms (2 here), and would call the next shape from Python without an error."""
    runs, compile_with = [], torch.compile

    def counting(graph, example):
        return lambda *inputs: runs.append(graph) or graph(*inputs)

    monkeypatch.setattr(torch, "compile", lambda module, **how: compile_with(module, backend=counting, **how))
    after = []
    with torch._dynamo.config.patch(recompile_limit=2):
        result = quick(blocky, launched="compiled", seq_length=[4, 5, 6, 7], say=lambda _: after.append(len(runs)))
    assert len(result["records"]) == 4
    assert all(one < next_one for one, next_one in pairwise([*after, len(runs)]))


def test_memory_is_not_said_where_the_call_compiles(blocky, monkeypatch):
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    inputs = {"input_ids": torch.ones(1, 8, dtype=torch.int64).numpy()}
    how = sessions.TorchCall(launched="compiled")
    found = alone.measure_alone("pytorch", blocky / "model", "cpu", inputs, 1, how, name="it")
    assert found.memory_bytes is None and found.load_ms > 0


BOTH, CPU, GPU = ("cpu", "cuda"), ("cpu",), ("cuda",)


@pytest.mark.parametrize(
    ("one", "baseline", "how", "measured"),
    [
        (("pytorch", BOTH), ("pytorch", BOTH), sessions.PLAINLY, BOTH),
        (("pytorch", BOTH), ("pytorch", BOTH), sessions.TorchCall("bf16"), GPU),
        (("pytorch", CPU), ("pytorch", CPU), sessions.TorchCall("bf16"), CPU),
        (("onnxruntime", BOTH), ("pytorch", BOTH), sessions.TorchCall(launched="graph"), GPU),
        (("onnxruntime", BOTH), ("pytorch", BOTH), sessions.PLAINLY, BOTH),
        (("onnxruntime", CPU), ("pytorch", BOTH), sessions.TorchCall(launched="graph"), CPU),  # it can run nowhere else
        (("pytorch", BOTH), ("pt2", GPU), sessions.PLAINLY, GPU),
        (("pytorch", BOTH), ("onnxruntime", CPU), sessions.PLAINLY, BOTH),
    ],
)
def test_the_cpu_is_left_out_where_the_baseline_is_not_measured_there(one, baseline, how, measured):
    named = [type("Found", (), {"runtime": runtime, "devices": devices}) for runtime, devices in (one, baseline)]
    assert runner._devices(*named, how) == measured


def test_a_program_in_another_dtype_than_the_folders_is_said_to_be(blocky, tmp_path, quick):
    export_model(blocky, tmp_path / "half", format="pt2", dtype="bf16")
    unlike = "half computes in bf16, model folders in fp32: compare with --dtype bf16."
    assert unlike in quick(blocky, tmp_path / "half", seq_length=[8])["notes"]
    assert not any("computes in" in n for n in quick(blocky, tmp_path / "half", seq_length=[8], dtype="bf16")["notes"])


def test_how_a_model_is_called_reaches_the_process_that_measures_its_memory(blocky, program, tmp_path, monkeypatch):
    jobs = []

    def run(command, **_):
        jobs.append(json.loads(command[-2]))
        Path(command[-1]).write_text('{"load_ms": 1.0, "memory_bytes": 1}')
        return type("Done", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr("subprocess.run", run)
    both = [str(blocky), str(program)]
    bench(both, tmp_path / "out", dtype="bf16", threads=(1,), seconds=0.02, min_rounds=2)
    how = {job["runtime"]: tuple(job["how"]) for job in jobs}
    assert how["pytorch"] == ("bf16", "eager", str(blocky / "ticket.ticket"))
    assert how["pt2"] == ("fp32", "eager", None)  # as it is


def test_what_cannot_be_captured_in_a_graph_is_said_to_be_that(blocky, monkeypatch):
    def graphed(call, device):
        call()
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr("sparseticket.kernels.clock.graphed", graphed)
    inputs = {"input_ids": torch.ones(1, 8, dtype=torch.int64).numpy()}
    how = sessions.TorchCall(launched="graph")
    with pytest.raises(UserError, match=r"CUDA graph \(.*not permitted when stream is capturing\): try"):
        sessions.open_session("pytorch", blocky / "model", "cpu", inputs, 1, how)


def test_a_graph_keeps_what_it_reads(blocky, monkeypatch):
    kept = []
    monkeypatch.setattr(
        "sparseticket.kernels.clock.graphed", lambda call, device: kept.append(weakref.ref(call)) or str
    )
    inputs = {"input_ids": torch.ones(1, 8, dtype=torch.int64).numpy()}
    how = sessions.TorchCall(launched="graph")
    session = sessions.open_session("pytorch", blocky / "model", "cpu", inputs, 1, how)
    gc.collect()
    assert session.call() == "" and kept[0]() is not None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_graph_needs_a_gpu(blocky, quick):
    with pytest.raises(UserError, match="for a GPU, and there is none"):
        quick(blocky, launched="graph")


def test_what_would_change_nothing_is_refused(program, blocky, quick):
    for option in ({"dtype": "bf16"}, {"launched": "compiled"}):
        with pytest.raises(UserError, match="for model folders"):
            quick(program, **option)
    with pytest.raises(UserError, match="--dtype is fp32 or fp16 or bf16"):
        quick(blocky, dtype="int8")
    with pytest.raises(UserError, match="--launched is eager or compiled or graph"):
        quick(blocky, launched="quickly")


def test_on_a_gpu_that_runs_no_layer_from_python_it_is_said_what_to_try():
    from sparseticket.bench.runner import _kernel_notes

    found = [type("Found", (), {"name": "ours", "ticket": "a.ticket"})]
    record = {"name": "ours", "provider": "pytorch-cuda", "cell": "batch 1", "on_kernels": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        eager = _kernel_notes(found, [record], "auto", sessions.PLAINLY)
        graph = _kernel_notes(found, [record], "auto", sessions.TorchCall("bf16", "graph"))
    assert "0 groups of layers" in eager[0] and "--launched graph --dtype bf16" in eager[1]
    assert len(graph) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("launched", ["eager", "compiled", "graph"])
def test_a_model_and_its_program_are_measured_on_a_gpu_however_they_are_called(launched, blocky, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    export_model(blocky, tmp_path / "program", format="pt2", dtype="bf16")
    named = [str(blocky), str(tmp_path / "program")]
    result = bench(named, tmp_path / "out", dtype="bf16", launched=launched, seconds=0.2, threads=(1,))
    on_gpu = {one["provider"]: one for one in result["records"] if one["provider"].endswith("-cuda")}
    assert set(on_gpu) == {"pytorch-cuda", "pt2-cuda"}
    assert any(one["provider"] == "pytorch-cpu" for one in result["records"]) == (launched != "graph")
