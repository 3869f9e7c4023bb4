"""A measurement as a table: in Markdown for the file, with rich for the screen."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

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


def rows(result: dict[str, Any]) -> list[list[str]]:
    """One row a record, in the order of ``HEADINGS``."""
    return [_row(record) for record in result["records"]]


def markdown(result: dict[str, Any]) -> str:
    """The whole result as Markdown."""
    machine = result["machine"]
    lines = [
        f"{result['inputs']}; {machine['cpu']}, {machine['threads']} threads" + _gpu(machine),
        "",
        _line(HEADINGS),
        _line("---" for _ in HEADINGS),
        *map(_line, rows(result)),
        "",
        *(f"- {note}" for note in result["notes"]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def show(result: dict[str, Any], console: Console) -> None:
    """Print the result."""
    machine = result["machine"]
    table = Table(title=f"{result['inputs']}; {machine['threads']} threads")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("model", "provider") else "right", overflow="fold")
    for row in rows(result):
        table.add_row(*row)
    console.print(table)
    console.print(machine["cpu"] + _gpu(machine), highlight=False)
    for note in result["notes"]:
        console.print(note)


def _row(record: dict[str, Any]) -> list[str]:
    times = [f"{record[key]:.2f}" for key in ("p50_ms", "p90_ms", "p95_ms", "p99_ms")]
    memory = "" if record["memory_bytes"] is None else f"{record['memory_bytes'] / 1e6:.0f}"
    gain = f"{record['speedup']:.2f}x"
    if record["against"] is not None:
        gain += f" ({record['speedup_low']:.2f}-{record['speedup_high']:.2f})"
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
        gain,
    ]


def _gpu(machine: dict[str, Any]) -> str:
    return f", {machine['gpu']}" if machine["gpu"] else ""


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"
