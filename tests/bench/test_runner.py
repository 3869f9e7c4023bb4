import csv
import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from sparseticket.bench import candidates, timing
from sparseticket.bench.alone import Alone
from sparseticket.bench.candidates import find
from sparseticket.bench.runner import _notes, bench, short_names
from sparseticket.errors import UserError

KEYS = {"name", "provider", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "n", "throughput", "bytes", "load_ms"} | {
    "memory_bytes",
    "speedup",
    "speedup_low",
    "speedup_high",
    "sparsity",
    "against",
    "cell",
    "batch",
    "tokens",
    "threads",
    "on_kernels",
}


def quick(*candidates, out, **options):
    options = {"threads": (1,), "seconds": 0.05, "min_rounds": 8, **options}
    return bench([str(one) for one in candidates], out, **options)


@pytest.fixture
def real_processes():
    """Load time and memory are measured as for a user, in a process of its own: two seconds a model and cell."""


@pytest.fixture(autouse=True)
def no_processes(request, monkeypatch):
    """Where a test is not about them; :func:`measured` is made before, in real ones."""
    if "real_processes" not in request.fixturenames:
        monkeypatch.setattr(candidates, "measure_alone", lambda *_, **__: Alone(load_ms=1.0, memory_bytes=1))


@pytest.fixture(scope="module")
def measured(bert, bert_onnx, tmp_path_factory):
    out = tmp_path_factory.mktemp("measured")
    return out, quick(bert, bert_onnx, out=out)


def test_pytorch_and_onnx_runtime_are_measured_side_by_side(measured):
    out, result = measured
    assert json.loads((out / "bench.json").read_text()) == result
    cpu = [record for record in result["records"] if record["provider"].endswith("-cpu")]
    assert [(record["name"], record["provider"]) for record in cpu] == [
        ("bert", "pytorch-cpu"),
        ("onnx", "onnxruntime-cpu"),
    ]
    for record in cpu:
        assert set(record) == KEYS
        assert 0 < record["p50_ms"] <= record["p90_ms"] <= record["p95_ms"] <= record["p99_ms"]
        assert record["n"] >= 32
        assert record["load_ms"] > 0
        assert record["sparsity"] == pytest.approx(0.45, abs=0.06)
    assert cpu[0]["speedup"] == 1.0
    assert cpu[1]["speedup_low"] <= cpu[1]["speedup"] <= cpu[1]["speedup_high"]


def test_sizes_are_those_of_the_weights_on_disk(measured, bert, bert_onnx):
    sizes = {record["name"]: record["bytes"] for record in measured[1]["records"]}
    assert sizes["bert"] == (bert / "model.safetensors").stat().st_size
    assert sizes["onnx"] == (bert_onnx / "model.onnx").stat().st_size


def test_it_says_that_zeros_do_not_speed_up_what_ran(measured):
    notes = " ".join(measured[1]["notes"])
    assert "ONNX Runtime multiplies by zeros" in notes
    assert "PyTorch multiplies by zeros" in notes


def test_it_does_not_say_so_of_layers_that_ran_on_sparse_kernels(measured, bert, bert_onnx):
    found = [find(name, str(path)) for name, path in (("bert", bert), ("onnx", bert_onnx))]
    records = [record | {"on_kernels": 4 * (record["name"] == "bert")} for record in measured[1]["records"]]
    notes = " ".join(_notes(found, records))
    assert "PyTorch multiplies by zeros" not in notes
    assert "ONNX Runtime multiplies by zeros" in notes


def test_the_machine_is_described_and_not_named(measured):
    machine = measured[1]["machine"]
    assert machine["cpu"]
    assert machine["threads"] == 1
    assert {"torch", "onnxruntime", "transformers"} <= set(machine["versions"])


def test_a_slower_file_is_slower_and_said_to_be_not_faster(make_image_file, tmp_path):
    small, large = make_image_file("small", 1, zero=0.9), make_image_file("large", 20, width=512)
    result = quick(small, large, out=tmp_path / "out")
    record = next(one for one in result["records"] if one["name"] == "large.onnx")
    assert record["speedup_high"] < 1
    assert record["against"] == "small.onnx (onnxruntime-cpu)"
    assert any("large.onnx (onnxruntime-cpu) is not faster" in note for note in result["notes"])
    assert any(note.startswith("small.onnx is 90 % zeros") for note in result["notes"])
    result = quick(large, small, out=tmp_path / "out")
    record = next(one for one in result["records"] if one["name"] == "small.onnx")
    assert record["speedup_low"] > 1
    assert not any("not faster" in note for note in result["notes"])


def test_a_record_says_what_the_clock_read(make_image_file, tmp_path, monkeypatch):
    times = [np.array([[2.0, 2.0], [4.0, 8.0]]), np.full((2, 2), 1.0)]
    monkeypatch.setattr(timing, "interleave", lambda *_, **__: times)
    monkeypatch.setattr("sparseticket.bench.candidates.PROVIDERS", {"cpu": "CPUExecutionProvider"})
    result = quick(make_image_file("a", 1), make_image_file("b", 1), out=tmp_path / "out", batch=[32])
    dense, ticket = result["records"]
    assert any("only 4 calls" in note for note in result["notes"])
    assert (dense["p50_ms"], dense["n"], dense["throughput"]) == (3.0, 4, 8000)  # 32 rows in 4 ms on average
    assert (ticket["speedup"], ticket["speedup_low"], ticket["speedup_high"]) == (4.0, 2.0, 6.0)


def test_every_cell_of_the_grid_is_measured_and_compared_with_its_own_baseline(make_image_file, tmp_path):
    files = make_image_file("dense", 1), make_image_file("ticket", 1)
    result = quick(*files, out=tmp_path / "out", batch=[1, 4, 1], threads=[1, 2, "all"])
    cpu = [one for one in result["records"] if one["provider"] == "onnxruntime-cpu"]
    assert [(one["threads"], one["batch"], one["name"]) for one in cpu] == [
        (threads, batch, name) for threads in (1, 2) for batch in (1, 4) for name in ("dense.onnx", "ticket.onnx")
    ]  # "all" is one thread or two, and is not measured twice
    assert all((one["against"] is None) == (one["name"] == "dense.onnx") for one in cpu)
    assert result["inputs"] == "batch 1, 1x8x8 images; batch 4, 1x8x8 images"
    table = (tmp_path / "out" / "bench.md").read_text()
    assert table.count("| ticket.onnx | onnxruntime-cpu |") == 4
    assert "**batch 4, 1x8x8 images, 2 threads**" in table


def test_one_record_a_line_goes_into_the_csv_and_one_panel_a_cell_into_the_picture(make_image_file, tmp_path):
    from matplotlib.image import imread

    out, files = tmp_path / "out", (make_image_file("dense", 1), make_image_file("ticket", 1))
    result = quick(*files, out=out)
    with (out / "bench.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["name"] for line in lines] == [record["name"] for record in result["records"]]
    assert float(lines[0]["p50_ms"]) == result["records"][0]["p50_ms"]
    assert lines[0]["tokens"] == lines[0]["against"] == ""
    one_panel = imread(out / "bench.png")
    quick(*files, out=out, batch=[1, 2, 3])
    assert imread(out / "bench.png").size > 2 * one_panel.size
    assert one_panel[..., :3].std() > 0.1  # bars and words, not a blank sheet


def test_length_and_batch_reach_the_model_and_the_longest_is_checked_before_anything_is_measured(
    bert_onnx, tmp_path, monkeypatch
):
    result = quick(bert_onnx, out=tmp_path / "out", seq_length=[8, 40], batch=[2])
    assert [(one["tokens"], one["batch"]) for one in result["records"] if one["provider"].endswith("cpu")] == [
        (8, 2),
        (40, 2),
    ]
    monkeypatch.setattr(timing, "interleave", lambda *_, **__: pytest.fail("it measured"))
    with pytest.raises(UserError, match="at most 40"):
        quick(bert_onnx, out=tmp_path / "out", seq_length=[8, 41])


def test_a_length_for_images_is_an_error(make_image_file, tmp_path):
    with pytest.raises(UserError, match="these models take images"):
        quick(make_image_file("net", 1), out=tmp_path / "out", seq_length=[32])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory needs Linux")
def test_memory_is_that_of_a_process_of_its_own_whatever_was_loaded_before(make_image_file, tmp_path, real_processes):
    heavy, light = make_image_file("heavy", 8, width=16384), make_image_file("light", 1)  # 67 MB, and 32 kB
    result = quick(heavy, light, out=tmp_path / "out", min_rounds=2)
    memory = {one["name"]: one["memory_bytes"] for one in result["records"] if one["provider"].endswith("cpu")}
    assert memory["heavy.onnx"] > heavy.stat().st_size
    assert memory["light.onnx"] < 30e6


def test_a_limit_that_is_passed_is_listed_with_its_cell(make_image_file, tmp_path):
    small, large = make_image_file("small", 1), make_image_file("large", 4, width=512)
    result = quick(small, large, out=tmp_path / "out", fail_if=["size > 1.1x", "p50 > 100000x", "load<0ms"])
    (line,) = [one for one in result["failures"] if "onnxruntime-cpu" in one]
    assert line.startswith("large.onnx (onnxruntime-cpu), batch 1, 1x8x8 images, 1 thread: size is ")
    assert "of small.onnx (--fail-if 'size > 1.1x')" in line
    assert line.split("MB, ")[1].startswith(f"{large.stat().st_size / small.stat().st_size:.3g}x")


def test_a_limit_in_times_the_baseline_needs_something_to_compare(make_image_file, tmp_path):
    with pytest.raises(UserError, match="only one model was named"):
        quick(make_image_file("net", 1), out=tmp_path / "out", fail_if=["p50 > 1.1x"])


def test_names_are_as_short_as_tells_them_apart():
    assert short_names(["runs/a/onnx", "runs/b/onnx"]) == ["a/onnx", "b/onnx"]
    assert short_names(["x/dense.onnx", "y/ticket.onnx"]) == ["dense.onnx", "ticket.onnx"]
    with pytest.raises(UserError, match="twice"):
        short_names(["a", "./a"])


def test_the_number_of_threads_of_the_caller_is_left_as_it_was(make_image_file, tmp_path):
    import torch

    before = torch.get_num_threads()
    quick(make_image_file("net", 1), out=tmp_path / "out", threads=[1])
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (None, None, "there is no"),
        ("x.onnx", b"\xff\xffdamaged", "damaged|cannot"),
        ("x.txt", b"", "cannot be measured"),
    ],
)
def test_what_cannot_be_measured_is_a_clear_error(tmp_path, name, content, words):
    file = tmp_path / (name or "nowhere.onnx")
    if name:
        file.write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        quick(file, out=tmp_path / "out")
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    "options", [{"batch": [1, 0]}, {"seq_length": [-1]}, {"threads": [0]}, {"seconds": 0.0}, {"seconds": float("nan")}]
)
def test_numbers_that_make_no_sense_are_refused(make_image_file, tmp_path, options):
    with pytest.raises(UserError, match="makes no sense"):
        quick(make_image_file("net", 1), out=tmp_path / "out", **options)


def test_an_out_that_cannot_be_made_is_refused_before_measuring(make_image_file, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made"):
        quick(make_image_file("net", 1), out=tmp_path / "file" / "out")


def test_the_command_prints_the_table_and_writes_both_files(make_image_file, tmp_path):
    from sparseticket.cli.bench import bench as command

    app = typer.Typer()
    app.command()(command)
    files = [str(make_image_file("dense", 2)), str(make_image_file("ticket", 2, zero=0.5))]
    out = tmp_path / "[mine]"
    result = CliRunner().invoke(app, [*files, "--out", str(out), "--seconds", "0.05", "--threads", "1"])
    assert result.exit_code == 0, result.output
    assert "50 % zeros" in result.output.replace("\n", " ") and "/[mine]: bench.json" in result.output
    assert len(json.loads((out / "bench.json").read_text())["records"]) >= 2
    assert (out / "bench.md").read_text().count("| dense.onnx |") == 1
    assert {one.name for one in out.iterdir()} == {"bench.json", "bench.csv", "bench.md", "bench.png"}


@pytest.fixture
def command(monkeypatch, capsys):
    from sparseticket.cli import main

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["sparseticket", "bench", *map(str, arguments), "--seconds", "0.05"])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, capsys.readouterr().err

    return run


def test_a_users_ci_fails_with_code_1_after_the_measurement_is_written(make_image_file, tmp_path, command):
    small, large = make_image_file("small", 1), make_image_file("large", 4, width=512)
    arguments = [small, large, "--threads", "1,all", "--batch", "1,2", "--out", tmp_path / "out"]
    code, error = command(*arguments, "--fail-if", "p99 > 100000x", "--fail-if", "size > 0.5MB")
    assert code == 1
    assert "large.onnx (onnxruntime-cpu), batch 2" in error
    assert "small.onnx (" not in error
    assert (tmp_path / "out" / "bench.json").is_file()
    assert command(*arguments, "--fail-if", "size > 1.9MB")[0] == 0


@pytest.mark.parametrize(
    ("option", "text", "words"),
    [
        ("--fail-if", "p50 is slow", "is no rule"),
        ("--fail-if", "size > 20ms", "size is in MB"),
        ("--batch", "1;8", "numbers with commas"),
        ("--batch", "--1", "numbers with commas"),
        ("--threads", "1,some", "as in 1,all"),
        ("--seq-length", "", "makes no sense"),
    ],
)
def test_what_cannot_be_read_is_code_2_before_anything_is_measured(
    make_image_file, tmp_path, command, option, text, words
):
    code, error = command(make_image_file("net", 1), option, text, "--out", tmp_path / "out")
    assert code == 2 and words in error
    assert not (tmp_path / "out").exists()


def test_without_a_gpu_kernels_change_nothing_and_it_is_said(bert, tmp_path, monkeypatch):
    import torch

    from sparseticket.ticket import Ticket

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    name = "encoder.layer.0.intermediate.dense.weight"
    mask = torch.ones(64, 32, dtype=torch.bool)
    mask[:, ::2] = False
    round_folder = tmp_path / "round-00"
    (round_folder / "model").mkdir(parents=True)
    for file in bert.iterdir():
        if file.is_file():
            (round_folder / "model" / file.name).write_bytes(file.read_bytes())
    Ticket({name: mask}, "tiny", {name: "0" * 64}, 0.5).save(round_folder / "ticket.ticket")
    (round_folder / "done").touch()
    result = quick(round_folder, out=tmp_path / "auto")
    assert any("no GPU: --kernels auto" in note for note in result["notes"])
    assert all(record["on_kernels"] == 0 for record in result["records"])
    assert not any("kernels" in note for note in quick(round_folder, out=tmp_path / "off", kernels="off")["notes"])


def test_kernels_are_auto_or_off(bert, tmp_path):
    with pytest.raises(UserError, match="auto or off"):
        quick(bert, out=tmp_path / "bench", kernels="always")
