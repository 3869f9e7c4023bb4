"""Tasks by name. A new task is one file of this folder, whose class registers itself here."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sparseticket.errors import UserError
from sparseticket.models import ModelSpec, image_models
from sparseticket.tasks.base import Batch, Task, TaskOptions

__all__ = ["Batch", "Task", "TaskEntry", "TaskOptions", "check_options", "entries", "entry", "make_task", "register"]


@dataclass(frozen=True)
class TaskEntry:
    """A registered task: how to make it, for which kind of model, and the recipe that holds its default settings."""

    name: str
    kind: str  # "text" or "vision"
    recipe: str  # e.g. "neurips20/sst2"
    make: Callable[[ModelSpec, TaskOptions], Task]
    library: str = ""  # one that comes with this package's extra of the task's name
    options: tuple[str, ...] = ()  # settings that mean nothing to tasks which do not name them

    def check_installed(self) -> None:
        """Raise :class:`UserError`, with what to install, where the task's library is missing."""
        if self.library and importlib.util.find_spec(self.library) is None:
            raise UserError(f"task {self.name} needs {self.library}: pip install 'sparseticket[{self.name}]'")


_REGISTRY: dict[str, TaskEntry] = {}
OF_TEXT = ("max_length", "prune_pooler")  # options of every task on texts, and of no other


def register(name: str, *, kind: str, recipe: str, library: str = "", options: Sequence[str] = ()) -> Callable:
    """Register a class or function ``(spec, options) -> Task`` as the task ``name``."""
    own = (*options, *(OF_TEXT if kind == "text" else ()))

    def add(make: Callable[[ModelSpec, TaskOptions], Task]) -> Callable[[ModelSpec, TaskOptions], Task]:
        _REGISTRY[name] = TaskEntry(name, kind, recipe, make, library, own)
        return make

    return add


def entries() -> dict[str, TaskEntry]:
    """All tasks of this folder's files by name."""
    for file in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{file.name}")
    return dict(sorted(_REGISTRY.items()))


def entry(name: str) -> TaskEntry:
    """The registered task ``name``; :class:`UserError` with close matches where there is none."""
    known = entries()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise UserError(f"there is no task {name!r}.{hint} Tasks: {', '.join(known)}.")
    return known[name]


def check_options(name: str, said: Iterable[str]) -> None:
    """Raise :class:`UserError` for an option that was said and is another task's: nothing would come of it."""
    found = entry(name)
    for option in said:
        whose = [other.name for other in entries().values() if option in other.options]
        if whose and option not in found.options:
            owners = "tasks on texts" if option in OF_TEXT else " and ".join(whose)
            shown = f"--{option.replace('_', '-')}"
            raise UserError(f"{shown} is for {owners}, and changes nothing of {name}: leave it out.")


def make_task(name: str, spec: ModelSpec, options: TaskOptions) -> Task:
    """Make the task ``name`` for a model; reads (and checks) its data."""
    found = entry(name)
    if found.kind != spec.kind:
        images = ", ".join(image_models())
        why = f" (a folder or hub name always is; models for images: {images})" if spec.kind == "text" else ""
        raise UserError(
            f"task {name!r} is for {found.kind} models and {spec.name!r} is a {spec.kind} model{why}: "
            "choose another of the two."
        )
    found.check_installed()
    return found.make(spec, options)
