from dataclasses import replace

import pytest
import torch
import triton

from sparseticket.kernels.bsr import Tiles
from sparseticket.kernels.clock import Speedup
from sparseticket.kernels.dispatch import Case, Choice
from sparseticket.kernels.launch import has_compiled_form
from sparseticket.kernels.tune import Problem, measure, random_mask


class SteadyClock:
    """A clock for which dense takes 3 ms, and everything else what ``times`` says of its place in line."""

    def __init__(self, times, speedup=(1.5, 1.4, 1.6)):
        self.times, self.speedup = iter(times), speedup

    def median(self, call):
        call()
        return next(self.times)

    def compare(self, baseline, other, *, rounds):
        return Speedup(*self.speedup)


CASE = Case("forward", 48, 64, "block:16x32", "float32", "bias+gelu")


def test_the_fastest_candidate_that_agrees_is_kept():
    candidates = list(Problem.draw(CASE, 40, 0.5, "cpu", 0).candidates(thorough=True))
    assert len(candidates) > 2
    times = [5.0] * len(candidates)
    times[1] = 1.0
    cell = measure(CASE, 40, 0.5, "cpu", thorough=True, clock=SteadyClock(times), launched=SteadyClock([]))
    assert cell.best == candidates[1][0] and (cell.ratio, cell.low, cell.high) == (1.5, 1.4, 1.6)


HALVES = Case("dgrad", 64, 64, "block:32x32", "float16", "none")


@pytest.mark.parametrize("launched", ["compiled", "graph"])
def test_what_torch_compile_launches_is_timed_with_the_descriptors_that_it_will_have(launched, monkeypatch):
    monkeypatch.setattr("sparseticket.kernels.tune.has_tma", lambda device: True)
    monkeypatch.setattr(triton, "set_allocator", lambda allocator: None)
    made_on_device, one_pass = set(), Problem._one_pass

    def recorded(self, which, layout, tiles):
        if Tiles.are_resident(tiles):
            made_on_device.add(has_compiled_form())
        return one_pass(self, which, layout, tiles)

    monkeypatch.setattr(Problem, "_one_pass", recorded)
    case = replace(HALVES, launched=launched)
    measure(case, 40, 0.5, "cpu", thorough=True, clock=SteadyClock([1.0] * 99), launched=SteadyClock([]))
    assert made_on_device == {launched == "compiled"} and not has_compiled_form()


def test_where_there_is_no_tma_no_tiles_of_it_are_tried():
    tried = [choice.tiles for choice, _ in Problem.draw(HALVES, 40, 0.5, "cpu", 0).candidates(thorough=True)]
    assert len(tried) > 2 and not any(map(Tiles.are_resident, tried))


def test_only_a_case_that_is_launched_from_python_has_to_make_up_for_its_launch():
    slow = (0.7, 0.6, 0.8)
    for launched, found in (("eager", slow), ("compiled", (1.5, 1.4, 1.6)), ("graph", (1.5, 1.4, 1.6))):
        case, steady = replace(HALVES, launched=launched), SteadyClock([1.0] * 9)
        cell = measure(case, 40, 0.5, "cpu", clock=steady, launched=SteadyClock([], slow))
        assert (cell.ratio, cell.low, cell.high) == found


def test_a_candidate_with_a_wrong_result_is_never_used(monkeypatch, caplog):
    monkeypatch.setattr(Problem, "_one_pass", lambda self, *_: self.dense() + 1)
    cell = measure(CASE, 40, 0.5, "cpu", clock=SteadyClock([]))
    assert cell.best == Choice() and cell.choice == Choice() and "WRONG" in caplog.text


def test_a_candidate_that_does_not_run_drops_out(monkeypatch):
    def fail(*_):
        raise RuntimeError("out of resources: shared memory")

    monkeypatch.setattr(Problem, "_one_pass", fail)
    assert measure(CASE, 40, 0.5, "cpu", clock=SteadyClock([])).best == Choice()


@pytest.mark.parametrize(
    "which,epilogue", [("forward", "bias"), ("dgrad", "none"), ("wgrad", "none"), ("infer", "bias+relu")]
)
def test_every_pass_is_measured_against_dense_on_this_machine(which, epilogue):
    cell = measure(Case(which, 48, 64, "block:16x16", "float32", epilogue), 40, 0.4, "cpu", rounds=5)
    assert cell.best.kernel in ("bsr_linear", "bsr_packed") and 0 < cell.low <= cell.ratio <= cell.high


@pytest.mark.parametrize("density", [0, 0.25, 1])
def test_a_random_mask_has_just_the_density_asked_for(density):
    mask = random_mask(CASE, density, torch.Generator().manual_seed(0))
    assert mask.shape == (48, 64) and mask.float().mean() == pytest.approx(density, abs=1 / 6)
    pairs = random_mask(Case("infer", 8, 16, "2:4", "float16"), density, torch.Generator().manual_seed(0))
    assert (pairs.reshape(-1, 4).sum(1) == 2).all()


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block:32x16 3x3/2", "block:16x16 1x1/1"])
def test_every_kernel_for_inference_is_measured_and_agrees_with_dense(pattern, caplog):
    which = "convolution" if "x3" in pattern or "x1/" in pattern else "infer"
    cell = measure(Case(which, 48, 64, pattern, "float32"), 40, 0.4, "cpu", rounds=5)
    assert cell.best.kernel in ("bitmap", "semi_structured", "bsr_conv2d") and "WRONG" not in caplog.text


def test_a_kernel_that_pays_only_without_its_launch_is_not_chosen():
    slow_to_launch = SteadyClock([], (0.7, 0.6, 0.8))
    cell = measure(CASE, 40, 0.5, "cpu", clock=SteadyClock([1.0]), launched=slow_to_launch)
    assert (cell.ratio, cell.low, cell.high) == (0.7, 0.6, 0.8) and cell.choice == Choice()
