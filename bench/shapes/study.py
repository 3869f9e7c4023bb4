"""What is studied: the shapes, their runs, and the cells of the table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sparseticket.errors import UserError
from sparseticket.files import read_json
from sparseticket.options import find_settings
from sparseticket.runs import SETTINGS, check_same_settings, settings_table
from sparseticket.settings import RunSettings

TASK = "sst2"
PRECISIONS = ("fp32", "int8")
THREADS = (1, 2)
DENSE = "dense"


@dataclass(frozen=True)
class Shape:
    """A pattern, the sparsities of the table that its one run goes through, and how its networks are exported."""

    pattern: str
    sparsities: tuple[float, ...] = (0.5, 0.7)
    schedule: str = "steps:0.3,0.5,0.7"
    layout: str = "dense"

    @property
    def slug(self) -> str:
        """The pattern as part of a file's name."""
        return self.pattern.replace(":", "-").replace("+", "-")


# the first run trains the dense round, and the others take it
SHAPES = (
    Shape("unstructured"),
    Shape("block:4x1"),
    Shape("block:64x64"),
    Shape("heads+neurons", layout="shrunk"),
    Shape("2:4", sparsities=(0.5,), schedule="linear:1/4"),
)


@dataclass(frozen=True)
class Cell:
    """One network of the table, exported in one precision. ``shape`` is None for the dense network."""

    shape: Shape | None
    sparsity: float
    precision: str

    @property
    def pattern(self) -> str:
        """The shape's, or "dense"."""
        return self.shape.pattern if self.shape else DENSE

    @property
    def name(self) -> str:
        """Of its JSON and its export."""
        if self.shape is None:
            return f"{DENSE}-{self.precision}"
        return f"{self.shape.slug}-{round(100 * self.sparsity)}-{self.precision}"


BASELINE = Cell(None, 0.0, "fp32")


@dataclass(frozen=True)
class Study:
    """One seed.

    Attributes:
        data: SST-2's folder.
        out: gets ``seed-N/CELL.json``.
        work: gets ``seed-N/``: the runs, the exports and the logs.
        round_length: of every training.
        seconds: how long a model is timed in each cell and number of threads.
        jobs: how many trainings run at once, with one thread each.
    """

    data: Path
    seed: int
    out: Path
    work: Path
    model: str = "minilm"
    round_length: str = "1ep"
    seconds: float = 6.0
    jobs: int = 2
    shapes: tuple[Shape, ...] = SHAPES

    def settings(self, shape: Shape) -> RunSettings:
        """Of the run of ``shape``: the recipe of SST-2 with shorter rounds."""
        return find_settings(
            self.model,
            task=TASK,
            data=self.data,
            seed=self.seed,
            protocol={"pattern": shape.pattern, "schedule": shape.schedule, "sparsity": max(shape.sparsities)},
            training={"round_length": self.round_length},
        )

    def run(self, shape: Shape) -> Path:
        """The run folder of ``shape``."""
        return self._work / shape.slug

    def round(self, cell: Cell) -> Path:
        """The round folder that holds the cell's network."""
        shape = cell.shape or self.shapes[0]
        sparsities = self.settings(shape).protocol.sparsities()
        nearest = min(range(len(sparsities)), key=lambda k: abs(sparsities[k] - cell.sparsity))
        return self.run(shape) / f"round-{nearest:02d}"

    def export(self, cell: Cell) -> Path:
        """The folder of the cell's ONNX file."""
        return self._work / "onnx" / cell.name

    def log(self, name: str) -> Path:
        """Where a training or a measurement says what it does."""
        return self._work / "logs" / f"{name}.log"

    def result(self, cell: Cell) -> Path:
        """The cell's JSON."""
        return self.out / f"seed-{self.seed}" / f"{cell.name}.json"

    def cells(self) -> Iterator[Cell]:
        """All of them; the dense ones first, because the others are compared with dense fp32."""
        for precision in PRECISIONS:
            yield Cell(None, 0.0, precision)
        for shape in self.shapes:
            for sparsity in shape.sparsities:
                for precision in PRECISIONS:
                    yield Cell(shape, sparsity, precision)

    def check_alike(self) -> None:
        """Refuse to go on beside runs or results that other settings made.

        Raises:
            UserError: shows where they differ.
        """
        for shape in self.shapes:
            if (found := self.run(shape) / SETTINGS).is_file():
                check_same_settings(found, settings_table(self.settings(shape)), option="--work")
        for cell in self.cells():
            if (found := self.result(cell)).is_file():
                result = read_json(found)
                training = result.get("training")
                length = training.get("round_length") if isinstance(training, dict) else None
                theirs, ours = (result.get("model"), length), (Path(self.model).name, self.round_length)
                if theirs != ours:
                    raise UserError(
                        f"{found} is of the model {theirs[0]} and rounds of {theirs[1]}, and this study of {ours[0]} "
                        f"and {ours[1]}: choose another folder with --out."
                    )

    @property
    def _work(self) -> Path:
        return self.work / f"seed-{self.seed}"
