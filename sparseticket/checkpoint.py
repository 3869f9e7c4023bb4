"""The state of a round between two steps, so that a killed round continues after its last checkpoint, bit for bit."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor, nn

from sparseticket.errors import UserError
from sparseticket.tasks import Task
from sparseticket.tensors import load_tensors, save_tensors


def unique_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters and persistent buffers, tied ones once."""
    seen: set[int] = set()
    state = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor
    return state


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as tensors named ``parameter index/key``; its settings are the run's, and not in here."""
    state = optimizer.state_dict()["state"]
    return {f"{i}/{key}": torch.as_tensor(value) for i, entry in state.items() for key, value in entry.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what :func:`optimizer_tensors` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def check_interval(seconds: float) -> None:
    """Refuse a time between checkpoints that is no time."""
    if not seconds >= 0:  # NaN too
        raise UserError(f"--checkpoint-every is a number of seconds from 0, not {seconds}.")


class Checkpoint:
    """One file, replaced every ``every`` seconds; what is in it depends on the step alone, not on the clock."""

    def __init__(self, path: Path, every: float) -> None:
        self.path = path
        self.every = every
        self.seconds = 0.0
        self._last = time.monotonic()

    def due(self) -> bool:
        """True when the last one is old enough."""
        return time.monotonic() - self._last >= self.every

    def save(
        self, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, task: Task, scaler: dict[str, float]
    ) -> None:
        """Write the state after ``step`` steps."""
        begun = time.monotonic()
        parts = {"model": unique_state(module), "optimizer": optimizer_tensors(optimizer), "task": task.state_dict()}
        tensors = {f"{part}/{name}": tensor for part, state in parts.items() for name, tensor in state.items()}
        save_tensors(self.path, tensors, step=step, scaler=scaler)
        self._last = time.monotonic()
        self.seconds += self._last - begun

    @torch.no_grad()
    def load(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, task: Task
    ) -> tuple[int, dict[str, float]] | None:
        """Put the last checkpoint's state back; its step and the loss scaler's state, or None where there is none.

        Raises:
            UserError: the file is damaged, or not of this network.
        """
        if not self.path.exists():
            return None
        tensors, record = load_tensors(self.path)
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "task": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            parts.get(part, {})[rest] = tensor
        live = unique_state(module)
        stored = {name: tensor.shape for name, tensor in parts["model"].items()}
        if stored != {name: tensor.shape for name, tensor in live.items()} or not {"step", "scaler"} <= record.keys():
            raise UserError(f"{self.path} is no checkpoint of this training: remove it, and run again.")
        for name, tensor in live.items():
            tensor.copy_(parts["model"][name])
        load_optimizer_tensors(optimizer, parts["optimizer"])
        task.load_state_dict(parts["task"])
        return record["step"], record["scaler"]
