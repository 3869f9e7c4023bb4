"""Run a study: every step into its own folder, what is finished skipped, and the paper's figures beside ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sparseticket.compare import compare
from sparseticket.control_ticket import make_control
from sparseticket.data_places import data_of
from sparseticket.errors import UserError
from sparseticket.files import read_json, write_json, write_whole
from sparseticket.imp import find
from sparseticket.launch import meet
from sparseticket.matrix import Asked, matrix
from sparseticket.progress import Screen
from sparseticket.recipes.study import Step, Study
from sparseticket.recipes.study_report import markdown
from sparseticket.runs import SUMMARY, TICKET, RunFolder
from sparseticket.settings import RANDOM
from sparseticket.show import show_beside_paper, show_compared, show_find, show_matrix, show_sweep, show_transfer
from sparseticket.tasks import entry
from sparseticket.team import ALONE, Team
from sparseticket.ticket import Ticket
from sparseticket.transfer import transfer
from sparseticket.transfer_plan import TRANSFER_SETTINGS, plan
from sparseticket.verdict import Verdict, highest_matching


def run_study(
    study: Study,
    out: Path,
    *,
    data: Path | None,
    weights: Path | None,
    by_name: Mapping[str, Path],
    screen: Screen,
    team: Team = ALONE,
) -> dict[str, Any]:
    """Run the steps in order; returns (and leaves) ``study.json``: by step, what it gave and what the paper prints.

    ``study.md`` has its tables. The processes of a ``team`` first share the tickets that are to be found, then the
    trainings of each other step.

    Raises:
        UserError: data, weights or a task's library are missing, said before anything is trained; or as a step does.
    """
    screen.say(f"{study.title} ({study.name}): {len(study.steps)} steps into {out}")
    _check_weights(study, by_name)
    running = _Running(study, out, data, weights, by_name, screen, team)
    for task in study.tasks:  # what is missing is said before anything is trained
        entry(task).check_installed()
        running.data_for(task)
    for step in study.steps if team.count > 1 else []:
        if step.verb == "find" and team.takes(f"find {step.name}"):
            if step.dense_round:  # an earlier step, so somebody has taken it
                team.wait_for(f"find {step.dense_round}")
            running.find(step)
            team.finished(f"find {step.name}")
    team.wait("all are found")
    results: dict[str, Any] = {}
    for number, step in enumerate(study.steps, 1):
        screen.say(f"\nStep {number} of {len(study.steps)}: {step.name} ({step.verb} {', '.join(step.of)})")
        try:
            result = running.verbs[step.verb](step)
        except UserError as error:
            raise UserError(f"step {step.name!r} of recipe {study.name}: {error}") from error
        results[step.name] = {"verb": step.verb, "of": step.of, "result": result, "paper": step.paper or None}
        said = {"recipe": study.name, "title": study.title, "steps": results}
        write_json(out / "study.json", said)
        write_whole(out / "study.md", markdown(said))
    screen.say(f"\nAll steps: {out / 'study.json'}\nTables: {out / 'study.md'}")
    return results


def _check_weights(study: Study, given: Mapping[str, Path]) -> None:
    """Every pre-training that a step names has its file, and no other is given."""
    asked = {step.weights for step in study.steps if step.weights not in ("", RANDOM)}
    if missing := sorted(asked - given.keys()):
        ways = " ".join(f"--weights {name}=FILE" for name in missing)
        raise UserError(f"recipe {study.name} begins from pre-trainings that have no usual file: add {ways}.")
    if unknown := sorted(given.keys() - asked):
        named = ", ".join(sorted(asked)) or "none"
        raise UserError(f"recipe {study.name} has no weights called {unknown[0]!r}; it names {named}.")


@dataclass
class _Running:
    study: Study
    out: Path
    data: Path | None
    weights: Path | None
    by_name: Mapping[str, Path]
    screen: Screen
    team: Team

    @property
    def verbs(self) -> dict[str, Callable[[Step], dict[str, Any]]]:
        return {
            "find": self._find,
            "control": self._control,
            "transfer": self._transfer,
            "sweep": self._sweep,
            "matrix": self._matrix,
            "compare": self._compare,
        }

    def _find(self, step: Step) -> dict[str, Any]:
        found = self.find(step)
        show_find(self.screen, found, self.out / step.name)
        return found

    def find(self, step: Step) -> dict[str, Any]:
        settings = self.study.found[step.name]
        weights = self.by_name.get(step.weights, step.weights) if step.weights else self.weights
        settings = replace(
            settings,
            data=str(self.data_for(settings.task) or settings.data),
            weights=str(weights or settings.weights),
        ).whole()
        dense_from = self.out / step.dense_round if step.dense_round else None
        return find(settings, self.out / step.name, screen=self.screen, dense_from=dense_from)

    def _control(self, step: Step) -> dict[str, Any]:
        ticket, source = self._ticket(step.name), self._ticket(step.of[0], step.round)

        def make() -> None:
            with meet().main_process_first():
                if not ticket.is_file():
                    make_control(source, step.kind, ticket, seed=step.seed, weights=None)

        self.team.once(f"control {step.name}", make)
        made = Ticket.load(ticket)
        self.screen.say(f"Ticket: {ticket}, {made.sparsity:.2%} sparse")
        return {**made.metrics["control"], "ticket": made.identity, "sparsity": made.sparsity}

    def _transfer(self, step: Step) -> dict[str, Any]:
        done = self._train(step, self._ticket(step.of[0], step.round), self.out / step.name, others=self._siblings())
        show_transfer(self.screen, done, self.out / step.name)
        if step.paper:
            ours = {arm: entry["mean"] for arm, entry in done["arms"].items()}
            show_beside_paper(self.screen, f"{done['metric']}, %", ours, step.paper)
        return done

    def _sweep(self, step: Step) -> dict[str, Any]:
        points = []
        for number, trained in enumerate(read_json(self.out / step.of[0] / SUMMARY)["rounds"]):
            if trained["sparsity"] > 0:
                folder = self.out / step.name / f"round-{number:02d}"
                done = self._train(step, self._ticket(step.of[0], number), folder, others=self._siblings())
                points.append({"round": number, "sparsity": done["sparsity"], "arms": done["arms"]})
                points[-1]["verdict"] = done["verdicts"]["ticket"]
        highest = highest_matching([(point["sparsity"], Verdict(**point["verdict"])) for point in points])
        result = {"metric": done["metric"], "points": points, "highest": asdict(highest)}
        write_json(self.out / step.name / "sweep.json", result)
        show_sweep(self.screen, result, self.out / step.name)
        if step.paper:
            show_beside_paper(
                self.screen, "highest sparsity, %", {"matching": highest.matching, "strict": highest.strict}, step.paper
            )
        return result

    def _matrix(self, step: Step) -> dict[str, Any]:
        asked = Asked(
            sources={name: self._ticket(name) for name in step.of},
            tasks=step.tasks,
            seeds=step.seeds,
            controls=tuple(step.controls),
            data_by_task={task: place for task in step.tasks if (place := self.data_for(task))},
            training=self.study.training | step.training,
        )
        result = matrix(asked, self.out / step.name, screen=self.screen, others=self._siblings(), team=self.team)
        show_matrix(self.screen, result, self.out / step.name)
        for source, row in step.paper.items():
            ours = {task: cell["to_dense"] for task, cell in result["cells"][source].items()}
            show_beside_paper(self.screen, f"{source}, difference to dense in points", ours, row)
        return result

    def _compare(self, step: Step) -> dict[str, Any]:
        folder = self.out / step.name
        first, second = (self._ticket(name) for name in step.of)
        result = compare(first, second, out=folder / "compare.json")
        show_compared(self.screen, result, folder / "compare.json")
        return result

    def _train(self, step: Step, path: Path, folder: Path, *, others: list[Path]) -> dict[str, Any]:
        ticket = Ticket.load(path)
        task = step.task or ticket.task["name"]
        loaded, settings, _ = plan(
            path,
            task=task,
            data=self.data_for(task),
            seeds=step.seeds,
            controls=tuple(step.controls),
            training=self.study.training | step.training,
        )
        return transfer(loaded, settings, folder, screen=self.screen, others=others, team=self.team)

    def _ticket(self, name: str, number: int = -1) -> Path:
        """The ticket of a step: of a round, or the only one that a control has (beside its run, and its own θ)."""
        step = next(step for step in self.study.steps if step.name == name)
        if step.verb == "control":
            return self.out / step.of[0] / step.name / f"{step.name}.ticket"
        run = RunFolder(self.out / name)
        rounds = len(read_json(run.path / SUMMARY)["rounds"])
        return run.round(range(rounds)[number]) / TICKET

    def data_for(self, task: str) -> Path | None:
        return data_of(task, self.data, alone=len(self.study.tasks) == 1)

    def _siblings(self) -> list[Path]:
        """Every transfer of this study: what they finished under the same settings is not trained again."""
        return sorted(path.parent for path in self.out.rglob(TRANSFER_SETTINGS))
