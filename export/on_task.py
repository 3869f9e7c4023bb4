"""The task that a model was trained on: made for the exported model, and measured on the file beside PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from sparseticket.errors import RunFailure, UserError
from sparseticket.export.loaded_model import LoadedModel
from sparseticket.export.onnx_module import OnnxModule
from sparseticket.models import Head, resolve
from sparseticket.models.scene import head_of
from sparseticket.models.vision_saved import describe_saved
from sparseticket.tasks import Task, TaskOptions, make_task

CLASSES = {
    "sequence-classification": "ForSequenceClassification",
    "regression": "ForSequenceClassification",
    "masked-lm": "ForMaskedLM",
    "question-answering": "ForQuestionAnswering",
}


def make(
    name: str,
    data: Path | None,
    model: LoadedModel,
    folder: Path,
    *,
    max_length: int,
    batch_size: int = 32,
    ours: bool = True,
) -> Task:
    """The task ``name`` with the tokenizer or image format of the model in ``folder``.

    ``ours`` says that a task of this package trained it, so that its classes have the names in the data.

    Raises:
        UserError: its data cannot be read, or it needs another head or other classes than the model has.
    """
    length = min(max_length, model.max_length or max_length)
    options = TaskOptions(data=data, batch_size=batch_size, max_length=length)
    spec = resolve(str(folder)) if model.kind == "text" else describe_saved(folder).spec()
    task = make_task(name, spec, options)
    if not (_fits(task.head, model.module) if model.kind == "text" else _gives(task.head, model)):
        raise UserError(
            f"task {name} needs a model for {task.head.kind}"
            + (f" with {task.head.classes} classes" if task.head.classes else "")
            + f", and this {type(model.module).__name__} is another: name the task it was trained on with --task."
        )
    known, asked = _class_names(model, folder), _folded(task.head.labels or getattr(task, "class_names", ()))
    if known and asked and known != asked and (ours or set(known) & set(asked)):
        raise UserError(
            f"the data of {name} have the classes {_shown(asked)}, and this model knows {_shown(known)}: its answers "
            "would be taken for other classes. Give the data that it was trained on."
        )
    return task


def compare(task: Task, model: LoadedModel, file: Path, allowed_drop: float) -> dict[str, Any]:
    """The task's metric of the ONNX file and of PyTorch, as fractions.

    Raises:
        RunFailure: the file's is lower by more than ``allowed_drop``.
    """
    pytorch = float(task.evaluate(model.module)[task.metric])
    onnx = float(task.evaluate(OnnxModule(model, file))[task.metric])
    if not onnx >= pytorch - allowed_drop:
        raise RunFailure(
            f"the exported file has {task.metric} {onnx:.4f} on {task.name}, PyTorch {pytorch:.4f}; it may lose at "
            f"most {allowed_drop:g}. Nothing was kept."
        )
    return {"name": task.name, "metric": task.metric, "pytorch": pytorch, "onnx": onnx}


def _class_names(model: LoadedModel, folder: Path) -> list[str]:
    """The names that the model was saved with. A text model may have its own words for the same classes."""
    if model.kind == "vision":
        return _folded(describe_saved(folder).class_names or ())
    names = getattr(model.module.config, "id2label", None) or {}
    listed = _folded(names[number] for number in sorted(names))
    return [] if all(name.startswith("label_") for name in listed) else listed  # transformers' own, who knows no better


def _folded(names: Iterable[object]) -> list[str]:
    return [str(name).casefold() for name in names]


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")


def _gives(head: Head, model: LoadedModel) -> bool:
    """The same head; or features, on which the tasks with a projection head measure retrieval."""
    if head.kind == "projection":
        return model.outputs == ("features",)
    if scene := head_of(model.module):
        return (scene.kind, scene.classes) == (head.kind, head.classes)
    return (
        head.kind == "image-classification"
        and model.outputs == ("logits",)
        and model.answer(model.example(1))["logits"].shape[-1] == head.classes
    )


def _fits(head: Head, module: nn.Module) -> bool:
    same_kind = type(module).__name__.endswith(CLASSES.get(head.kind, ""))
    classes = 1 if head.kind == "regression" else head.classes
    return same_kind and (not classes or module.config.num_labels == classes)
