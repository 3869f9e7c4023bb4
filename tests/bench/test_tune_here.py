import _thread
import os
import threading
import time

import pytest
import torch
from typer.testing import CliRunner

from sparseticket.bench.gpu import tune_here as module
from sparseticket.bench.gpu.lab import DeviceLost, Lab
from sparseticket.cli.app import app
from sparseticket.errors import UserError
from sparseticket.kernels.dispatch import Case, Choice, Measured, Table

CELL = Measured(Case("infer", 32, 32, "block:16x16", "bfloat16"), 32, 0.3, Choice("bsr_packed"), 1.5, 1.4, 1.6)


@pytest.fixture
def as_if_on_a_gpu(monkeypatch):
    """The command believes in a GPU; what it starts is a rehearsal that measures one cell."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Some GPU")
    monkeypatch.setattr(module, "Lab", lambda out, **settings: Lab(out, rehearse=True, **settings))
    monkeypatch.setattr(module.tuning, "tune", lambda lab, processes: lab.keep(CELL) or 7)


def test_the_table_lands_in_the_users_cache_and_what_is_missing_is_said(as_if_on_a_gpu, tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSETICKET_CACHE", str(tmp_path / "[mine]"))
    shown = CliRunner().invoke(app, ["tune-kernels", "--minutes", "1"], catch_exceptions=False).output
    path = tmp_path / "[mine]" / "kernels" / "some-gpu.json"
    assert Table.load(path).cells == [CELL]
    assert "1 cells measured; a kernel is picked in 1" in shown and "7 cells are still missing" in shown
    assert f"Written to {path}" in shown


def test_it_goes_on_behind_the_cells_that_are_there_and_begins_anew_with_other_versions(as_if_on_a_gpu, tmp_path):
    file = tmp_path / "table.json"
    module.tune_here(file, minutes=1)
    found = Table.load(file)
    assert found.versions["torch"] == Lab(tmp_path, rehearse=True).table.versions["torch"] and found.date
    other = Measured(CELL.case, 64, 0.3, CELL.best, 1.5, 1.4, 1.6)
    found.add(other)
    file.write_text(found.to_json())
    assert other in module.tune_here(file, minutes=1)[1].cells
    found.versions["torch"] = "1.0"
    file.write_text(found.to_json())
    assert module.tune_here(file, minutes=1)[1].cells == [CELL]


def test_a_file_that_is_no_table_is_left_alone(as_if_on_a_gpu, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text("{}")
    with pytest.raises(UserError, match="remove the file"):
        module.tune_here(file, minutes=1)
    assert file.read_text() == "{}"


def test_without_a_gpu_and_with_no_time_it_is_a_mistake(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU"):
        module.tune_here(None, minutes=1)
    with pytest.raises(UserError, match="--minutes 0"):
        module.tune_here(None, minutes=0)


class Replaced(BaseException):
    """In the place of what ``os.execv`` does: this process is no more."""


def breaks(lab, processes):
    raise DeviceLost("a case of 16 rows")


def hangs(lab, processes):
    with lab.gives_up_after(0.05, lambda: lab.keep(CELL)):
        for _ in range(400):
            time.sleep(0.05)
    raise AssertionError("it was waited for")


def replaced(program, arguments):
    """What would run in the place of this process, from where it would be replaced."""
    REPLACED.append(arguments)
    if threading.current_thread() is threading.main_thread():
        raise Replaced
    _thread.interrupt_main()


REPLACED = []


@pytest.mark.parametrize("wrong", [breaks, hangs])
def test_a_kernel_that_broke_the_gpu_or_never_ends_is_left_out_and_the_same_command_goes_on(
    wrong, as_if_on_a_gpu, tmp_path, monkeypatch, capsys
):
    file = tmp_path / "table.json"
    REPLACED.clear()
    monkeypatch.setattr(os, "execv", replaced)
    monkeypatch.setattr(module.tuning, "tune", wrong)
    with pytest.raises((Replaced, KeyboardInterrupt)):
        module.tune_here(file, minutes=3)
    ((_, m, *command),) = REPLACED
    assert m == "-m" and "going on in a new process" in capsys.readouterr().err
    assert file.exists() == (wrong is hangs)  # what was noted of the cell that hung
    given = {}
    monkeypatch.setattr(module, "tune_here", lambda out, minutes: given.update(out=out, minutes=minutes) or 1 / 0)
    assert command[0] == "sparseticket"
    result = CliRunner().invoke(app, command[1:])
    assert isinstance(result.exception, ZeroDivisionError), result.output
    assert given["out"] == file and 2 < given["minutes"] <= 3
