import json
import sys

import pytest

from sparseticket.bench import launch_cost
from sparseticket.bench.launch_cost import DIRECT, LIBRARY


def test_what_the_cpu_does_is_timed_both_ways_and_written(tmp_path, monkeypatch, capsys):
    file = tmp_path / "new" / "cost.json"
    monkeypatch.setattr(sys, "argv", ["launch_cost", "--seconds", "0.5", "--out", str(file)])
    launch_cost.main()
    found = json.loads(file.read_text())
    assert found["rounds"] >= 10 and len(found["microseconds"]) == 5
    assert all(of[DIRECT] > 0 for of in found["microseconds"].values())
    step = found["microseconds"]["forward and all gradients"]
    assert step[DIRECT] < step[LIBRARY]
    assert "forward, packed" in capsys.readouterr().out
    assert all(0 < value < 5_000 for value in found["yardsticks"].values())


def test_it_is_refused_where_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(RuntimeError, match="without a GPU"):
        launch_cost.measure(0.1)
