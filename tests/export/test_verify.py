import numpy as np
import pytest

from sparseticket.errors import RunFailure
from sparseticket.export.verify import Tolerance, _difference, compare, shapes

EXPECTED = np.array([[1.0, -400.0]], np.float32)


def test_absolute_and_relative_tolerance_add_up():
    off = EXPECTED + np.array([[0.0, 0.03]], np.float32)
    assert _difference("logits", EXPECTED, off, Tolerance(1e-4, 1e-4), "") == pytest.approx(0.03, rel=1e-3)
    with pytest.raises(RunFailure, match=r"'logits'.*0\.03"):
        _difference("logits", EXPECTED, off, Tolerance(1e-4, 0.0), "batch 1")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_never_agrees(bad):
    with pytest.raises(RunFailure, match="logits"):
        _difference("logits", EXPECTED, np.array([[1.0, bad]], np.float32), Tolerance(1e9, 1.0), "")


def test_another_shape_never_agrees():
    with pytest.raises(RunFailure, match="shape"):
        _difference("logits", EXPECTED, EXPECTED[0], Tolerance(1e9, 0.0), "")


def test_text_is_asked_with_one_row_and_several_one_token_padding_and_the_longest(classifier):
    from sparseticket.export.loaded_model import load

    asked = shapes(load(classifier))
    assert {1, 2, 3} <= {batch for batch, _, _ in asked}
    assert {1, 7, 40} <= {length for _, length, _ in asked}
    assert max(length for _, length, _ in asked) == 40
    assert any(padded for _, _, padded in asked)


def test_a_model_that_answers_with_nan_itself_is_named_as_the_cause(classifier, monkeypatch):
    from sparseticket.export.loaded_model import load

    model = load(classifier)
    for parameter in model.module.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(RunFailure, match="the model itself answers with infinite or NaN values"):
        compare(model, lambda inputs, words: {}, Tolerance(1e-4, 1e-4))
