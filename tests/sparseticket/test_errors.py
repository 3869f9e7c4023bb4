import pytest

from sparseticket.errors import reason


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("\n no \nmore"), "no "),
        (KeyError("x"), "'x'"),
        (ValueError(), "ValueError"),
        (OSError(" "), "OSError"),
    ],
)
def test_a_reason_is_the_first_line_of_an_error_or_its_name(error, said):
    assert reason(error) == said
