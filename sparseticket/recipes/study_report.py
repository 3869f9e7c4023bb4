"""What a study gave, as Markdown tables: ``study.md`` beside its ``study.json``."""

from __future__ import annotations

from typing import Any

from sparseticket.markdown import table
from sparseticket.show import dense_of, difference_to_ticket, matching_on, percent, points, verdict_word


def markdown(study: dict[str, Any]) -> str:
    """The tables of a ``study.json``, a section a step. Shares are percent, differences points."""
    lines = [f"# {study['title']}", "", f"`sparseticket run {study['recipe']}`"]
    for name, step in study["steps"].items():
        lines += ["", f"## {name}", "", *_BY_VERB[step["verb"]](step["result"], step["paper"] or {})]
    return "\n".join(lines) + "\n"


def _find(result: dict[str, Any], paper: dict[str, Any]) -> list[str]:
    rows = [[str(entry["round"]), percent(entry["sparsity"]), percent(entry["value"])] for entry in result["rounds"]]
    title = f"Found on {result['task']} with {result['model']}; dense {percent(result['dense'])}."
    return [title, "", *table(["round", "sparsity", result["metric"]], rows)]


def _control(result: dict[str, Any], paper: dict[str, Any]) -> list[str]:
    return [f"{result['kind']} (seed {result['seed']}) of {result['from'][:8]}, {percent(result['sparsity'])} sparse."]


def _transfer(result: dict[str, Any], paper: dict[str, Any]) -> list[str]:
    headings = ["arm", "runs", "mean", "std", "n", "verdict", "ticket − arm", *(["the paper's"] if paper else [])]
    rows = [
        [
            *_arm(name, arm),
            _verdict(result["verdicts"].get(name)),
            difference_to_ticket(result, name),
            *([str(paper.get(name, "–"))] if paper else []),
        ]
        for name, arm in result["arms"].items()
    ]
    title = f"{result['metric']} on {result['task']}, ticket {percent(result['sparsity'])} sparse."
    return [title, "", *table(headings, rows)]


def _sweep(result: dict[str, Any], paper: dict[str, Any]) -> list[str]:
    rows = [
        [percent(point["sparsity"]), *_mean(point["arms"]["ticket"]), _verdict(point["verdict"])]
        for point in result["points"]
    ]
    highest = result["highest"]
    said = [f"Highest matching: {percent(highest['matching'])}; strictly: {percent(highest['strict'])}."]
    said += [f"The paper's: {', '.join(f'{name} {value}' for name, value in paper.items())}."] if paper else []
    return [*table(["sparsity", "mean", "std", "n", "verdict"], rows), "", *said]


def _matrix(result: dict[str, Any], paper: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for task, target in result["targets"].items():
        with_paper = any(task in row for row in paper.values())
        headings = ["ticket", "runs", "mean", "std", "n", "to dense", "to the same task's ticket", "verdict"]
        rows = [[*_arm(name, arms[task]), "–", "–", "–"] for name, arms in dense_of(result).items()]
        for source, row in result["cells"].items():
            cell = row[task]
            differences = [points(cell["to_dense"]), points(cell["to_same_task"])]
            rows.append([*_arm(source, cell["arms"]["ticket"]), *differences, _verdict(cell["verdict"])])
        if with_paper:
            headings.append("the paper's to dense")
            rows = [[*row, str(paper.get(row[0], {}).get(task, "–"))] for row in rows]
        lines += [f"{target['metric']} on {task}:", "", *table(headings, rows), ""]
    for source, over in result["over_tasks"].items():
        lines.append(f"- {source}: {matching_on(over, result['tasks'])}")
    return lines


def _compare(result: dict[str, Any], paper: dict[str, Any]) -> list[str]:
    rows = [
        [name, percent(entry["sparsity_first"]), percent(entry["sparsity_second"]), *_overlap(entry)]
        for name, entry in [("all", result["all"]), *result["layers"].items()]
    ]
    return table(["parameter", "sparsity", "and", "overlap", "by chance"], rows)


def _overlap(entry: dict[str, Any]) -> list[str]:
    return [f"{entry['overlap']:.4f}", f"{entry['chance']:.4f}"]


def _arm(name: str, arm: dict[str, Any]) -> list[str]:
    runs = ", ".join(points(value, sign="") for value in arm["values"])
    return [name, runs, *_mean(arm)]


def _mean(arm: dict[str, Any]) -> list[str]:
    return [points(arm["mean"], sign=""), points(arm["std"], sign=""), str(arm["n"])]


def _verdict(verdict: dict[str, Any] | None) -> str:
    return "–" if verdict is None else verdict_word(verdict)


_BY_VERB = {
    "find": _find,
    "control": _control,
    "transfer": _transfer,
    "sweep": _sweep,
    "matrix": _matrix,
    "compare": _compare,
}
