"""How a command here ends where something is wrong: with one message and an exit code, as ``sparseticket`` does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sparseticket.errors import SparseticketError


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """Around a ``main``: an error for the user is printed, without a traceback."""
    try:
        yield
    except SparseticketError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
