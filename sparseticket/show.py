"""What a person sees at the end of a verb; all of it is in a file too. Shares are percent here, fractions in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from sparseticket import masks as mask_algebra
from sparseticket.masks import layer_order
from sparseticket.progress import Screen, clock
from sparseticket.ticket import Ticket
from sparseticket.verdict import Verdict


def percent(value: float | None) -> str:
    """A fraction as percent, or a dash."""
    return "–" if value is None else f"{value:.2%}"


def verdict_word(verdict: dict[str, Any]) -> str:
    """A verdict in a cell of a table."""
    return "no verdict" if verdict["reason"] else str(Verdict(**verdict))


def show_find(screen: Screen, summary: dict[str, Any], folder: Path) -> None:
    """The curve of a run."""
    table = Table("round", "sparsity", summary["metric"], "time", title=f"{summary['model']} on {summary['task']}")
    if summary["start"] is not None:
        table.add_row("before training", percent(0.0), percent(summary["start"]), "–")
    if summary["dense"] is not None and summary["rounds"][0]["sparsity"] > 0:
        table.add_row("dense, for reference", percent(0.0), percent(summary["dense"]), "–")
    for entry in summary["rounds"]:
        table.add_row(str(entry["round"]), percent(entry["sparsity"]), percent(entry["value"]), clock(entry["seconds"]))
    screen.console.print(table)
    screen.say(f"Ticket: {folder / summary['ticket']}\nSummary: {folder / 'summary.json'}")


def show_transfer(screen: Screen, summary: dict[str, Any], folder: Path) -> None:
    """Every arm's mean and spread, the verdict, and for controls what the ticket has more, in points."""
    title = f"{summary['model']} on {summary['task']}, ticket {summary['sparsity']:.2%} sparse"
    table = Table("arm", summary["metric"], "std", "runs", "verdict", "ticket − arm", title=title)
    for name, arm in summary["arms"].items():
        said = "–" if name == "dense" else verdict_word(summary["verdicts"][name])
        to_ticket = difference_to_ticket(summary, name)
        table.add_row(name, percent(arm["mean"]), percent(arm["std"]), str(arm["n"]), said, to_ticket)
    screen.console.print(table)
    verdict = Verdict(*(summary[key] for key in ("matching", "strict", "reason", "winning")))
    screen.say(f"Verdict: {verdict}\nResult: {folder / 'transfer.json'}")


def show_converted(screen: Screen, report: dict[str, Any]) -> None:
    """What became of a ticket that was given a shape."""
    table = Table("parameter", "sparsity before", "after", "magnitude kept", "died", "revived")
    table.title = f"ticket of {report['model']} to {report['pattern']} by {report['by']}"
    for name, layer in sorted(report["layers"].items(), key=lambda item: layer_order(item[0])):
        table.add_row(name, *_of_layer(layer))
    table.add_section()
    table.add_row("all", *_of_layer(report))
    screen.console.print(table)
    if report["magnitude_kept_unpermuted"] is not None:
        screen.say(
            f"Without permutations {percent(report['magnitude_kept_unpermuted'])} of the magnitude would have been "
            f"kept; {len(report['permuted_axes'])} axes are permuted."
        )
    screen.say(f"Of the weights alive now, {percent(report['revived_share'])} were revived from θ.")
    if dead := [name for name, layer in report["layers"].items() if layer["sparsity"] == 1]:
        screen.note(
            f"{len(dead)} of {len(report['layers'])} matrices have no living weight ({dead[0]}, …): --by refill leaves "
            "each layer its density."
        )


def show_matrix(screen: Screen, result: dict[str, Any], folder: Path) -> None:
    """Rows of tickets, columns of tasks: the mean, and its difference to dense and to the ticket of the same task."""
    table = Table("ticket", *result["tasks"], title=f"{result['model']}: value (to dense / to the same task's ticket)")
    for name, arms in dense_of(result).items():
        table.add_row(name, *(mean_and_spread(arms[task], "%", digits=2) for task in result["tasks"]))
    for source, row in result["cells"].items():
        shown = (row[task] for task in result["tasks"])
        table.add_row(
            f"{source} ({result['sources'][source]['sparsity']:.0%})",
            *(
                f"{percent(cell['arms']['ticket']['mean'])} ({points(cell['to_dense'])} / "
                f"{points(cell['to_same_task'])}){' *' if cell['verdict']['matching'] else ''}"
                for cell in shown
            ),
        )
    screen.console.print(table)
    screen.say("*: matching dense, within one standard deviation. Differences are in points.")
    if few := {cell["verdict"]["reason"] for row in result["cells"].values() for cell in row.values()} - {None}:
        screen.note(f"no verdicts: {min(few)}.")
    for source, row in result["over_tasks"].items():
        if row["matching"] or row["failing"]:
            screen.say(f"{source}: {matching_on(row, result['tasks'])}")
    screen.say(f"Result: {folder / 'matrix.json'}\nPicture: {folder / 'matrix.png'}")


def dense_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Of a ``matrix.json``, the dense arms by column under what to call them: tickets of several θ have their own."""
    found: list[tuple[dict[str, Any], list[str]]] = []
    for source, row in result["cells"].items():
        arms = {task: cell["arms"]["dense"] for task, cell in row.items()}
        sources = next((sources for known, sources in found if known == arms), None)
        if sources is None:
            found.append((arms, [source]))
        else:
            sources.append(source)
    if len(found) == 1:
        return {"dense": found[0][0]}
    return {f"dense of {', '.join(sources)}": arms for arms, sources in found}


def matching_on(over_tasks: dict[str, Any], tasks: list[str]) -> str:
    """A ticket's verdict over the tasks of a matrix."""
    matching = over_tasks["matching"]
    named = f" ({', '.join(matching)})" if matching else ""
    said = f"matching on {len(matching)} of {len(tasks)} tasks{named}"
    return said + (", universal over them" if over_tasks["universal"] else "")


def show_sweep(screen: Screen, result: dict[str, Any], folder: Path) -> None:
    """The curve of a sweep over seeds, and the highest sparsity that matches."""
    table = Table("round", "sparsity", "dense", "ticket", "std", "verdict", title=f"sweep, {result['metric']}")
    for point in result["points"]:
        dense, ticket = point["arms"]["dense"], point["arms"]["ticket"]
        means = (percent(dense["mean"]), percent(ticket["mean"]), points(ticket["std"], sign=""))
        table.add_row(str(point["round"]), percent(point["sparsity"]), *means, verdict_word(point["verdict"]))
    screen.console.print(table)
    highest = result["highest"]
    screen.say(f"Highest matching: {percent(highest['matching'])}; strictly: {percent(highest['strict'])}.")
    if highest["undecided"]:
        screen.note("sparsities without a verdict are in neither.")
    if highest["gaps"]:
        screen.note(f"not matching below that: {', '.join(map(percent, highest['gaps']))}.")
    screen.say(f"Result: {folder / 'sweep.json'}")


def show_beside_paper(screen: Screen, title: str, ours: dict[str, float | None], paper: dict[str, Any]) -> None:
    """Our fractions as percent beside what the paper prints, wherever there is one of both."""
    table = Table("", "ours", "the paper's", title=title)
    for name, value in ours.items():
        table.add_row(name, points(value, sign=""), str(paper.get(name, "–")))
    screen.console.print(table)


def mean_and_spread(arm: dict[str, Any] | None, unit: str = "", *, digits: int = 1) -> str:
    """An arm's mean in percent ± its standard deviation, or a dash where there is none."""
    if arm is None:
        return "–"
    mean = f"{100 * arm['mean']:.{digits}f}{unit}"
    return mean if arm["std"] is None else f"{mean} ± {100 * arm['std']:.{digits}f}"


def points(fraction: float | None, sign: str = "+") -> str:
    """A difference of fractions in points, or a dash."""
    return "–" if fraction is None else f"{100 * fraction:{sign}.2f}"


def difference_to_ticket(transfer: dict[str, Any], arm: str) -> str:
    """Ticket minus control over shared seeds, mean ± standard deviation in points; a dash for other arms."""
    found = transfer.get("differences", {}).get(arm)  # files from before there were any have none
    if found is None:
        return "–"
    return points(found["mean"]) if found["std"] is None else f"{points(found['mean'])} ± {points(found['std'], '')}"


def show_control(screen: Screen, made: Ticket, out: Path, report: Path) -> None:
    """What a control is, and where."""
    control = made.metrics["control"]
    screen.say(f"{control['kind']} (seed {control['seed']}) of {control['from'][:8]}: {percent(made.sparsity)} sparse")
    screen.say(f"Ticket: {out}\nReport: {report}")


def show_compared(screen: Screen, result: dict[str, Any], out: Path) -> None:
    """Overlap in each layer and in all, beside chance."""
    table = Table("parameter", "sparsity", "and", "overlap", "by chance", title=f"two tickets of {result['model']}")
    layers = sorted(result["layers"].items(), key=lambda item: layer_order(item[0]))
    for name, entry in [*layers, ("all", result["all"])]:
        if name == "all":
            table.add_section()
        shares = (percent(entry[key]) for key in ("sparsity_first", "sparsity_second"))
        table.add_row(name, *shares, f"{entry['overlap']:.4f}", f"{entry['chance']:.4f}")
    screen.console.print(table)
    if not result["same_theta"]:
        screen.note("the two belong to different weights of this model.")
    if result["left_out"]:
        screen.note(f"in one of the two only, and left out: {', '.join(result['left_out'])}.")
    screen.say("Overlap: alive in both over alive in either; by chance: the same numbers per layer, placed anywhere.")
    screen.say(f"Result: {out}")


def _of_layer(entry: dict[str, Any]) -> tuple[str, ...]:
    shares = (percent(entry[key]) for key in ("sparsity_before", "sparsity", "magnitude_kept"))
    return (*shares, f"{entry['died']:,}", f"{entry['revived']:,}")


def show_kernels(screen: Screen, report: dict[str, Any], picture: Path) -> None:
    """Completely pruned kernels, layer by layer."""
    table = Table("parameter", "kernels", "dead", "share", "dead filters", "sparsity")
    table.title = f"completely pruned kernels of a ticket of {report['model']}"
    for name, layer in report["layers"].items():
        kernels, share = f"{layer['kernels']:,} of {layer['size']}", percent(layer["dead"] / layer["kernels"])
        table.add_row(
            name, kernels, f"{layer['dead']:,}", share, str(layer["dead_filters"]), percent(layer["sparsity"])
        )
    screen.console.print(table)
    total = report["all"]
    if total["kernels"]:
        share = percent(total["dead"] / total["kernels"])
        screen.say(
            f"Larger than 1x1: {total['dead']:,} of {total['kernels']:,} kernels have no living weight ({share})."
        )
    screen.say(f"Picture: {picture}\nFigures: {picture.with_suffix('.json')}")


def show_ticket(screen: Screen, ticket: Ticket) -> None:
    """Sparsity per layer, and provenance."""
    table = Table("parameter", "shape", "alive", "sparsity", title=f"ticket of {ticket.model}")
    counted = mask_algebra.counted(ticket.masks)
    for name, mask in sorted(counted.items(), key=lambda item: layer_order(item[0])):
        shape = " × ".join(map(str, mask.shape))
        table.add_row(name, shape, f"{int(mask.count_nonzero()):,}", percent(mask_algebra.sparsity({name: mask})))
    table.add_section()
    table.add_row("all", "", f"{mask_algebra.alive(ticket.masks):,}", percent(ticket.sparsity))
    screen.console.print(table)
    if vectors := [mask for name, mask in ticket.masks.items() if name not in counted]:
        dead = sum(int((~mask).sum()) for mask in vectors)
        screen.say(f"Not counted: {dead:,} entries of {len(vectors)} biases and BatchNorms that died with their group.")
    facts = {
        "identity": ticket.identity,
        "θ": f"{len(ticket.theta)} tensors" + (f", file {ticket.theta_file}" if ticket.theta_file else ""),
        "round": ticket.round,
        "pattern": ticket.pattern,
        "made from": _fields(ticket.metrics.get("conversion", {})),
        "permuted": f"{len(ticket.permutations)} axes" if ticket.permutations else "–",
        "task": ticket.task.get("name"),
        "data": ticket.task.get("data_id"),
        "protocol": _fields(ticket.protocol),
        "training": _fields(ticket.training),
        "seeds": _fields(ticket.seeds),
        "versions": _fields(ticket.versions),
    }
    for name, value in facts.items():
        screen.say(f"{name + ':':10} {value}")
    for past in ticket.metrics.get("rounds", []):
        screen.say(f"round {past['round']}: {past['sparsity']:.2%} sparse, {past['value']:.2%}")


def show_environment(screen: Screen, found: dict[str, Any]) -> None:
    """Versions, processors, kernels."""
    for library, version in found["versions"].items():
        screen.say(f"{library + ':':14} {version}")
    cpu = found["cpu"]
    screen.say(f"{'platform:':14} {found['platform']}")
    screen.say(f"{'cpu:':14} {cpu['cores']} cores, {cpu['threads']} threads, {cpu['isa']}")
    screen.say(f"{'gpu:':14} {', '.join(found['gpus']) or 'none that torch can use: everything runs on the CPU'}")
    for kernel, state in found.get("kernels", {}).items():
        screen.say(f"{kernel + ':':24} {state}")


def _fields(table: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in table.items()) or "–"
