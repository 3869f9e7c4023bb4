import pytest

from sparseticket.verdict import Arm, judge


def test_mean_and_sample_deviation_against_hand_computed_values():
    table = Arm([0.80, 0.82, 0.87]).table()
    assert table["mean"] == pytest.approx(0.83) and table["n"] == 3
    assert table["std"] == pytest.approx(0.0360555, abs=1e-6)  # sqrt((.03² + .01² + .04²) / 2)


def test_matching_is_within_one_deviation_of_dense_and_strict_is_at_least_its_mean():
    dense = Arm([0.80, 0.82, 0.84])  # 0.82 ± 0.02
    assert (judge(Arm([0.82] * 3), dense).matching, judge(Arm([0.82] * 3), dense).strict) == (True, True)
    assert (judge(Arm([0.801] * 3), dense).matching, judge(Arm([0.801] * 3), dense).strict) == (True, False)
    assert (judge(Arm([0.799] * 3), dense).matching, judge(Arm([0.799] * 3), dense).strict) == (False, False)


@pytest.mark.parametrize("ticket, dense", [([0.9] * 2, [0.8] * 3), ([0.9] * 3, [0.8] * 2), ([0.9], [0.8])])
def test_fewer_than_three_runs_give_no_verdict_and_the_reason(ticket, dense):
    verdict = judge(Arm(ticket), Arm(dense))
    assert verdict.matching is None and verdict.strict is None and "too few" in verdict.reason


def test_one_run_has_no_deviation():
    assert Arm([0.5]).table() == {"values": [0.5], "mean": 0.5, "std": None, "n": 1}
