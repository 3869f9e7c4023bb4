"""Where an exported model comes from: what goes into the file's own metadata, as names and numbers, never paths."""

from __future__ import annotations

from dataclasses import dataclass

from sparseticket import __version__
from sparseticket.export.source import Source
from sparseticket.runs import read_json
from sparseticket.ticket import Ticket

DEFAULT_LENGTH = 128


@dataclass(frozen=True)
class Provenance:
    """What is known of a source; None and "" where it does not say.

    Attributes:
        ticket: what the model was trained under.
        task: name of the task it was trained on, and its metric and value (a fraction) at the end of the training.
        max_length: tokens of a text in that training.
    """

    label: str
    ticket: Ticket | None = None
    task: str = ""
    metric: str = ""
    value: float | None = None
    max_length: int = DEFAULT_LENGTH

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
    """What the ticket and the metrics beside a model say.

    Raises:
        UserError: the ticket is damaged.
    """
    if source.ticket is None:
        return Provenance(source.label)
    ticket = Ticket.load(source.ticket)
    measured = source.model.parent / "metrics.json"
    value = read_json(measured).get("value") if measured.is_file() else None
    return Provenance(
        label=source.label,
        ticket=ticket,
        task=str(ticket.task.get("name", "")),
        metric=str(ticket.task.get("metric", "")),
        value=float(value) if isinstance(value, int | float) else None,
        max_length=int(ticket.training.get("max_length", DEFAULT_LENGTH)),
    )
