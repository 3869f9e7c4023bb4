"""Figures on disk: one JSON file for each entry, written whole when it is finished; a run skips what is there."""

from __future__ import annotations

import datetime
import json
import platform
from pathlib import Path
from typing import Any

import torch

from sparseticket.errors import UserError
from sparseticket.files import write_json
from sparseticket.provenance import versions

LOST = "lost"  # key of a failed figure: the entry broke the context on the GPU, or never ended


class Figures:
    """The figures of one folder, all of one GPU and one set of versions."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self._folder, self.about = folder / "figures", about
        file = folder / "about.json"
        if file.exists():
            was = json.loads(file.read_text())
            different = [key for key in ("gpu", "versions", "rehearsal") if was.get(key) != about[key]]
            if different:
                raise UserError(
                    f"{folder} holds figures of another {' and '.join(different)} "
                    f"({was.get(different[0])}, and here it is {about[different[0]]}): give another --out."
                )
            self.about = was
        else:
            write_json(file, about)

    def has(self, name: str) -> bool:
        """A finished figure is there; one that failed is tried again, unless it took the process along."""
        figure = self.get(name)
        return "error" not in figure or figure.get(LOST, False)

    def get(self, name: str) -> dict[str, Any]:
        """The figure, or one that says that there is none."""
        file = self._folder / f"{name}.json"
        return json.loads(file.read_text()) if file.exists() else {"error": "not measured yet"}

    def write(self, name: str, figure: dict[str, Any]) -> None:
        """Keep a figure."""
        write_json(self._folder / f"{name}.json", {"name": name, "about": self.about, **figure})


def describe(gpu: str, *, rehearsal: bool) -> dict[str, Any]:
    """GPU, versions, date; nothing that names the machine or its user."""
    return {
        "gpu": gpu,
        "rehearsal": rehearsal,
        "date": datetime.date.today().isoformat(),
        "versions": versions(("torch", "triton", "transformers")) | {"cuda": torch.version.cuda or "none"},
        "system": platform.system(),
    }
