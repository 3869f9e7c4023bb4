"""Where an exported model comes from: what goes into the file's own metadata, as names and numbers, never paths."""

from __future__ import annotations

from dataclasses import dataclass

from sparseticket import __version__
from sparseticket.export.source import Source
from sparseticket.files import read_json
from sparseticket.ticket import Ticket

DEFAULT_LENGTH, DEFAULT_BATCH = 128, 32


@dataclass(frozen=True)
class Provenance:
    """What is known of a source; None and "" where it does not say.

    Attributes:
        ticket: what the model was trained under.
        task: name of the task it was trained on, and its metric and value (a fraction) at the end of the training.
        max_length: tokens of a text in that training.
        batch_size: examples a step, where a ticket says so.
    """

    label: str
    ticket: Ticket | None = None
    task: str = ""
    metric: str = ""
    value: float | None = None
    max_length: int = DEFAULT_LENGTH
    batch_size: int = DEFAULT_BATCH

    def entries(self, sparsity: float) -> dict[str, str]:
        """Entries of ``metadata_props``; ``sparsity`` is that of all linear and convolution weights of the model."""
        entries = {"version": __version__, "source": self.label, "sparsity": f"{sparsity:.6f}"}
        if self.ticket is not None:
            entries |= {
                "model": self.ticket.model,
                "ticket": self.ticket.identity,
                "ticket_sparsity": f"{self.ticket.sparsity:.6f}",
                "pattern": self.ticket.pattern,
            }
        if self.task:
            entries |= {"task": self.task}
        if self.value is not None:
            entries |= {"metric": self.metric, "value": f"{self.value:.6f}"}
        return {f"sparseticket.{key}": text for key, text in entries.items()}


def read(source: Source) -> Provenance:
    """What the ticket and the metrics beside a model say: of a transfer's model its own task, not the ticket's.

    Raises:
        UserError: the ticket or the metrics are damaged.
    """
    file = source.model.parent / "metrics.json"
    measured = read_json(file) if file.is_file() else {}
    if source.ticket is None and "task" not in measured:
        return Provenance(source.label)
    ticket = Ticket.load(source.ticket) if source.ticket else None
    found = ticket.task if ticket else {}
    lengths = measured.get("max_length"), ticket.training.get("max_length") if ticket else None
    batch = ticket.training.get("batch_size") if ticket else None
    value = measured.get("value")
    return Provenance(
        label=source.label,
        ticket=ticket,
        task=str(measured.get("task", found.get("name", ""))),
        metric=str(measured.get("metric", found.get("metric", ""))),
        value=float(value) if isinstance(value, int | float) else None,
        max_length=next((length for length in lengths if isinstance(length, int)), DEFAULT_LENGTH),
        batch_size=batch if isinstance(batch, int) and batch > 0 else DEFAULT_BATCH,
    )
