import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseticket.kernels import dispatch
from sparseticket.kernels.dispatch import LEAST_GAIN, Case, Choice, Measured, Table, table_path
from sparseticket.kernels.packing import packing_for
from sparseticket.kernels.plan import Plan

ROOT = Path(__file__).parents[2]

CASE = Case("forward", 768, 768, "block:128x128", "bfloat16")
KERNEL = Choice("bsr_linear", (128, 128, 64, 8, 3))


def cell(m, low, density=0.25, case=CASE, best=KERNEL):
    return Measured(case, m, density, best, low + 0.1, low, low + 0.2)


def table(*cells):
    return Table("Some GPU", {"torch": "2.15.0"}, "2026-11-24", list(cells))


def test_what_pays_is_3_percent_with_95_percent_certainty():
    assert LEAST_GAIN == 1.03


def test_a_kernel_is_chosen_only_where_the_lower_bound_pays():
    assert table(cell(64, LEAST_GAIN)).choose(CASE, 64, 0.25) == KERNEL
    assert table(cell(64, LEAST_GAIN - 0.001)).choose(CASE, 64, 0.25) == Choice()


def test_a_higher_density_speaks_for_a_lower_one_and_never_the_other_way():
    measured = table(cell(64, 1.5, density=0.25))
    assert measured.choose(CASE, 64, 0.1) == KERNEL
    assert measured.choose(CASE, 64, 0.3) == Choice()


def test_the_nearest_higher_density_speaks():
    measured = table(cell(64, 0.9, density=0.5), cell(64, 1.5, density=0.25))
    assert measured.choose(CASE, 64, 0.25) == KERNEL and measured.choose(CASE, 64, 0.26) == Choice()


def test_between_measured_rows_both_neighbours_have_to_agree():
    measured = table(cell(64, 0.9), cell(256, 1.5), cell(1024, 1.6))
    assert [measured.choose(CASE, m, 0.25).kernel for m in (64, 100, 256, 600, 1024)] == [
        "dense", "dense", "bsr_linear", "bsr_linear", "bsr_linear",
    ]  # fmt: skip


def test_far_beyond_what_was_measured_is_dense():
    measured = table(cell(64, 1.5))
    assert [measured.choose(CASE, m, 0.25).kernel for m in (31, 32, 128, 129)] == [
        "dense", "bsr_linear", "bsr_linear", "dense",
    ]  # fmt: skip


def test_what_was_not_measured_is_dense():
    other = Case("forward", 768, 768, "block:128x128", "float16")
    assert table(cell(64, 1.5)).choose(other, 64, 0.25) == Choice()


MEASURED = st.tuples(
    st.sampled_from(["forward", "dgrad"]), st.sampled_from([1, 16, 50, 64, 1000]), st.sampled_from([0.8, 1.2]),
    st.sampled_from([0.1, 0.5]),
)  # fmt: skip


@given(st.lists(MEASURED), st.integers(1, 3000), st.sampled_from([0.05, 0.3, 0.6]))
def test_a_plan_says_at_any_rows_what_the_table_says(cells, m, density):
    measured, cases = table(), [Case(which, 768, 768, "block:64x64", "float16") for which in ("forward", "dgrad")]
    for which, rows, low, of_cell in cells:
        measured.add(cell(rows, low, of_cell, cases[which == "dgrad"]))
    expected = tuple(measured.choose(case, m, density) for case in cases)
    assert Plan.from_table(measured, cases, density).at(m) == expected


def test_a_table_comes_back_from_its_file(tmp_path):
    measured, path = table(cell(64, 1.5), cell(256, 0.9)), tmp_path / "table.json"
    path.write_text(measured.to_json())
    assert Table.load(path) == measured


@pytest.mark.parametrize("pattern", ["block:128x128", "unstructured", "2:4"])
def test_a_table_comes_back_with_whatever_tiles_a_pattern_can_be_packed_with(pattern, tmp_path):
    packing, path = packing_for(pattern, (4096, 1024), torch.bfloat16), tmp_path / "table.json"
    case = Case("infer", 4096, 1024, pattern, "bfloat16")
    measured = table(*(cell(m, 1.5, case=case, best=Choice(packing.kernel, t)) for m, t in enumerate(packing.tiles, 1)))
    path.write_text(measured.to_json())
    assert Table.load(path) == measured


FIRST_DECIDES = """
import sys
import torch.distributed as dist
from sparseticket.kernels.dispatch import decided_by_one

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
print(decided_by_one(lambda: f"as measured by {rank}"))
try:
    decided_by_one(lambda: 1 // rank)
except RuntimeError as error:
    print(error)
"""


def test_the_first_of_two_processes_decides_for_both_and_fails_in_both(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FIRST_DECIDES, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        for rank in (0, 1)
    ]  # fmt: skip
    for process in processes:
        decided, failed = process.communicate(timeout=120)[0].splitlines()
        assert decided == "as measured by 0"
        assert "the first process could not choose kernels: ZeroDivisionError" in failed


@pytest.mark.parametrize(
    "spoil",
    [
        lambda record: record.pop("cells"),
        lambda record: record.update(format=3),
        lambda record: record["cells"][0].update(m=0),
        lambda record: record["cells"][0].update(low=9.0),
        lambda record: record["cells"][0]["case"].update(which="sideways"),
        lambda record: record["cells"][0]["best"].update(tiles=["a"]),
        lambda record: record["cells"][0]["best"].update(tiles=[-1]),
        lambda record: record["cells"][0]["case"].update(extra=1),
    ],
)
def test_a_spoiled_table_is_refused(spoil, tmp_path):
    record = json.loads(table(cell(64, 1.5)).to_json())
    spoil(record)
    (tmp_path / "table.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="tune-kernels"):
        Table.load(tmp_path / "table.json")


def test_a_table_of_the_first_format_speaks_for_what_is_launched_from_python(tmp_path):
    record = json.loads(table(cell(64, 1.5)).to_json()) | {"format": 1}
    del record["cells"][0]["case"]["launched"]
    (tmp_path / "table.json").write_text(json.dumps(record))
    old = Table.load(tmp_path / "table.json")
    assert old.choose(CASE, 64, 0.25) == KERNEL
    assert old.choose(replace(CASE, launched="graph"), 64, 0.25) == Choice()


def test_each_gpu_has_a_file_of_its_own(tmp_path):
    assert table_path("NVIDIA H100 80GB HBM3", tmp_path).name == "nvidia-h100-80gb-hbm3.json"


def test_a_user_without_a_home_or_with_one_that_cannot_be_looked_into_gets_the_packages_table(monkeypatch, tmp_path):
    gpu = "NVIDIA H200"
    monkeypatch.setenv("SPARSETICKET_CACHE", str(tmp_path / ("long" * 100)))
    assert dispatch.find_table(gpu) == dispatch.table_path(gpu, dispatch.TABLES)
    monkeypatch.setattr(dispatch, "user_tables", without_a_home)
    assert dispatch.find_table(gpu) == dispatch.table_path(gpu, dispatch.TABLES)
    dispatch.save_user_table(Table(gpu))


def without_a_home():
    raise RuntimeError("Could not determine home directory.")
