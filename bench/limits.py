"""``--fail-if "p50 > 1.1x"``: what a user's CI will not have."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparseticket.errors import UserError

COMPARISONS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
KEYS = {
    "p50": "p50_ms",
    "p90": "p90_ms",
    "p95": "p95_ms",
    "p99": "p99_ms",
    "load": "load_ms",
    "memory": "memory_bytes",
    "size": "bytes",
}
RULE = re.compile(rf"({'|'.join(KEYS)})\s*(>=|<=|>|<)\s*(\d+(?:\.\d+)?)\s*(x|ms|MB)")
SYNTAX = (
    f"a metric ({', '.join(KEYS)}), a comparison ({', '.join(COMPARISONS)}) and a number with x (times the baseline), "
    'ms or MB, as in "p50 > 1.1x", "p99 > 20ms" or "size > 100MB"'
)


@dataclass(frozen=True)
class Limit:
    """One rule. A model that it is true for fails."""

    text: str
    metric: str
    comparison: str
    number: float
    unit: str  # "x", "ms" or "MB"

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Read a rule; :class:`UserError` that shows the grammar where it is none."""
        match = RULE.fullmatch(text.strip())
        if match is None:
            raise UserError(f"--fail-if {text!r} is no rule: write {SYNTAX}.")
        metric, comparison, number, unit = match.groups()
        fitting = "MB" if metric in ("memory", "size") else "ms"
        if unit not in ("x", fitting):
            raise UserError(
                f"--fail-if {text!r}: {metric} is in {fitting}, not {unit}; or write x, times the baseline."
            )
        return cls(text.strip(), metric, comparison, float(number), unit)

    def failures(self, records: Sequence[dict[str, Any]]) -> list[str]:
        """A line for each record that the rule is true for, or that it cannot be asked of.

        The baseline is what the others are held against: it is asked only where it is alone, and then only about ms
        and MB. Memory is measured on the CPU: records of a GPU are not asked about it.
        """
        judged = [record for record in records if record["against"] is not None]
        if not judged and self.unit != "x":
            judged = list(records)
        if self.metric == "memory":
            judged = [record for record in judged if record["provider"].endswith("-cpu")]
        found = ((record, self._failure(record, _baseline(record, records))) for record in judged)
        return [
            f"{record['name']} ({record['provider']}), {record['cell']}: {words} (--fail-if {self.text!r})"
            for record, words in found
            if words
        ]

    def _failure(self, record: dict[str, Any], baseline: dict[str, Any]) -> str | None:
        key = KEYS[self.metric]
        value, reference = record[key], baseline[key]
        if value is None or (self.unit == "x" and not reference):
            return f"{self.metric} could not be measured here"
        scale, unit = (1e6, "MB") if self.metric in ("memory", "size") else (1.0, "ms")
        measured = value / reference if self.unit == "x" else value / scale
        if not COMPARISONS[self.comparison](measured, self.number):
            return None
        words = f"{self.metric} is {value / scale:.3g} {unit}"
        if self.unit == "x":
            words += f", {measured:.3g}x the {reference / scale:.3g} {unit} of {baseline['name']}"
        return words


def _baseline(record: dict[str, Any], records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if record["against"] is None:
        return record
    return next(
        one
        for one in records
        if one["cell"] == record["cell"] and f"{one['name']} ({one['provider']})" == record["against"]
    )
