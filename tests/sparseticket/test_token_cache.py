"""Tokenization is kept between runs: made once, found by content, never half there, and made again when damaged."""

import threading
from pathlib import Path

import pytest
import torch

from sparseticket import files
from sparseticket.errors import UserError
from sparseticket.models import resolve
from sparseticket.tasks import text_batches
from sparseticket.tasks.mlm import pack
from sparseticket.tasks.squad_windows import encode
from sparseticket.tasks.text_batches import tokenize

TEXTS = ["the film is good", "the plot was dull and very bad", ""]
PAIRS = ["it is fine", "a film", "not good"]


@pytest.fixture
def tokenizer(tiny_bert):
    return resolve(str(tiny_bert)).tokenizer()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSETICKET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def same(left, right):
    return all(torch.equal(getattr(left, name), getattr(right, name)) for name in ("ids", "types", "starts"))


def test_the_second_run_reads_what_the_first_made(tokenizer, folder, monkeypatch):
    first = tokenize(tokenizer, TEXTS, PAIRS, 16)
    packed, placed = pack(tokenizer, TEXTS, 16), encode(tokenizer, TEXTS)
    assert len(list(folder.iterdir())) == 3
    monkeypatch.setattr(type(tokenizer), "__call__", lambda *_, **__: pytest.fail("tokenized again"))
    assert same(tokenize(tokenizer, TEXTS, PAIRS, 16), first)
    assert torch.equal(pack(tokenizer, TEXTS, 16).ids, packed.ids)
    assert torch.equal(encode(tokenizer, TEXTS).characters, placed.characters)


def test_texts_pairs_length_and_tokenizer_each_have_files_of_their_own(tokenizer, folder, tiny_bert):
    tokenize(tokenizer, TEXTS, PAIRS, 16)
    tokenize(tokenizer, TEXTS, None, 16)
    tokenize(tokenizer, [*TEXTS, "more"], [*PAIRS, "more"], 16)
    tokenize(tokenizer, TEXTS, PAIRS, 12)
    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(tiny_bert)
    other.add_tokens(["dull and"])
    tokenize(other, TEXTS, PAIRS, 16)
    assert len(list(folder.iterdir())) == 5


def test_what_the_tokenizer_was_last_used_for_does_not_matter(tokenizer, folder):
    tokenize(tokenizer, TEXTS, PAIRS, 16)
    tokenizer(["the film"], truncation=True, max_length=9, padding="max_length")
    tokenize(tokenizer, TEXTS, PAIRS, 16)
    assert len(list(folder.iterdir())) == 1


def cut_short(file, _):
    file.write_bytes(file.read_bytes()[:-5])


def flip_a_bit(file, _):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def empty(file, _):
    file.write_bytes(b"")


def put_another_in_its_place(file, other):
    file.write_bytes(other.read_bytes())


@pytest.mark.parametrize("damage", [cut_short, flip_a_bit, empty, put_another_in_its_place])
def test_a_damaged_file_is_made_again(tokenizer, folder, damage):
    expected = tokenize(tokenizer, TEXTS, PAIRS, 16)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    tokenize(tokenizer, TEXTS, PAIRS, 12)
    (other,) = set(folder.iterdir()) - {file}
    damage(file, other)
    assert file.read_bytes() != whole
    assert same(tokenize(tokenizer, TEXTS, PAIRS, 16), expected)
    assert file.read_bytes() == whole


def test_where_nothing_can_be_written_nothing_is_and_the_run_goes_on(tokenizer, folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    assert tokenize(tokenizer, TEXTS, PAIRS, 16).starts[-1] > 0
    assert list(folder.iterdir()) == []


def test_runs_that_start_together_share_one_whole_file(tokenizer, folder, monkeypatch):
    together = threading.Barrier(4)
    make, found = text_batches._tokenize, []

    def at_once(*arguments):
        rows = make(*arguments)
        together.wait(timeout=10)
        return rows

    monkeypatch.setattr(text_batches, "_tokenize", at_once)
    threads = [threading.Thread(target=lambda: found.append(tokenize(tokenizer, TEXTS, PAIRS, 16))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(same(rows, found[0]) for rows in found)
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setattr(text_batches, "_tokenize", lambda *_: pytest.fail("tokenized again"))
    assert same(tokenize(tokenizer, TEXTS, PAIRS, 16), found[0])


def test_without_a_variable_it_is_in_the_users_cache_folder(monkeypatch, tmp_path):
    from sparseticket.files import cache_folder

    monkeypatch.delenv("SPARSETICKET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "sparseticket"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "sparseticket"


def test_where_there_is_no_home_or_the_folder_cannot_be_looked_into_the_run_goes_on(tokenizer, monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSETICKET_CACHE", str(tmp_path / ("long" * 100)))  # an error also for root
    first = tokenize(tokenizer, TEXTS, PAIRS, 16)
    monkeypatch.delenv("SPARSETICKET_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", without_a_home)
    assert same(tokenize(tokenizer, TEXTS, PAIRS, 16), first)
    with pytest.raises(UserError, match="SPARSETICKET_CACHE"):
        files.cache_folder()


def without_a_home(path):
    raise RuntimeError("Could not determine home directory.")
