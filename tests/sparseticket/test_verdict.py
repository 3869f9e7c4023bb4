import pytest
import torch

from sparseticket.verdict import Arm, Highest, Verdict, highest_matching, judge, judge_universal


def test_mean_and_sample_deviation_against_hand_computed_values():
    table = Arm([0.80, 0.82, 0.87]).table()
    assert table["mean"] == pytest.approx(0.83) and table["n"] == 3
    assert table["std"] == pytest.approx(0.0360555, abs=1e-6)  # sqrt((.03² + .01² + .04²) / 2)


def test_matching_is_within_one_deviation_of_dense_and_strict_is_at_least_its_mean():
    dense = Arm([0.80, 0.82, 0.84])  # 0.82 ± 0.02
    assert (judge(Arm([0.82] * 3), dense).matching, judge(Arm([0.82] * 3), dense).strict) == (True, True)
    assert (judge(Arm([0.801] * 3), dense).matching, judge(Arm([0.801] * 3), dense).strict) == (True, False)
    assert (judge(Arm([0.799] * 3), dense).matching, judge(Arm([0.799] * 3), dense).strict) == (False, False)


def test_rounding_of_metrics_in_float32_does_not_part_means_that_are_equal():
    def arm(*right):  # answers of 872, as torchmetrics divides them
        return Arm([float(torch.tensor(float(number)) / 872) for number in right])

    dense, equal, fewer = arm(700, 704, 708), arm(702, 703, 707), arm(702, 703, 706)
    assert equal.mean < dense.mean, "or this proves nothing"
    assert judge(equal, dense).strict and not judge(fewer, dense).strict
    alike = arm(600, 600, 600)  # no deviation: matching is being as good
    assert judge(arm(599, 594, 607), alike).matching and not judge(arm(599, 594, 606), alike).matching


@pytest.mark.parametrize("ticket, dense", [([0.9] * 2, [0.8] * 3), ([0.9] * 3, [0.8] * 2), ([0.9], [0.8])])
def test_fewer_than_three_runs_give_no_verdict_and_the_reason(ticket, dense):
    verdict = judge(Arm(ticket), Arm(dense))
    assert verdict.matching is None and verdict.strict is None and "too few" in verdict.reason


def test_where_dense_scores_nothing_there_is_nothing_to_match():
    for nothing in ([0.0] * 3, [-0.01, 0.0, 0.01]):  # average precision; Matthews correlation
        verdict = judge(Arm([0.0] * 3), Arm(nothing), at_theta_p=True)
        assert (verdict.matching, verdict.strict, verdict.winning) == (None, None, None)
        assert str(verdict).startswith("no verdict: dense networks score nothing")


def test_runs_of_one_and_the_same_value_tell_nothing():
    same = judge(Arm([0.5] * 3), Arm([0.5] * 3), at_theta_p=True)  # networks that answer one of two classes always
    assert (
        same.matching is None
        and same.reason == "all runs have the same value, 0.5000: nothing tells the networks apart"
    )
    assert judge(Arm([0.5] * 3), Arm([0.4] * 3)).strict and judge(Arm([0.3] * 3), Arm([0.4] * 3)).matching is False


def test_one_run_has_no_deviation():
    assert Arm([0.5]).table() == {"values": [0.5], "mean": 0.5, "std": None, "n": 1}


def test_winning_is_matching_that_began_with_theta_p():
    dense, ticket = Arm([0.80, 0.82, 0.84]), Arm([0.82] * 3)
    assert judge(ticket, dense, at_theta_p=True).winning is True
    assert judge(ticket, dense, at_theta_p=False).winning is False
    assert judge(Arm([0.5] * 3), dense, at_theta_p=True).winning is False
    assert judge(Arm([0.5]), dense, at_theta_p=True).winning is None and judge(ticket, dense).winning is None
    assert str(judge(ticket, dense, at_theta_p=True)) == "winning, strictly"


YES, NO, UNKNOWN = Verdict(True, True), Verdict(False, False), Verdict(None, None, "too few")


@pytest.mark.parametrize(
    ("verdicts", "universal"),
    [([YES, YES], True), ([YES, NO], False), ([YES, UNKNOWN], None), ([NO, UNKNOWN], False), ([YES], None), ([], None)],
)
def test_universal_is_matching_on_every_task_of_the_set(verdicts, universal):
    found = judge_universal({f"task{i}": verdict for i, verdict in enumerate(verdicts)})
    assert found.universal is universal
    assert (found.reason is None) is (len(verdicts) > 1)
    assert found.undecided == [f"task{i}" for i, verdict in enumerate(verdicts) if verdict is UNKNOWN]


def test_what_may_not_be_called_universal_is_not_and_says_why():
    found = judge_universal({"a": YES, "b": YES}, reason="a control")
    assert (found.universal, found.matching, found.reason) == (None, ["a", "b"], "a control")


def test_the_highest_matching_sparsity_says_what_does_not_match_below_it_and_what_is_undecided():
    almost = Verdict(True, False)
    found = highest_matching([(0.3, YES), (0.5, NO), (0.6, almost), (0.7, NO), (0.9, UNKNOWN)])
    assert found == Highest(matching=0.6, strict=0.3, gaps=[0.5], undecided=[0.9])
    assert highest_matching([(0.5, NO)]) == Highest(None, None, [], [])
