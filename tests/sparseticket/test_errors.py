import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from sparseticket.errors import reason
from sparseticket.progress import Screen


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


def test_what_looks_like_markup_in_a_name_is_printed_as_it_is(capsys):
    screen, name = Screen(), "[mine] :smile:"
    table = Table(name, title=name)
    table.add_row(name)
    screen.console.print(table)
    screen.say(name)
    assert capsys.readouterr().out.count(name) == 4


def test_what_the_outputs_encoding_cannot_show_is_no_error():
    shown = subprocess.run(
        [sys.executable, "-m", "sparseticket", "recipes", "show", "cvpr21/cifar10"],
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
    )
    assert shown.returncode == 0, shown.stderr
    assert b"?" in shown.stdout and shown.stdout.isascii()
