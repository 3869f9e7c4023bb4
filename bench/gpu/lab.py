"""Where a run measures and with what: the device, the folder, the time left, and the table that grows meanwhile."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch

from sparseticket.bench.gpu.clocks import CLOCKS, Mode
from sparseticket.bench.gpu.figures import describe
from sparseticket.files import write_whole
from sparseticket.kernels.clock import Clock
from sparseticket.kernels.dispatch import Case, Choice, Measured, Table
from sparseticket.kernels.tune import measure

log = logging.getLogger(__name__)
CELL = 180.0  # seconds that no cell takes, even where nothing was compiled ahead
SMALLER = 24  # by how much a rehearsal shrinks a weight's sides


class DeviceLost(Exception):
    """A kernel broke this process's context on the GPU: nothing runs in it any more, but in another it does."""


@dataclass
class Lab:
    """A run of the command. A rehearsal does the same on the CPU with tiny shapes, and measures nothing.

    Attributes:
        out: where figures and the table are written.
        seconds: how long the run may take.
        data: folder of SST-2 in GLUE's layout, or None.
        minilm: folder of a MiniLM with its tokenizer, or None.
        table_file: the dispatcher's table; by default ``table.json`` in ``out``.
        restart: goes on in a new process, where there is a way to; see :meth:`gives_up_after`.
    """

    out: Path
    rehearse: bool = False
    seconds: float = 480.0
    data: Path | None = None
    minilm: Path | None = None
    table_file: Path | None = None
    restart: Callable[[], None] | None = None
    begun: float = field(default_factory=time.monotonic)
    _watch: threading.Timer | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Where the table lies follows from the folder."""
        self.table_file = self.table_file or self.out / "table.json"

    @property
    def device(self) -> str:
        """Where everything runs."""
        return "cpu" if self.rehearse else "cuda"

    @property
    def seconds_left(self) -> float:
        """Until the run should end."""
        return self.begun + self.seconds - time.monotonic()

    @property
    def rounds(self) -> int:
        """In how many rounds the arms take turns."""
        return 2 if self.rehearse else 20

    @property
    def masks(self) -> int:
        """How many masks of each kind."""
        return 2 if self.rehearse else 5

    @property
    def layers(self) -> int:
        """Of a BERT."""
        return 2 if self.rehearse else 12

    def side(self, size: int) -> int:
        """A weight's side, or a small one of whole blocks."""
        return max(32, size // SMALLER // 16 * 16) if self.rehearse else size

    def rows(self, m: int) -> int:
        """Rows of the input."""
        return min(m, 32) if self.rehearse else m

    def block(self, side: int) -> tuple[int, int]:
        """A square block."""
        return (16, 16) if self.rehearse else (side, side)

    def clock(self, mode: Mode) -> Clock:
        """The clock of a mode; one each, for a cold one holds 256 MB."""
        if mode not in self._clocks:
            self._clocks[mode] = CLOCKS[mode](self.device)
        return self._clocks[mode]

    @cached_property
    def _clocks(self) -> dict[Mode, Clock]:
        return {}

    @cached_property
    def table(self) -> Table:
        """What was measured for the dispatcher, now or before with the same versions; else one begins anew."""
        about = describe(self.gpu, rehearsal=self.rehearse)
        new = Table(self.gpu, about["versions"], about["date"])
        there = Table.load(self.table_file) if self.table_file.exists() else new
        return there if (there.gpu, there.versions) == (new.gpu, new.versions) else new

    @property
    def results_file(self) -> Path:
        """Where everything is gathered at the end; a rehearsal has no results."""
        return self.out / ("rehearsal.json" if self.rehearse else "results.json")

    @property
    def gpu(self) -> str:
        """The GPU's name."""
        return "rehearsal" if self.rehearse else torch.cuda.get_device_name()

    def cell(self, case: Case, m: int, density: float) -> Measured:
        """The table's cell, measured now where there is none, every tiling tried; the table is saved."""
        for cell in self.table.cells:
            if (cell.case, cell.m, cell.density) == (case, m, density):
                return cell
        thorough, rounds = not self.rehearse, 3 if self.rehearse else 30
        clock = self.clock("cold graph")
        measure_it = partial(measure, case, m, density, self.device, thorough=thorough, rounds=rounds, clock=clock)
        return self.keep_measured(case, m, density, measure_it)

    def try_cell(self, case: Case, m: int, density: float) -> None:
        """:meth:`cell`; where it fails, the table goes without."""
        self.try_to(partial(self.cell, case, m, density), f"{case} of {m} rows")

    def try_to(self, measure_it: Callable[[], object], what: str) -> None:
        """Call it, and only say so where it fails; a broken context is no failure of its own."""
        try:
            measure_it()
        except DeviceLost:
            raise
        except Exception as error:
            log.warning("%s could not be measured: %s: %s", what, type(error).__name__, error)

    def keep(self, cell: Measured) -> None:
        """Put a cell into the table, and save it."""
        self.table.add(cell)
        write_whole(self.table_file, self.table.to_json())

    def keep_measured(self, case: Case, m: int, density: float, measure_it: Callable[[], Measured]) -> Measured:
        """:meth:`keep` a cell as it is measured now.

        Raises:
            DeviceLost: measuring it broke the context. The cell is dense then, so that nobody tries it again.
        """
        dense = Measured(case, m, density, Choice(), 1.0, 1.0, 1.0)
        try:
            with self.gives_up_after(CELL, partial(self.keep, dense)):
                cell = measure_it()
        except Exception:
            if not self.is_lost():
                raise
        if self.is_lost():  # also where what broke it was taken for a candidate that does not run
            self.keep(dense)
            raise DeviceLost(f"{case} of {m} rows")
        self.keep(cell)
        return cell

    @contextmanager
    def gives_up_after(self, seconds: float, note: Callable[[], object]) -> Iterator[None]:
        """If the block takes longer than this: call ``note``, and go on in a new process.

        A kernel that hangs never gives control back to Python, but while Python waits for it another thread can run.
        Of nested blocks only the inner one is timed; the outer one's time begins anew after it.
        """
        if self.restart is None:
            yield
            return

        def give_up() -> None:
            print(f"nothing came back for {seconds:.0f} s: going on in a new process", file=sys.stderr, flush=True)
            try:
                note()
            except Exception as error:
                log.warning("this could not be noted: %s", error)
            self.restart()

        outer = self._watch
        self._watch_with(threading.Timer(seconds, give_up))
        try:
            yield
        finally:
            self._watch_with(outer and threading.Timer(outer.interval, outer.function))

    def _watch_with(self, timer: threading.Timer | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._watch = timer
        if timer is not None:
            timer.daemon = True
            timer.start()

    def is_lost(self) -> bool:
        """Whether a kernel broke this process's context on the GPU."""
        if self.device != "cuda":
            return False
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return True
        return False

    def tiles(self, case: Case, m: int, density: float) -> list[int]:
        """The best tiles there, whether or not they beat dense; empty (the kernel's own choice) if none could run."""
        best = self.cell(case, m, density).best
        return [] if best == Choice() else list(best.tiles)
