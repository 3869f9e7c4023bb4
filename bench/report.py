"""A measurement as tables, one a cell: in Markdown for the file, with rich for the screen; and as CSV."""

from __future__ import annotations

import csv
import io
from typing import Any

from rich.console import Console
from rich.table import Table

from sparseticket.markdown import table

HEADINGS = (
    "model",
    "provider",
    "p50",
    "p90",
    "p95",
    "p99 ms",
    "n",
    "rows/s",
    "MB",
    "load ms",
    "RAM MB",
    "zero",
    "speed-up",
)


def by_cell(result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The records of each cell, by its words, in the order they were measured in."""
    cells: dict[str, list[dict[str, Any]]] = {}
    for record in result["records"]:
        cells.setdefault(record["cell"], []).append(record)
    return cells


def markdown(result: dict[str, Any]) -> str:
    """The whole result as Markdown."""
    lines = [_machine(result)]
    for words, records in by_cell(result).items():
        lines += ["", f"**{words}**", "", *table(HEADINGS, map(_row, records))]
    lines += ["", *(f"- {note}" for note in result["notes"]), *(f"- failed: {line}" for line in result["failures"])]
    return "\n".join(lines).rstrip() + "\n"


def csv_text(result: dict[str, Any]) -> str:
    """A line a record, with all its fields; what is not known is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(result["records"][0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(result["records"])
    return text.getvalue()


def show(result: dict[str, Any], console: Console) -> None:
    """Print the result."""
    for words, records in by_cell(result).items():
        table = Table(title=words)
        for heading in HEADINGS:
            table.add_column(heading, justify="left" if heading in ("model", "provider") else "right", overflow="fold")
        for record in records:
            table.add_row(*_row(record))
        console.print(table)
    console.print(_machine(result), highlight=False)
    for note in result["notes"]:
        console.print(note)


def gain(record: dict[str, Any]) -> str:
    """The speed-up, with its interval where it is one."""
    words = f"{record['speedup']:.2f}x"
    if record["against"] is not None:
        words += f" ({record['speedup_low']:.2f}-{record['speedup_high']:.2f})"
    return words


def milliseconds(value: float) -> str:
    """To a hundredth, below 1 ms to a thousandth."""
    return f"{value:.{2 if value >= 1 else 3}f}"


def _row(record: dict[str, Any]) -> list[str]:
    times = [milliseconds(record[key]) for key in ("p50_ms", "p90_ms", "p95_ms", "p99_ms")]
    memory = "" if record["memory_bytes"] is None else f"{record['memory_bytes'] / 1e6:.0f}"
    return [
        record["name"],
        record["provider"],
        *times,
        str(record["n"]),
        f"{record['throughput']:.1f}",
        f"{record['bytes'] / 1e6:.1f}",
        f"{record['load_ms']:.0f}",
        memory,
        f"{100 * record['sparsity']:.0f} %",
        gain(record),
    ]


def _machine(result: dict[str, Any]) -> str:
    machine = result["machine"]
    how = f"model folders in PyTorch: {result['pytorch']}" if result["pytorch"] else None
    return "; ".join(filter(None, (machine["cpu"], machine["gpu"], how)))
