"""The comparison of the sparse operator with dense on networks so small that only its bookkeeping is tested."""

import json
import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from rich.console import Console

from sparseticket.bench.sparse_cpu import __main__ as command
from sparseticket.bench.sparse_cpu import cells, networks, peer, table
from sparseticket.bench.sparse_cpu.cells import Cell
from sparseticket.errors import RunFailure, UserError
from sparseticket.export.break_even import BLOCKS, block_density

TINY = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(networks, "LAYERS", ((16, 32), (32, 16)))
    monkeypatch.setattr("sparseticket.bench.sparse_cpu.measure.LOADS", 1)


@pytest.mark.parametrize("pattern", ["1x1", "4x1", "4x4"])
def test_the_smallest_blocks_are_zero_and_exactly_as_many_as_asked(tmp_path, pattern):
    networks.write_layer(tmp_path / "layer.onnx", 64, 32)
    model = onnx.load(tmp_path / "layer.onnx")
    before = numpy_helper.to_array(model.graph.initializer[0])
    networks.prune(model, pattern, 0.75)
    after = numpy_helper.to_array(model.graph.initializer[0])
    alive = after != 0
    assert block_density(alive, *BLOCKS[pattern]) == 0.25 and alive.mean() == pytest.approx(0.25)
    np.testing.assert_array_equal(after[alive], before[alive])
    assert np.abs(before[alive]).mean() > np.abs(before[~alive]).mean()


def test_every_part_is_measured_against_its_first_candidate_and_kept(tmp_path, small):
    asked = [
        Cell("layers", "4x1", 0.7),
        Cell("lengths", "4x1", 0.7, rows=3),
        Cell("load", "4x1", 0.7),
        Cell("bert", "4x1", 0.7, rows=8),
        Cell("int8", "4x1", 0.7, rows=8),
    ]
    results = command.run(asked, tmp_path / "out.json", seconds=0.01, bert_sizes=TINY)
    measured = {cell.part: results["cells"][cell.key]["measured"] for cell in asked}
    assert list(measured["layers"]) == ["16->32", "32->16", table.MEAN]
    assert list(measured["bert"]) == ["dense", "dense int8", "sparse"]
    assert list(measured["int8"]) == ["dense int8", "dense", "sparse int8"]
    assert measured["bert"]["dense"]["speedup"] == measured["int8"]["dense int8"]["speedup"] == 1
    assert measured["bert"]["sparse"]["bytes"] < measured["bert"]["dense"]["bytes"]
    assert list(measured["load"]) == ["dense", "sparse", "sparse, no library"]
    assert json.loads((tmp_path / "out.json").read_text()) == results
    console = Console(record=True, width=200)
    table.show(results["cells"], console)
    text = console.export_text()
    assert text.count("(held)") + text.count("(missed)") == 5 and "3x" in text


def test_what_was_measured_is_not_measured_again_and_another_machine_is_refused(tmp_path, small, monkeypatch):
    out, cell = tmp_path / "out.json", Cell("lengths", "4x1", 0.7, rows=1)
    first = command.run([cell], out, seconds=0.01)
    monkeypatch.setattr(command, "measure", lambda *_: pytest.fail("it was measured again"))
    assert command.run([cell], out, seconds=0.01) == first
    monkeypatch.setattr(command, "describe", lambda _: {"cpu": "another"})
    with pytest.raises(UserError, match="another machine"):
        command.run([cell], out, seconds=0.01)


def test_the_whole_comparison_has_a_cell_for_every_mark():
    found = list(cells.cells(cells.PARTS, cells.SPARSITIES, cells.THREADS))
    assert len({cell.key for cell in found}) == len(found)
    marked = {(cell.part, cell.pattern, cell.threads) for cell in found if cell.mark}
    assert set(cells.MARKS) <= marked
    assert Cell("bert", "4x1", 0.9, 2).mark == 2.9
    assert {cell.rows for cell in found if cell.part == "lengths"} == set(cells.LENGTHS)


FAKE = """
class Engine:
    def __init__(self, model, **_):
        print("a banner")

    def run(self, arrays):
        assert len(arrays) == 2
"""


def test_deepsparse_takes_turns_in_a_process_of_its_own_and_its_failure_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    feeds = {"a": np.zeros((1, 4), np.int64), "b": np.zeros((1, 4), np.int64)}
    (tmp_path / "deepsparse.py").write_text(FAKE)
    with peer.DeepSparse(sys.executable, tmp_path / "x.onnx", feeds, 1) as found:
        for _ in range(3):
            found.call()
    (tmp_path / "deepsparse.py").write_text("raise ImportError('no AVX2')")
    with pytest.raises(RunFailure, match="no AVX2"), peer.DeepSparse(sys.executable, tmp_path / "x.onnx", feeds, 1):
        pass
