"""Go on in a new process: what runs in this one may have broken its context on the GPU, or never end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from sparseticket.bench.gpu.lab import DeviceLost, Lab
from sparseticket.bench.gpu.prepare import end_children


@contextmanager
def elsewhere_when_lost(restart: Callable[[], None]) -> Iterator[None]:
    """Where what is inside broke the context: say so, and ``restart``, which does not come back."""
    try:
        yield
    except DeviceLost as lost:
        print(f"{lost} broke the context on the GPU: going on in a new process", file=sys.stderr, flush=True)
        restart()


def go_on_elsewhere(command: Sequence[str], lab: Lab) -> None:
    """Run ``python -m command`` in the place of this process, with the minutes that are left.

    What was noted as broken is left out there, so that each process has less to do than the one before.
    """
    end_children()
    minutes = ["--minutes", str(max(lab.seconds_left / 60, 0.1))]  # the last one counts
    os.execv(sys.executable, [sys.executable, "-m", *command, *minutes])
