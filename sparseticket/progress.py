"""What is seen while work goes on: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_EVERY = 30.0  # seconds between two lines where there is no terminal
PLAIN_WIDTH = 120  # of tables where there is no terminal
LONG = 1800.0  # an estimate above this is announced after the first ten steps
OnStep = Callable[[int, int, float], None]


def literal_console(**options: Any) -> Console:
    """A console that prints text as it is: ``[word]`` and ``:word:`` in a path, a name or a note are no markup."""
    return Console(markup=False, emoji=False, **options)


class Screen:
    """Prints, on the main process only, and shows how far a training is.

    ``quiet`` prints nothing: the other processes of a distributed run, and tests.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = literal_console(quiet=quiet, highlight=False, soft_wrap=True)
        if not self.console.is_terminal:
            self.console.width = PLAIN_WIDTH
        self.expect(1, shorter="")
        self._notes: set[str] = set()

    def expect(self, trainings: int, *, shorter: str) -> None:
        """Say how many trainings the work has, for the estimate, and what would make it shorter."""
        self.trainings, self.shorter, self._announced = trainings, shorter, False

    def say(self, text: str) -> None:
        """Print one message."""
        self.console.print(text)

    def note(self, text: str) -> None:
        """Print a note, once however often it is given."""
        if text not in self._notes:
            self._notes.add(text)
            self.say(f"Note: {text}")

    @contextmanager
    def training(self, title: str) -> Iterator[OnStep]:
        """Show one training; yields ``on_step(steps done, steps in all, loss)``."""
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal, transient=True) as bars:
            bar = bars.add_task(title, total=None, loss=float("nan"))

            def update(step: int, total: int, loss: float) -> None:
                bars.update(bar, completed=step, total=total, loss=loss)

            yield self._on_step(title, update)

    @contextmanager
    def regrouping(self) -> Iterator[Callable[[int, int, float], None]]:
        """Show a search for permutations; yields ``on_axis(axes done, axes in all, share of magnitude kept)``."""
        begun = last_line = time.monotonic()
        columns = (*Progress.get_default_columns(), TextColumn("keeps {task.fields[kept]:.2%}"))
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal, transient=True) as bars:
            bar = bars.add_task("regrouping", total=None, kept=0.0, visible=False)

            def on_axis(done: int, total: int, kept: float) -> None:
                nonlocal last_line
                bars.update(bar, completed=done, total=total, kept=kept, visible=True)
                now = time.monotonic()
                if not self.console.is_terminal and now - last_line >= PLAIN_EVERY:
                    last_line, left = now, (now - begun) / done * (total - done)
                    self.say(f"regrouping: axis {done} of {total}, keeps {kept:.2%}, {clock(left)} left")

            yield on_axis

    def _on_step(self, title: str, update: OnStep) -> OnStep:
        first: list[float] = []  # the time of this training's first step here, and how many steps there were by then
        last_line = time.monotonic()

        def on_step(step: int, total: int, loss: float) -> None:
            nonlocal last_line
            now = time.monotonic()
            first.extend([now, step] if not first else [])
            update(step, total, loss)
            seen = step - first[1]
            a_step = (now - first[0]) / seen if seen else 0.0
            if seen == 10:
                self._announce(a_step * total * self.trainings)
            if not self.console.is_terminal and now - last_line >= PLAIN_EVERY:
                last_line = now
                self.say(f"{title}: step {step} of {total}, loss {loss:.3f}, {clock(a_step * (total - step))} left")

        return on_step

    def _announce(self, estimate: float) -> None:
        if not self._announced and estimate >= LONG:
            self.say(
                f"This will take about {clock(estimate)} for {self.trainings} trainings. Shorter: {self.shorter}. "
                "Stop it with Ctrl-C at any time, and run the same command again to continue."
            )
        self._announced = True


def clock(seconds: float) -> str:
    """Seconds as people say them: 45 s, 12 min, 3.4 h, 2.1 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"
