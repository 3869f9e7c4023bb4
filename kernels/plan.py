"""A layer's choices by its number of rows: looked up once, before the first forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

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
    def up_to(cls, most: int, choice: Choice) -> Plan:
        """One pass: ``choice`` with at most so many rows, dense with more."""
        return cls.always(choice) if most >= ANY else cls(((most, (choice,)), (ANY, (Choice(),))))

    @classmethod
    def from_table(cls, table: Table, cases: Sequence[Case], density: float) -> Plan:
        """What the table says of each case, one a pass."""
        bounds = {ANY}
        for case in cases:
            measured = [cell.m for cell in table.rows(case, density)]
            if measured:
                bounds |= {(measured[0] - 1) // 2, *measured, *(m - 1 for m in measured), 2 * measured[-1]}
        steps: list[tuple[int, tuple[Choice, ...]]] = []
        for bound in sorted(bounds - {0}):
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
        """The choices for ``m`` rows. Under ``torch.compile`` each bound that is asked is one guard."""
        for bound, choices in self.steps[:-1]:
            if m <= bound:
                return choices
        return self.steps[-1][1]


def rows_of(x: Tensor) -> int:
    """How many rows a linear sees in ``x [..., K]``."""
    return x.numel() // x.shape[-1]
