import sys

import pytest

from sparseticket.bench import launch_cost, shrunk_speed
from sparseticket.bench.sparse_cpu import __main__ as sparse_cpu
from sparseticket.errors import UserError
from sparseticket.export import native


@pytest.mark.parametrize(
    ("command", "working"), [(launch_cost, "measure"), (shrunk_speed, "measure"), (sparse_cpu, "run")]
)
def test_what_is_wrong_is_one_message_and_a_code(command, working, tmp_path, monkeypatch, capsys):
    def fails(*_, **__):
        raise UserError("there is no such thing.")

    monkeypatch.setattr(command, working, fails)
    monkeypatch.setattr(native, "find_library", lambda: tmp_path)
    monkeypatch.setattr(sys, "argv", ["command", "--out", str(tmp_path / "out.json")])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2 and capsys.readouterr().err == "error: there is no such thing.\n"
