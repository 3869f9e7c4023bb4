import json
import sys

import pytest
import torch

from sparseticket.bench import launch_cost, stand_in_gpu
from sparseticket.bench.launch_cost import DIRECT, LIBRARY
from sparseticket.kernels.blocks import BlockLayout
from sparseticket.kernels.bsr import Tiles, bsr_linear


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


@pytest.mark.parametrize("residents", [0, 1])
def test_another_number_of_live_blocks_compiles_no_kernel_anew(residents, monkeypatch):
    """Triton has a kernel each for numbers that 16 divides, and for 1, unless it is told that it need not."""
    compiled, original = [], stand_in_gpu.Uncompiled.__init__

    def spy(self, source, **options):
        compiled.append(source.fn.__name__)
        original(self, source, **options)

    monkeypatch.setattr(stand_in_gpu.Uncompiled, "__init__", spy)
    tiles = [Tiles(64, 64, 32, 4, 5, residents).as_ints()] * 3  # 5 stages, as nowhere else: not in Triton's cache yet
    x, weight = (torch.zeros(512, 512, dtype=torch.float16, requires_grad=True) for _ in range(2))
    after_each = []
    with stand_in_gpu.stand_in_gpu():
        for live in (17, 16, 1, 5):
            mask = (torch.arange(64) < live).reshape(8, 8).repeat_interleave(64, 0).repeat_interleave(64, 1)
            y = bsr_linear(x, weight, BlockLayout.from_mask(mask, (64, 64)), tiles=tiles)
            y.backward(torch.zeros_like(y))
            after_each.append(list(compiled))
    assert ("bsr_tma_wgrad_kernel" if residents else "bsr_wgrad_kernel") in compiled
    assert after_each == [after_each[0]] * 4
