"""A layer's choices by its number of rows: looked up once, before the first forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparseticket.kernels.dispatch import Case, Choice, Table

ANY = 2**62  # rows; no tensor has more


@dataclass(frozen=True)
class Plan:
    """For up to ``steps[i][0]`` rows (and more than ``steps[i - 1][0]``), the choice of each pass, ``steps[i][1]``."""

    steps: tuple[tuple[int, tuple[Choice, ...]], ...]

    @classmethod
    def always(cls, *choices: Choice) -> Plan:
        """The same whatever the rows."""
        return cls(((ANY, choices),))

    @classmethod
    def from_table(cls, table: Table, cases: Sequence[Case], density: float) -> Plan:
        """What the table says of each case, one a pass."""
        measured = sorted({cell.m for case in cases for cell in table.rows(case, density)})
        if not measured:
            return cls.always(*[Choice()] * len(cases))
        bounds = [(measured[0] - 1) // 2]
        for m in measured:
            bounds += [m - 1, m]
        bounds += [2 * measured[-1], ANY]
        steps: list[tuple[int, tuple[Choice, ...]]] = []
        for bound in sorted(set(bounds) - {0}):
            choices = tuple(table.choose(case, bound, density) for case in cases)
            if steps and steps[-1][1] == choices:
                steps.pop()
            steps.append((bound, choices))
        return cls(tuple(steps))

    @property
    def is_dense(self) -> bool:
        """No kernel at any number of rows."""
        return all(choice == Choice() for _, choices in self.steps for choice in choices)

    def at(self, m: int) -> tuple[Choice, ...]:
        """The choices for ``m`` rows. Under ``torch.compile`` each bound passed is one guard."""
        for bound, choices in self.steps:
            if m <= bound:
                return choices
        return self.steps[-1][1]
