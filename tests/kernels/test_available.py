import pytest
import torch

from sparseticket.files import cache_folder
from sparseticket.kernels import available, dispatch
from sparseticket.kernels.dispatch import Table, find_table, table_path


@pytest.fixture
def a_gpu(monkeypatch, tmp_path):
    """As if there were an H100, and no table anywhere yet."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setenv("SPARSETICKET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dispatch, "TABLES", tmp_path / "shipped")


def write(folder):
    path = table_path("NVIDIA H100", folder)
    path.parent.mkdir(parents=True)
    path.write_text(Table("NVIDIA H100").to_json())
    return path


def test_the_users_own_table_comes_before_the_one_that_was_shipped(a_gpu, tmp_path):
    assert find_table("NVIDIA H100") is None
    shipped = write(tmp_path / "shipped")
    assert find_table("NVIDIA H100") == shipped
    own = write(dispatch.user_tables())
    assert find_table("NVIDIA H100") == own and find_table("Other GPU") is None


def test_on_a_gpu_the_kernels_run_and_the_table_is_named(a_gpu, tmp_path):
    assert {available.report()[name] for name in available.TRITON} == {"runs"}
    assert "tune-kernels" in available.report()["table"]
    path = write(tmp_path / "shipped")
    assert available.report()["table"] == str(path)


def test_on_an_old_gpu_it_says_why_they_do_not(a_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    assert "older than sm_80" in available.report()["bsr_linear"] and "older" in available.report()["2:4"]


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = available.report()
    assert all("no GPU" in found[name] for name in (*available.TRITON, "2:4")) and "dense" in found["table"]


@pytest.mark.parametrize("variable", ["SPARSETICKET_CACHE", "XDG_CACHE_HOME", "HOME"])
def test_the_users_tables_lie_where_the_core_keeps_what_can_be_made_again(variable, tmp_path, monkeypatch):
    monkeypatch.delenv("SPARSETICKET_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    assert dispatch.user_tables() == cache_folder() / "kernels" and tmp_path in dispatch.user_tables().parents
