import json
import multiprocessing
import operator
import os
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import triton

from sparseticket.bench.gpu import __main__ as command
from sparseticket.bench.gpu import dispatcher, entries, finetune, optimizers, parity, prepare, show, tuning
from sparseticket.bench.gpu import lab as labs
from sparseticket.bench.gpu.arms import Arm, least, median_of, ratio, ratio_or_reason, time_arms
from sparseticket.bench.gpu.figures import Figures, describe
from sparseticket.bench.gpu.lab import DeviceLost, Lab
from sparseticket.bench.gpu.marks import MARKS, Mark, judge
from sparseticket.bench.gpu.masks import bert_shapes, ranked_masks, uniform_mask
from sparseticket.errors import UserError
from sparseticket.kernels.clock import Speedup
from sparseticket.kernels.dispatch import Case, Choice, Measured, Table

ROOT = Path(__file__).parents[2]


class FakeClock:
    """A call takes as many milliseconds as it returns."""

    def prepared(self, call):
        return call

    def time(self, call):
        return call()


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.setattr(Lab, "clock", lambda self, mode: FakeClock())
    return Lab(tmp_path, rehearse=True)


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """One whole run as a user makes it, in a process of its own."""
    folder = tmp_path_factory.mktemp("rehearsal")
    data = folder / "SST-2"
    data.mkdir()
    sentences = "".join(f"{'word ' * (i % 7 + 1)}\t{i % 2}\n" for i in range(40))
    (data / "dev.tsv").write_text("sentence\tlabel\n" + sentences)
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = ["--rehearse", "--out", str(folder / "out"), "--data", str(data)]
    done = subprocess.run(
        [sys.executable, "-m", "sparseticket.bench.gpu", *arguments], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr
    return folder / "out", done.stdout


def test_a_rehearsal_runs_every_entry_and_none_fails(rehearsal):
    out, _ = rehearsal
    record = json.loads((out / "rehearsal.json").read_text())
    lab = Lab(out, rehearse=True)
    assert set(record["figures"]) == set(entries.everything(lab))
    failed = {name: figure["error"] for name, figure in record["figures"].items() if "error" in figure}
    assert set(failed) <= {"minilm", "dispatcher"}, failed  # no folder was given; a CPU may pick no kernel
    checked = [record["figures"][f"parity of {name}"] for name in parity.CHECKS]
    assert all(one["agrees"] for figure in checked for one in figure["checks"].values())


def test_every_arm_has_times_memory_and_ratios_in_every_mode_and_the_masks_their_density(rehearsal):
    figure = json.loads((rehearsal[0] / "figures" / "ffn-in-75.json").read_text())
    assert figure["about"]["versions"]["torch"] and figure["about"]["date"] and figure["about"]["rehearsal"]
    assert len(figure["realised"]["ranked"]) == 2 and figure["realised"]["uniform"] == [0.25, 0.25]
    core = json.loads((rehearsal[0] / "figures" / "ffn-in-core.json").read_text())
    for kind in ("uniform", "ranked"):
        assert "GPU" in core[kind]["core BSR, tuned"]["error"]
        arms = figure[kind]
        assert {"dense", "dense again", "zeros in place", "nn.utils.prune", "2:4 of cuSPARSELt", "bsr_linear"} < set(
            arms
        )
        for times in arms.values():
            assert set(times) == {"peak_mb", "cold graph", "warm graph", "cold eager", "warm eager"}
            assert times["cold graph"]["ms"] > 0 and times["cold graph"]["ratio"] > 0
    assert figure["roofline"]["ceiling"] > 1 and isinstance(figure["ratios"]["forward"], float)


def test_a_rehearsal_reaches_no_mark_and_says_so(rehearsal):
    out, printed = rehearsal
    record = json.loads((out / "rehearsal.json").read_text())
    assert [one["mark"] for one in record["marks"]] == [mark.name for mark in MARKS]
    assert {one["result"] for one in record["marks"]} <= {"rehearsed", "could not run"}
    assert all(one["measured"] is None and one["reason"] for one in record["marks"])
    assert not (out / "results.json").exists() and "no time below means anything" in printed
    assert len(printed) <= 12_200


def test_every_mark_of_a_figure_that_ran_finds_its_ratio(rehearsal):
    record = json.loads((rehearsal[0] / "rehearsal.json").read_text())
    reasons = {one["mark"]: one["reason"] for one in record["marks"] if one["result"] == "could not run"}
    assert not [reason for reason in reasons.values() if "not there" in reason or "not measured yet" in reason]


def test_the_optimizer_and_the_linears_of_bert_base_are_in_the_table(rehearsal):
    table = Table.load(rehearsal[0] / "table.json")
    optimizer = [cell for cell in table.cells if cell.case.which == "optimizer"]
    assert sorted(cell.density for cell in optimizer) == pytest.approx([i / 10 for i in range(1, 10)])
    assert {cell.case for cell in optimizer} == {Case("optimizer", 1, 1, "unstructured", "float32", "none")}
    assert {cell.best.kernel for cell in optimizer} == {"masked_adamw"}
    lab = Lab(rehearsal[0], rehearse=True)
    assert not list(tuning.cells(lab)) and {"infer", "forward", "dgrad", "wgrad"} <= {c.case.which for c in table.cells}


def only(monkeypatch, **todo):
    """A run of just these entries, and no tuning."""
    monkeypatch.setattr(entries, "first", lambda lab: todo)
    for name in ("networks", "last", "rest"):
        monkeypatch.setattr(entries, name, lambda lab: {})
    for name in ("to_compile_first", "to_compile_then"):
        monkeypatch.setattr(entries, name, lambda lab, figures: {})
    monkeypatch.setattr(tuning, "of_bert_base", lambda lab: [])
    monkeypatch.setattr(tuning, "tune", lambda lab, processes, reserve: 0)


def test_a_run_that_was_killed_between_entries_goes_on_behind_what_it_had(lab, monkeypatch):
    ran = []

    def entry(name, stop=False):
        def run(*_):
            ran.append(name)
            if stop and ran.count(name) == 1:
                raise KeyboardInterrupt
            return {"ratios": {}}

        return run

    only(monkeypatch, a=entry("a"), b=entry("b", stop=True), c=entry("c"))
    with pytest.raises(KeyboardInterrupt):
        command.run(lab)
    assert [file.name for file in (lab.out / "figures").iterdir()] == ["a.json"]
    command.run(lab)
    assert ran == ["a", "b", "b", "c"]
    assert json.loads((lab.out / "rehearsal.json").read_text())["figures"]["b"]["ratios"] == {}


def test_an_entry_that_fails_is_reported_stops_no_other_and_is_tried_again(lab, monkeypatch):
    tries = []

    def fail(*_):
        tries.append(1)
        raise RuntimeError("out of memory\nlong story")

    only(monkeypatch, bad=fail, good=lambda *_: {"ratios": {"x": 2.0}})
    command.run(lab)
    figures = json.loads((lab.out / "rehearsal.json").read_text())["figures"]
    assert figures["bad"]["error"] == "RuntimeError: out of memory" and figures["good"]["ratios"] == {"x": 2.0}
    command.run(lab)
    assert len(tries) == 2


def test_no_entry_begins_when_the_time_is_used(lab, monkeypatch):
    only(monkeypatch, a=lambda *_: {"ratios": {}})
    lab.seconds = 0
    command.run(lab)
    assert not (lab.out / "figures").exists()


@pytest.fixture
def measuring(tmp_path, monkeypatch):
    """What ``measure`` takes, with a way to a new process that only says that it was gone."""
    monkeypatch.setattr(command, "summarize", lambda lab, figures: "")
    lab, figures = Lab(tmp_path, rehearse=True), Figures(tmp_path, describe("rehearsal", rehearsal=True))
    gone = threading.Event()
    lab.restart = gone.set
    return lab, figures, gone


def test_an_entry_that_takes_longer_than_there_is_time_leaves_it_to_others(measuring, monkeypatch):
    _, figures, _ = measuring
    monkeypatch.setattr(Lab, "device", "cpu")
    ran = []
    todo = {name: lambda *_, of=name: ran.append(of) or {} for name in ("finetune-70", "qkv-75")}
    command.measure(Lab(Path("nowhere"), seconds=60), figures, todo)
    assert ran == ["qkv-75"]


def test_an_entry_that_never_ends_is_left_out_and_the_rest_goes_on_in_a_new_process(measuring, monkeypatch):
    """A kernel that hangs keeps the main thread waiting, without the interpreter's lock."""
    lab, figures, gone = measuring
    monkeypatch.setattr(command, "HANGS", 0.05)
    seen = []

    def hangs(lab, device):
        gone.wait(20)
        seen.append(figures.get("hangs"))
        return {}

    command.measure(lab, figures, {"hangs": hangs})
    assert gone.is_set() and seen[0]["error"] == "it did not end" and seen[0]["lost"]


def test_an_entry_that_ends_in_time_goes_on_here(measuring, monkeypatch):
    lab, figures, gone = measuring
    monkeypatch.setattr(command, "HANGS", 0.3)
    command.measure(lab, figures, {"ends": lambda *_: {"ratios": {}}})
    assert not gone.wait(0.6) and figures.get("ends")["ratios"] == {}


def test_a_cell_that_never_ends_is_dense_from_then_on(measuring, monkeypatch):
    lab, _, gone = measuring
    seen = []
    monkeypatch.setattr(labs, "CELL", 0.05)
    monkeypatch.setattr(
        labs, "measure", lambda *_, **__: (gone.wait(20) and seen.append(Table.load(lab.table_file))) or FOUND
    )
    lab.cell(CASE, 16, 0.5)
    assert [cell.best for cell in seen[0].cells] == [Choice()]


def test_a_cell_that_never_ends_inside_an_entry_is_what_is_left_out(measuring, monkeypatch):
    lab, figures, gone = measuring
    seen = []
    monkeypatch.setattr(command, "HANGS", 0.3)
    monkeypatch.setattr(labs, "CELL", 0.6)

    def hangs(*_, **__):
        gone.wait(20)
        seen.extend((Table.load(lab.table_file).cells[0].best, figures.get("ffn")["error"]))
        return FOUND

    monkeypatch.setattr(labs, "measure", hangs)
    command.measure(lab, figures, {"ffn": lambda lab, device: lab.cell(CASE, 16, 0.5) and {}})
    assert seen == [Choice(), "not measured yet"]


def test_a_new_process_begins_even_where_nothing_can_be_written(measuring):
    lab, _, gone = measuring

    def full() -> None:
        raise OSError(28, "No space left on device")

    with lab.gives_up_after(0.05, full):
        assert gone.wait(20)


def test_a_clock_is_made_once_for_a_mode(tmp_path, monkeypatch):
    made = []
    monkeypatch.setitem(labs.CLOCKS, "cold graph", lambda device: made.append(device) or FakeClock())
    lab = Lab(tmp_path, rehearse=True)
    assert lab.clock("cold graph") is lab.clock("cold graph") and made == ["cpu"]


def test_ratios_are_of_the_baseline_in_the_same_round(lab):
    arms = {"dense": lambda: Arm(lambda: 6.0), "ours": lambda: Arm(lambda: 2.0), "slow": lambda: Arm(lambda: 12.0)}
    times = time_arms(lab, arms, ("cold graph",))
    assert times["ours"]["cold graph"] == {"ms": 2.0, "ratio": 3.0}
    assert ratio(times, "ours") == 3.0 and ratio(times, "ours", "slow") == 6.0


def test_an_arm_that_fails_is_named_and_the_others_are_timed(lab):
    def broken():
        raise ValueError("no such kernel")

    times = time_arms(lab, {"dense": lambda: Arm(lambda: 1.0), "ours": broken}, ("cold graph",))
    assert times["ours"] == {"error": "ValueError: no such kernel"} and times["dense"]["cold graph"]["ratio"] == 1.0
    assert ratio_or_reason(times, "ours") == "ours: ValueError: no such kernel"
    assert least([2.0, "a reason", 1.0]) == "a reason" and least([2.0, 1.0]) == 1.0


def test_where_the_baseline_fails_in_one_mode_the_others_stand_and_the_reason_is_said(tmp_path, monkeypatch):
    class Picky(FakeClock):
        def prepared(self, call):
            if call() == 6.0:
                raise RuntimeError("cannot be captured")
            return call

    monkeypatch.setattr(Lab, "clock", lambda self, mode: Picky() if "graph" in mode else FakeClock())
    arms = {"dense": lambda: Arm(lambda: 6.0), "ours": lambda: Arm(lambda: 2.0)}
    runs = [time_arms(Lab(tmp_path, rehearse=True), arms, ("cold eager", "cold graph")) for _ in range(2)]
    for times in (runs[0], median_of(runs)):
        assert ratio(times, "ours", mode="cold eager") == 3.0
        assert ratio_or_reason(times, "ours") == "ours: dense: RuntimeError: cannot be captured"
        assert "cannot be captured" in show._times(times["dense"] | {"cold eager": None}, None)


def test_the_median_is_over_masks(lab):
    runs = [
        time_arms(lab, {"dense": lambda: Arm(lambda: 6.0), "ours": lambda ms=ms: Arm(lambda: ms)}, ("cold graph",))
        for ms in (1.0, 2.0, 6.0)
    ]
    assert median_of(runs)["ours"]["cold graph"] == {"ms": 2.0, "ratio": 3.0, "from": 1.0, "to": 6.0}


MARK = Mark("fast", 1.5, (("a", "x"), ("b", "x")))


@pytest.mark.parametrize(
    "of_b,result,measured",
    [
        ({"ratios": {"x": 1.5}}, "pass", 1.5),
        ({"ratios": {"x": 1.49}}, "fail", 1.49),
        ({"ratios": {"x": "ours: no such kernel"}}, "could not run", None),
        ({"error": "out of memory"}, "could not run", None),
        ({"ratios": {}}, "could not run", None),
    ],
)
def test_the_least_of_a_marks_figures_has_to_reach_it(of_b, result, measured):
    judged = judge(MARK, {"a": {"ratios": {"x": 9.0}}, "b": of_b})
    assert (judged["result"], judged["measured"]) == (result, measured)
    assert (judged["reason"] is None) == (measured is not None)


def test_masks_have_the_density_asked_for_in_one_layer_or_over_all_of_them():
    assert uniform_mask((64, 96), (16, 16), 0.25, 0).float().mean() == 0.25
    shapes = bert_shapes(32, 2)
    masks = ranked_masks(shapes, (16, 16), 0.25, 0, "cpu", range(len(shapes)))
    assert [tuple(mask.shape) for mask in masks] == shapes
    alive = sum(int(mask.sum()) for mask in masks)
    assert alive == 0.25 * sum(n * k for n, k in shapes)
    assert len({float(mask.float().mean()) for mask in masks}) > 1  # layers differ, as under IMP


def test_the_upper_bound_is_corrected_for_the_number_of_cells():
    found = Speedup(1.0, 1 / 1.1, 1.1)
    assert dispatcher.upper_bound(found, 1) == pytest.approx(1.1 ** (1.6449 / 1.96), rel=1e-4)
    assert dispatcher.upper_bound(found, 20) > 1.1 > dispatcher.upper_bound(found, 1) > 1.0


def test_the_second_process_measures_picks_at_rows_between_those_measured(tmp_path):
    case, tiles = Case("forward", 48, 64, "block:16x16", "float32"), (16, 16, 16, 4, 2)
    cells = [Measured(case, m, 0.5, Choice("bsr_linear", tiles), 1.3, 1.2, 1.4) for m in (16, 64)]
    dense = Measured(case, 1024, 0.5, Choice("bsr_linear", tiles), 0.9, 0.8, 1.0)
    lab = Lab(tmp_path, rehearse=True)
    for cell in (*cells, dense):
        lab.keep(cell)
    assert dispatcher.picks(lab.table) == [(case, 32, 0.5, Choice("bsr_linear", tiles))]
    figure = dispatcher.check(lab)
    assert [cell["m"] for cell in figure["cells"]] == [32]
    assert figure["ratios"]["worst upper bound"] == figure["cells"][0]["upper"] >= figure["cells"][0]["ratio"]


def test_what_is_printed_is_cut_before_the_marks(tmp_path):
    times = {f"arm {i}": {"peak_mb": 1.0, "cold graph": {"ms": 1.0, "ratio": 1.0}} for i in range(400)}
    marks = [judge(mark, {}) for mark in MARKS]
    text = show.tables(describe("Some GPU", rehearsal=False), marks, {"a": {"arms": times}}, Table("Some GPU"))
    assert len(text) <= 12_000 and "more in the file" in text and text.endswith("not measured yet")


def test_a_folder_of_another_gpu_is_refused(tmp_path):
    Figures(tmp_path, describe("Some GPU", rehearsal=False))
    with pytest.raises(UserError, match="another gpu"):
        Figures(tmp_path, describe("Other GPU", rehearsal=False))


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--out", "x", "--rehearse", "--minutes", "0"], "--minutes 0.0 makes no sense"),
        (["--out", "bench/results/x", "--rehearse"], "a rehearsal measures nothing"),
        (["--out", "x", "--rehearse", "--data", "nowhere"], "is no folder"),
    ],
)
def test_bad_arguments_are_one_line_and_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_without_a_gpu_it_says_what_can_be_done(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        command.main(["--out", "x"])
    assert ended.value.code == 2 and "--rehearse" in capsys.readouterr().err


@pytest.mark.parametrize(
    "graph_ms,ours_fails,counts",
    [(5.0, False, "reduce-overhead"), (9.0, False, "default"), (5.0, True, "default"), (None, False, "default")],
)
def test_a_training_step_is_judged_where_dense_takes_less_time(graph_ms, ours_fails, counts, monkeypatch, tmp_path):
    def arms(ms, ratio):
        ours = {"queued": {"ms": ms, "ratio": ratio}}
        return {
            "dense": {"queued": {"ms": ms, "ratio": 1.0}},
            "sparseticket": {"error": "no graphs"} if ours_fails and ms == graph_ms else ours,
        }

    def timed(lab, density, block, names, batches, *, mode):
        if mode == "reduce-overhead" and graph_ms is None:
            raise RuntimeError("the baseline does not run: no graphs")
        return arms(graph_ms, 1.2) if mode == "reduce-overhead" else arms(8.0, 1.1)

    monkeypatch.setattr(finetune, "_time", timed)
    figure = finetune.blocks(Lab(tmp_path, rehearse=True), {})
    assert figure["mode"] == counts and figure["ratios"]["against dense"] == {"default": 1.1}.get(counts, 1.2)
    assert figure["failed"] == (
        {} if graph_ms else {"reduce-overhead": "RuntimeError: the baseline does not run: no graphs"}
    )


def test_prune_that_has_no_graphs_is_held_against_ours_where_both_run(monkeypatch, tmp_path):
    def timed(lab, density, block, names, batches, *, mode):
        ms = {"default": 8.0, "reduce-overhead": 5.0}[mode]
        times = {name: {"queued": {"ms": ms, "ratio": 1.0}, "peak_mb": 2.0} for name in names}
        times["sparseticket"]["queued"]["ratio"] = ms / 4
        if mode == "reduce-overhead":
            times["nn.utils.prune"] = {"error": "no graphs"}
        return times

    monkeypatch.setattr(finetune, "_time", timed)
    figure = finetune.unstructured(Lab(tmp_path, rehearse=True), {})
    ratios = {"against prune": 2.0, "memory against prune": 1.0, "against dense": 1.25}
    assert figure["ratios"] == ratios and figure["mode"] == "reduce-overhead"


def test_what_is_there_is_not_compiled_for_again(tmp_path):
    lab = Lab(tmp_path, rehearse=True)
    figures = Figures(tmp_path, describe("rehearsal", rehearsal=True))
    everything = entries.to_compile_first(lab, figures)
    assert "train lengths" not in everything, "there is no SST-2 to have lengths of"
    for name in entries.everything(lab):
        if name not in ("parity of bsr_conv2d", "finetune-blocks-75"):
            figures.write(name, {"ratios": {}})
    for case, m, density in tuning.of_bert_base(lab)[1:]:
        lab.keep(Measured(case, m, density, Choice(), 1.0, 1.0, 1.0))
    left = entries.to_compile_first(lab, figures)
    of_cell = [name for name in left if tuning.of_bert_base(lab)[0][0].which in name]
    others = {
        *(f"train dense, {mode}" for mode in finetune.LAUNCHES),
        *(f"parity of bsr_conv2d, {dtype}" for dtype in parity.TOLERANCE),
    }
    assert len(of_cell) == prepare.PARTS and left.keys() == {*of_cell, *others}
    assert entries.to_compile_then(lab, figures).keys() == {f"train ours, {mode}" for mode in finetune.LAUNCHES}


def _begin(task, settings):
    """In the place of the workers' own, which ask a GPU first."""
    return task() is not False


def _broken_at_first(file):
    """False at the first of two calls."""
    with file.open("a") as calls:
        calls.write("called\n")
    return file.read_text().count("called") > 1


@pytest.fixture
def workers(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "_begin", _begin)
    monkeypatch.setattr(prepare, "MOST_PROCESSES", 2)
    with prepare.pool(Lab(tmp_path)) as processes:
        yield processes
    assert none_at_work()


def none_at_work():
    """A worker that was killed counts until the executor's thread has taken note of it."""
    until = time.monotonic() + 20
    while multiprocessing.active_children() and time.monotonic() < until:
        time.sleep(0.05)
    return not multiprocessing.active_children()


def test_when_compiling_ahead_takes_too_long_no_worker_goes_on_beside_what_is_measured(
    workers, monkeypatch, tmp_path, caplog
):
    workers.run({"quick": partial((tmp_path / "quick").touch)})  # workers take a while to begin
    monkeypatch.setattr(prepare, "STALLED", 1.0)
    workers.run({"hangs": partial(time.sleep, 600)})
    assert "1 of 1 tasks took too long" in caplog.text
    assert (tmp_path / "quick").exists() and none_at_work()
    monkeypatch.setattr(prepare, "STALLED", 100.0)
    workers.run({"next": partial((tmp_path / "next").touch)})
    assert (tmp_path / "next").exists()


def test_what_a_worker_with_a_broken_context_did_not_begin_another_does(workers, tmp_path, caplog):
    workers.run({"a": partial(_broken_at_first, tmp_path / "a"), "b": partial((tmp_path / "b").touch)})
    assert (tmp_path / "a").read_text().count("called") == 2 and (tmp_path / "b").exists() and not caplog.text


def test_workers_that_all_lack_a_context_are_given_up(workers, caplog):
    workers.run({"a": partial(operator.eq, 1, 2)})
    assert "no process has a context" in caplog.text


def test_kernels_compiled_ahead_lie_where_triton_looks_for_them(tmp_path, monkeypatch):
    """Inductor names a folder of its own in the environment when it first compiles, unless there is one."""
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    before = triton.knobs.cache.dir
    with prepare.pool(Lab(tmp_path, rehearse=True)):
        assert os.environ["TRITON_CACHE_DIR"] == before
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8))
        assert triton.knobs.cache.dir == before
    monkeypatch.delenv("TRITON_CACHE_DIR")


def test_an_operator_that_does_not_run_disagrees_and_no_other_does(tmp_path, monkeypatch):
    def breaks(lab, dtype):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setitem(parity.CHECKS, "bsr_conv2d", breaks)
    found = parity.check(Lab(tmp_path, rehearse=True), "bsr_conv2d")
    assert found["ratios"] == {"agree": 0.0} and "illegal" in found["checks"]["float16"]["error"]
    figures = {f"parity of {name}": {"ratios": {"agree": 1.0}} for name in parity.CHECKS}
    agree = next(mark for mark in MARKS if "float64" in mark.name)
    assert judge(agree, figures)["result"] == "pass"
    assert judge(agree, figures | {"parity of bsr_conv2d": found})["result"] == "fail"


def test_an_operator_without_fp32_agrees_in_the_others_and_says_so(tmp_path, monkeypatch):
    def sixteen_bits_only(lab, dtype):
        if dtype == torch.float32:
            raise ValueError("2:4 has no float32 here")
        return [(torch.ones(2), torch.ones(2, dtype=torch.float64))]

    monkeypatch.setitem(parity.CHECKS, "semi_structured_linear", sixteen_bits_only)
    found = parity.check(Lab(tmp_path, rehearse=True), "semi_structured_linear")
    assert [one["agrees"] for one in found["checks"].values()] == [True, True, None] and found["ratios"] == {
        "agree": 1.0
    }
    assert show._figure("parity of 2:4", found) == ["parity of 2:4: agrees (float32: does not run)"]


def test_an_entry_that_broke_the_gpu_is_left_out_and_the_rest_goes_on_in_a_new_process(monkeypatch, tmp_path):
    lab, executed = Lab(tmp_path, rehearse=True, seconds=120), []
    monkeypatch.setattr(Lab, "is_lost", lambda lab: True)
    monkeypatch.setattr(command, "summarize", lambda lab, figures: "")
    monkeypatch.setattr(os, "execv", lambda program, arguments: executed.append(arguments))

    def broken(lab, device):
        raise RuntimeError("an illegal memory access was encountered")

    figures = Figures(tmp_path, describe("rehearsal", rehearsal=True))
    with pytest.raises(DeviceLost, match="broken"):
        command.measure(lab, figures, {"broken": broken})
    command.go_on_elsewhere(["a.module", "--out", "there", "--minutes", "8"], lab)
    assert figures.has("broken") and "illegal" in figures.get("broken")["error"]
    ((*_, module, out, there, minutes, eight, again, left),) = executed
    assert (module, out, there, minutes, eight, again) == ("a.module", "--out", "there", "--minutes", "8", "--minutes")
    assert 1 < float(command.parse(["--out", "there", "--minutes", "8", again, left]).minutes) <= 2


CASE = Case("forward", 48, 64, "block:16x16", "float32")
FOUND = Measured(CASE, 16, 0.5, Choice("bsr_linear"), 1.5, 1.4, 1.6)


@pytest.mark.parametrize("failed", [True, False])  # False: what broke it was taken for a candidate that does not run
def test_a_cell_that_broke_the_gpu_is_dense_from_then_on_and_what_needed_it_is_tried_again(
    failed, monkeypatch, tmp_path
):
    lost = []

    def breaks(*_, **__):
        lost.append(True)
        if failed:
            raise RuntimeError("an illegal memory access was encountered")
        return FOUND  # as it was found before another candidate broke the context

    monkeypatch.setattr(labs, "measure", breaks)
    monkeypatch.setattr(Lab, "is_lost", lambda lab: bool(lost))
    monkeypatch.setattr(command, "summarize", lambda lab, figures: "")
    lab, figures = Lab(tmp_path, rehearse=True), Figures(tmp_path, describe("rehearsal", rehearsal=True))
    with pytest.raises(DeviceLost, match="of 16 rows"):
        lab.try_cell(CASE, 16, 0.5)
    assert [cell.best for cell in Table.load(lab.table_file).cells] == [Choice()]
    lost.clear()  # in a new process
    command.measure(
        Lab(tmp_path, rehearse=True), figures, {"ffn": lambda lab, device: {"tiles": lab.tiles(CASE, 16, 0.5)}}
    )
    assert figures.get("ffn")["tiles"] == []


def test_a_cell_that_only_fails_is_said_and_left_out(monkeypatch, tmp_path, caplog):
    def fails(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(labs, "measure", fails)
    lab = Lab(tmp_path, rehearse=True)
    lab.try_cell(CASE, 16, 0.5)
    assert "out of memory" in caplog.text and not lab.table.cells


def test_an_optimizers_cell_that_broke_the_gpu_is_dense_too(monkeypatch, tmp_path):
    monkeypatch.setattr(optimizers, "measure_cell", lambda lab, density: FOUND)
    monkeypatch.setattr(Lab, "is_lost", lambda lab: True)
    lab = Lab(tmp_path, rehearse=True)
    with pytest.raises(DeviceLost, match="optimizer"):
        optimizers.cells(lab)[0]()
    (cell,) = lab.table.cells
    assert (cell.case, cell.density, cell.best) == (optimizers.OPTIMIZER, 0.1, Choice())
    assert len(optimizers.cells(lab)) == 8


def test_a_context_is_lost_where_waiting_for_it_fails(monkeypatch, tmp_path):
    lab = Lab(tmp_path)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert not lab.is_lost() and not Lab(tmp_path, rehearse=True).is_lost()

    def illegal():
        raise torch.AcceleratorError("an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", illegal)
    assert lab.is_lost()


def test_an_entry_whose_cell_broke_the_gpu_leaves_no_figure(monkeypatch, tmp_path):
    def breaks(lab, device):
        raise DeviceLost("a cell")

    figures = Figures(tmp_path, describe("rehearsal", rehearsal=True))
    with pytest.raises(DeviceLost, match="a cell"):
        command.measure(Lab(tmp_path, rehearse=True), figures, {"ffn": breaks})
    assert not figures.has("ffn")
