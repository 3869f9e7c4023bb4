"""A part of the study in a process of its own: what breaks in it, or is killed, takes nothing else down."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from sparseticket.errors import SparseticketError

ERROR = "error: "
MOST_WORDS = 500


def start(target: Callable[..., object], *arguments: Any, threads: int | None = None, log: Path) -> BaseProcess:
    """Call ``target`` in a fresh Python; what it prints goes to the end of ``log``. Its exit code is 0 if it returns.

    ``threads`` is how many PyTorch may use there.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")  # a fork would inherit the thread pools of the runtimes, broken
    process = context.Process(target=_call, args=(target, arguments, threads, log), name=log.stem)
    process.start()
    return process


def last_words(log: Path) -> str:
    """The last error that a process wrote, or else its last line."""
    text = log.read_text(errors="replace").strip() if log.is_file() else ""
    if ERROR in text:
        return text.rpartition(ERROR)[2][:MOST_WORDS]
    return (text.splitlines() or ["it said nothing"])[-1][:MOST_WORDS]


def _call(target: Callable[..., object], arguments: tuple[Any, ...], threads: int | None, log: Path) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with log.open("a", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
        try:
            if threads:
                import torch

                torch.set_num_threads(threads)
            target(*arguments)
        except SparseticketError as error:
            print(f"{ERROR}{error}")
            sys.exit(error.exit_code)
        except Exception:
            traceback.print_exc()
            sys.exit(1)


def _end_with_parent() -> None:
    """Where the study is killed, nothing goes on in its folders beside the next start."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # files are written whole, so that nothing is half there
