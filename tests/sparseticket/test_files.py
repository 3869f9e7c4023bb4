"""A file or folder is replaced whole or not at all, and nothing else is left beside it."""

import os
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from sparseticket.errors import RunFailure, UserError
from sparseticket.files import read_json, replace_folder, write_whole
from sparseticket.kernels.dispatch import Table
from sparseticket.models.vision_saved import describe_saved
from sparseticket.tensors import load_tensors


def write(path, text):
    with replace_folder(path) as new:
        new.mkdir()
        (new / "file").write_text(text)


def test_a_folder_takes_the_place_of_the_one_that_was_there(tmp_path):
    path = tmp_path / "deep" / "model"
    write(path, "first")
    (path / "more").touch()
    write(path, "second")
    assert os.listdir(path) == ["file"] and (path / "file").read_text() == "second"
    assert os.listdir(path.parent) == ["model"]


def test_a_folder_s_files_are_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("sparseticket.files.os.fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    monkeypatch.setattr("sparseticket.files._swap", lambda new, path, old: (synced.append("swap"), new.rename(path)))
    with replace_folder(tmp_path / "model") as new:
        (new / "deep").mkdir(parents=True)
        (new / "deep" / "file").touch()
    assert synced == [(tmp_path / "model" / "deep" / "file").stat().st_ino, "swap"]


def test_others_may_read_the_folder_as_far_as_the_umask_lets_them(tmp_path):
    before = os.umask(0o027)
    try:
        write(tmp_path / "model", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o750


def test_what_a_kill_would_leave_is_named_after_the_folder(tmp_path):
    with replace_folder(tmp_path / "model") as new:
        new.mkdir()
        assert [item.match(".model.*.part") for item in tmp_path.iterdir()] == [True]


def test_what_a_kill_left_beside_a_folder_goes_a_day_later_when_it_is_written_again(tmp_path):
    left, recent, foreign, longer = (
        tmp_path / f".{name}.part" for name in ("model.a", "model.b", "models.c", "model.int8.d")
    )
    for folder in (left, recent, foreign, longer):
        (folder / "new").mkdir(parents=True)
        (folder / "new" / "file").touch()
    for folder in (left, foreign, longer):
        for path in (*folder.rglob("*"), folder):
            os.utime(path, (time.time() - 100_000,) * 2)
    write(tmp_path / "model", "text")
    assert not left.exists() and (recent / "new" / "file").exists() and foreign.exists() and longer.exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch, error):
    path = tmp_path / "model"
    write(path, "first")
    rename = Path.rename

    def fail_for_the_new(self, target):
        if self.name == "new":
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new)
    with pytest.raises(RunFailure if isinstance(error, OSError) else KeyboardInterrupt):
        write(path, "second")
    assert (path / "file").read_text() == "first" and os.listdir(tmp_path) == ["model"]


def test_an_error_in_the_block_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "model"
    write(path, "first")
    for error, expected in ((OSError(30, "Read-only file system"), RunFailure), (ValueError("wrong"), ValueError)):
        with pytest.raises(expected, match=r"Read-only|wrong"), replace_folder(path) as new:
            new.mkdir()
            raise error
    assert (path / "file").read_text() == "first" and os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("content", ["text", b"text", lambda path: path.write_text("text")])
def test_a_file_takes_the_place_of_the_one_that_was_there_and_others_may_read_it(tmp_path, content):
    path = tmp_path / "deep" / "file"
    before = os.umask(0o027)
    try:
        write_whole(path, "an earlier one, which was longer")
        write_whole(path, content)
    finally:
        os.umask(before)
    assert path.read_text() == "text" and os.listdir(path.parent) == ["file"]
    assert path.stat().st_mode & 0o777 == 0o640


def half_written(path):
    path.write_text("sec")
    raise OSError(28, "No space left on device")


def interrupted(path):
    path.write_text("sec")
    raise KeyboardInterrupt


def failing(*_):
    raise OSError(5, "Input/output error")


@pytest.mark.parametrize(
    ("content", "breaks", "expected"),
    [
        (half_written, None, RunFailure),
        (interrupted, None, KeyboardInterrupt),
        ("second", "fsync", RunFailure),
        ("second", "replace", RunFailure),
    ],
)
def test_a_file_that_cannot_be_written_is_as_it_was_and_nothing_is_left_beside_it(
    tmp_path, monkeypatch, content, breaks, expected
):
    path = tmp_path / "file"
    write_whole(path, "first")
    if breaks:
        monkeypatch.setattr(os, breaks, failing)
    with pytest.raises(expected):
        write_whole(path, content)
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["file"]


TOO_DEEP = "[" * 200_000  # json gives up with RecursionError, which is no ValueError


def tensors_with(record):
    return lambda path: safetensors.torch.save_file({"a": torch.zeros(1)}, path, {"record": record})


@pytest.mark.parametrize(
    ("name", "write", "read", "error"),
    [
        ("summary.json", lambda path: path.write_text(TOO_DEEP), read_json, UserError),
        ("model.json", lambda path: path.write_text(TOO_DEEP), lambda path: describe_saved(path.parent), UserError),
        ("a.safetensors", tensors_with(TOO_DEEP), load_tensors, UserError),
        ("table.json", lambda path: path.write_text(TOO_DEEP), Table.load, ValueError),
    ],
)
def test_a_file_that_nests_too_deep_is_said_to_be_damaged(name, write, read, error, tmp_path):
    write(tmp_path / name)
    with pytest.raises(error, match=name):
        read(tmp_path / name)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_in_a_folder_may_be_read_by_whom_the_umask_lets(umask, tmp_path):
    before = os.umask(umask)
    try:
        with replace_folder(tmp_path / "model") as new:
            (new / "deep").mkdir(parents=True)
            safetensors.torch.save_file({"a": torch.zeros(1)}, new / "deep" / "model.safetensors")  # writes 0600
    finally:
        os.umask(before)
    file = tmp_path / "model" / "deep" / "model.safetensors"
    assert file.stat().st_mode & 0o777 == 0o666 & ~umask
