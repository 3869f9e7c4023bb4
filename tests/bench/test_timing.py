import time

import numpy as np
import pytest

from sparseticket.bench.timing import CALLS_PER_TURN, WARM_UP_CALLS, Timed, interleave, percentiles, speedup


def busy(milliseconds: float):
    def call() -> None:
        until = time.perf_counter() + milliseconds / 1000
        while time.perf_counter() < until:
            pass

    return call


def test_percentiles_are_those_computed_by_hand():
    samples = np.arange(1.0, 102.0)  # 1 to 101 ms: the p-th percentile is p + 1
    np.random.default_rng(0).shuffle(samples)
    assert percentiles(samples) == pytest.approx({"p50_ms": 51, "p90_ms": 91, "p95_ms": 96, "p99_ms": 100})


def test_percentiles_interpolate_between_samples_of_any_shape():
    assert percentiles(np.array([[1.0, 2.0], [3.0, 4.0]]))["p50_ms"] == 2.5
    assert percentiles(np.array([[1.0, 2.0], [3.0, 4.0]]))["p90_ms"] == pytest.approx(3.7)


def test_candidates_take_turns_in_an_order_drawn_anew():
    calls = []
    candidates = [Timed(name, lambda name=name: calls.append(name)) for name in "abc"]
    samples = interleave(candidates, seconds=0, min_rounds=20)
    assert [one.shape for one in samples] == [(20, CALLS_PER_TURN)] * 3
    turn = 1 + CALLS_PER_TURN
    timed = calls[3 * WARM_UP_CALLS :]
    turns = [timed[start : start + turn] for start in range(0, len(timed), turn)]
    assert all(len(set(one)) == 1 for one in turns)
    rounds = [tuple(one[0] for one in turns[start : start + 3]) for start in range(0, len(turns), 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) > 2


def test_the_first_call_of_a_turn_is_not_counted():
    calls = []

    def cold_first() -> None:
        calls.append(None)
        if (len(calls) - WARM_UP_CALLS - 1) % (1 + CALLS_PER_TURN) == 0:
            time.sleep(0.02)

    (samples,) = interleave([Timed("cold", cold_first)], seconds=0, min_rounds=5)
    assert np.median(samples) < 1


def test_it_measures_for_the_seconds_it_is_given_and_not_beyond_the_most_rounds():
    start = time.perf_counter()
    (samples,) = interleave([Timed("one", busy(1))], seconds=0.3, min_rounds=1)
    assert 0.3 <= time.perf_counter() - start < 10
    assert len(samples) > 1
    (samples,) = interleave([Timed("one", busy(0.1))], seconds=60, max_rounds=3)
    assert len(samples) == 3


def test_waiting_for_a_device_is_part_of_the_time():
    (samples,) = interleave([Timed("device", lambda: None, busy(2))], seconds=0, min_rounds=3)
    assert samples.min() >= 2


def test_a_slower_candidate_is_seen_as_slower_with_an_interval_below_one():
    fast, slow = interleave([Timed("fast", busy(0.5)), Timed("slow", busy(1.5))], seconds=0, min_rounds=40)
    ratio = speedup(fast, slow)
    assert ratio.median == pytest.approx(1 / 3, rel=0.3)
    assert ratio.low <= ratio.median <= ratio.high < 1


def test_the_speed_up_is_taken_within_rounds_so_that_a_slow_minute_does_not_count():
    draw = np.random.default_rng(0)
    machine = draw.uniform(1, 10, (200, 1))  # how slow the machine was in each round
    baseline, candidate = (machine * base * draw.normal(1, 0.01, (200, 4)) for base in (2.0, 1.0))
    ratio = speedup(baseline, candidate)
    assert ratio.median == pytest.approx(2, rel=0.01)
    assert 1.98 < ratio.low < 2 < ratio.high < 2.02


def test_equal_candidates_have_one_inside_the_interval():
    draw = np.random.default_rng(1)
    ratio = speedup(draw.normal(5, 0.5, (100, 4)), draw.normal(5, 0.5, (100, 4)))
    assert ratio.low < 1 < ratio.high
