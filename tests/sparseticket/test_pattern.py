import pytest

from sparseticket.errors import UserError
from sparseticket.options import find_settings
from sparseticket.pattern import Block, NOfM, Unstructured, Whole, check_model, parse
from sparseticket.settings import Protocol


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("unstructured", Unstructured()),
        ("2:4", NOfM(2, 4)),
        ("1:32", NOfM(1, 32)),
        ("block:64x64", Block(64, 64)),
        ("block:4x1", Block(4, 1)),
        ("heads", Whole(("heads",))),
        ("channels", Whole(("channels",))),
        ("heads+neurons", Whole(("heads", "neurons"))),
    ],
)
def test_a_pattern_is_read_and_written_in_one_form(text, pattern):
    assert parse(text) == pattern and str(pattern) == text


def test_a_combination_is_written_in_one_order():
    assert Protocol(pattern="neurons+heads").pattern == "heads+neurons"
    assert Protocol(pattern="02:04", sparsity=0.5, schedule="one-round").pattern == "2:4"


@pytest.mark.parametrize(
    "text", ["", "0x4", "block", "block:64", "block:-1x4", "2:4:8", "Heads", "heads,neurons", "heads+"]
)
def test_what_is_no_pattern_is_refused_with_what_there_is(text):
    with pytest.raises(UserError, match=r"no pattern .*unstructured, N:M .*block:RxC .*heads\+neurons or channels"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("5:4", "N from 1 and below M"),
        ("4:4", "N from 1 and below M"),
        ("0:4", "N from 1 and below M"),
        ("1:99999", "M up to 32"),
        ("block:0x4", "two weights or more"),
        ("block:1x1", "say unstructured"),
        ("heads+channels", "heads and neurons can be combined"),
        ("heads+heads", "once each"),
        ("heads+neurons+channels", "heads and neurons can be combined"),
    ],
)
def test_a_pattern_that_makes_no_sense_is_refused_with_the_reason(text, says):
    with pytest.raises(UserError, match=says):
        parse(text)


def test_a_pattern_that_a_kind_of_model_cannot_have_is_refused_by_its_name():
    check_model(parse("heads+neurons"), "text", "minilm")
    check_model(parse("channels"), "vision", "resnet50")
    check_model(parse("block:4x1"), "vision", "resnet50")
    with pytest.raises(UserError, match=r"'resnet50' is a vision model and has no heads\. It has channels"):
        check_model(parse("heads"), "vision", "resnet50")
    with pytest.raises(UserError, match=r"has no channels\. It has heads and neurons"):
        check_model(parse("channels"), "text", "minilm")


@pytest.mark.parametrize(
    ("text", "schedule", "sparsities"),
    [
        ("2:4", "linear:1/4", [0, 0.25, 0.5]),
        ("2:4", "linear:0.25", [0, 0.25, 0.5]),
        ("1:3", "linear:1/3", [0, 1 / 3, 2 / 3]),
        ("2:4", "one-round", [0, 0.5]),
        ("2:4", "one-shot", [0.5]),
    ],
)
def test_n_of_m_goes_one_step_a_round_or_all_at_once(text, schedule, sparsities):
    pattern = parse(text)
    protocol = Protocol(pattern=text, sparsity=pattern.sparsity, schedule=schedule)
    assert protocol.sparsities() == pytest.approx(sparsities)
    assert [pattern.alive_at(s) for s in protocol.sparsities()] == [round(pattern.m * (1 - s)) for s in sparsities]


def test_n_of_m_with_another_sparsity_or_step_is_refused_with_what_to_say():
    with pytest.raises(UserError, match=r"2:4 is 0\.5 sparse and nothing else, not 0\.7: leave --sparsity out"):
        Protocol(pattern="2:4", sparsity=0.7, schedule="linear:1/4")
    with pytest.raises(UserError, match=r"prunes 1 of every 4 a round, not linear:0\.1: .*linear:1/4"):
        Protocol(pattern="2:4", sparsity=0.5)
    with pytest.raises(UserError, match="prunes 1 of every 4"):
        Protocol(pattern="2:4", sparsity=0.5, schedule="geometric:0.25")


def test_for_n_of_m_sparsity_and_schedule_follow_unless_they_are_said(tiny_bert):
    def protocol(**fields):
        return find_settings(str(tiny_bert), task="text", protocol=fields).protocol

    followed = protocol(pattern="1:4", sparsity=None, schedule=None)
    assert followed.sparsities() == [0, 0.25, 0.5, 0.75] and followed.schedule == "linear:1/4"
    assert protocol(pattern="2:4", schedule="one-shot").sparsities() == [0.5]
    assert protocol(pattern="heads").schedule == protocol().schedule
    with pytest.raises(UserError, match="nothing else"):
        protocol(pattern="2:4", sparsity=0.7)
