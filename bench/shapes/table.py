"""The table of all seeds that were measured, from the JSON of their cells.

python -m sparseticket.bench.shapes.table [bench/results/shapes [docs/shapes.md]]
"""

from __future__ import annotations

import statistics
import sys
import textwrap
from pathlib import Path
from typing import Any

from sparseticket.bench.messages import errors_as_messages
from sparseticket.bench.shapes.study import DENSE, PRECISIONS, SHAPES, THREADS
from sparseticket.errors import UserError
from sparseticket.files import read_json, write_whole
from sparseticket.markdown import table

RESULTS, DOCUMENT = Path("bench/results/shapes"), Path("docs/shapes.md")
Key = tuple[str, float, str]  # pattern, sparsity, precision
NONE = "–"
NEEDED = {"pattern", "sparsity", "precision", "seed", "value", "trained_sparsity", "bytes", "latency", "machine"} | {
    "training",
    "task",
    "model",
    "metric",
    "inputs",
    "layout",
}
ALIKE = ("task", "model", "training")  # in all cells of a table
HEADINGS = (
    "shape",
    "sparsity %",
    *(f"accuracy % {precision}" for precision in PRECISIONS),
    *(f"MB {precision}" for precision in PRECISIONS),
    *(f"{precision}, {threads} thread{'s' if threads > 1 else ''}" for precision in PRECISIONS for threads in THREADS),
)


def read(out: Path) -> dict[Key, list[dict[str, Any]]]:
    """The cells of every seed in ``out``, by what they are.

    Raises:
        UserError: there are none, one is damaged, or they are of different models, tasks or trainings.
    """
    found: dict[Key, list[dict[str, Any]]] = {}
    first: tuple[Path, dict[str, Any]] | None = None
    for path in sorted(out.glob("seed-*/*.json")):
        cell = read_cell(path)
        first = first or (path, cell)
        for name in ALIKE:
            if cell[name] != first[1][name]:
                raise UserError(
                    f"{path} and {first[0]} do not belong in one table: {name} is {cell[name]} in one, and "
                    f"{first[1][name]} in the other. Keep each study in a folder of its own."
                )
        found.setdefault((cell["pattern"], cell["sparsity"], cell["precision"]), []).append(cell)
    if not found:
        raise UserError(f"there are no results in {out}: run python -m sparseticket.bench.shapes first.")
    return found


def read_cell(path: Path) -> dict[str, Any]:
    """One cell's JSON; :class:`UserError` where it is none."""
    cell = read_json(path)
    if missing := sorted(NEEDED - cell.keys()):
        raise UserError(f"{path} lacks {missing[0]}: remove it, and measure that cell again.")
    return cell


def words(cell: dict[str, Any]) -> str:
    """A cell in one line."""
    times = ", ".join(f"{one['speedup']:.2f}x on {threads}" for threads, one in cell["latency"].items())
    return f"{cell['value']:.2%}, {cell['bytes'] / 1e6:.1f} MB, {times} thread(s)"


def markdown(found: dict[Key, list[dict[str, Any]]]) -> str:
    """The document: what was done, the table, how to read it."""
    cells = [cell for group in found.values() for cell in group]
    seeds = sorted({cell["seed"] for cell in cells})
    first = cells[0]
    machines = sorted({f"{cell['machine']['cpu']}, {cell['machine']['cores']} cores" for cell in cells})
    steps = sorted({cell["training"]["steps"] for cell in cells})
    versions = sorted({f"{lib} {version}" for cell in cells for lib, version in cell["machine"]["versions"].items()})
    seed_words = f"Seed {seeds[0]}" if len(seeds) == 1 else f"Seeds {', '.join(map(str, seeds))} (mean ± std)"
    paragraphs = (
        "Written by `python -m sparseticket.bench.shapes.table` from the JSON in `bench/results/shapes/`, which "
        "`python -m sparseticket.bench.shapes --data glue/SST-2 --seed N` measures.",
        f"{first['model']} fine-tuned on {first['task']}: rounds of {first['training']['round_length']} "
        f"({', '.join(map(str, steps))} steps). The dense round is the same for all shapes; then 30 → 50 → 70 % by "
        "three prunings, in one run a shape (2:4 is 4:4 → 3:4 → 2:4). Heads and neurons are exported shrunk. "
        f"{first['metric'].capitalize()} is that of the ONNX file on the development set. Latency: ONNX Runtime, "
        f"{first['inputs']}, beside the dense fp32 file in interleaved calls: times as fast, with the 95 % interval "
        "where it is of one seed, and the median.",
        f"{seed_words}; {'; '.join(machines)}; {', '.join(versions)}.",
    )
    lines = [
        "# Shapes of zeros: what they cost, what they gain",
        "",
        *(line for text in paragraphs for line in (textwrap.fill(text, 120, break_on_hyphens=False), "")),
        *table(HEADINGS, (_row(found, *row) for row in _rows(found))),
    ]
    return "\n".join(lines) + "\n"


def _rows(found: dict[Key, list[dict[str, Any]]]) -> list[tuple[str, float]]:
    order = [DENSE, *(shape.pattern for shape in SHAPES)]
    return sorted({key[:2] for key in found}, key=lambda row: (order.index(row[0]), row[1]))


def _row(found: dict[Key, list[dict[str, Any]]], pattern: str, sparsity: float) -> list[str]:
    groups = {precision: found.get((pattern, sparsity, precision), []) for precision in PRECISIONS}
    measured = next(group for group in groups.values() if group)
    return [
        pattern,
        _spread([100 * cell["trained_sparsity"] for cell in measured]),
        *(_spread([100 * cell["value"] for cell in group]) for group in groups.values()),
        *(_spread([cell["bytes"] / 1e6 for cell in group], digits=1) for group in groups.values()),
        *(
            _speed([cell["latency"][str(threads)] for cell in group])
            for group in groups.values()
            for threads in THREADS
        ),
    ]


def _spread(values: list[float], *, digits: int = 2) -> str:
    if not values:
        return NONE
    mean = f"{statistics.mean(values):.{digits}f}"
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return mean if round(spread, digits) == 0 else f"{mean} ± {spread:.{digits}f}"


def _speed(records: list[dict[str, Any]]) -> str:
    if not records:
        return NONE
    times = _spread([record["p50_ms"] for record in records], digits=1) + " ms"
    if len(records) > 1:
        return f"{_spread([record['speedup'] for record in records])}×, {times}"
    (only,) = records
    return f"{only['speedup']:.2f}× ({only['speedup_low']:.2f}–{only['speedup_high']:.2f}), {times}"


@errors_as_messages()
def main() -> None:
    """Print the table, and write it."""
    given = [Path(argument) for argument in sys.argv[1:]]
    results, document = given + [RESULTS, DOCUMENT][len(given) :]
    text = markdown(read(results))
    write_whole(document, text)
    print(text)
    print(f"Written to {document}")


if __name__ == "__main__":
    main()
