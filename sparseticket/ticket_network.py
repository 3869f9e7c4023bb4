"""The network that a ticket belongs to, at its θ, under any head: for what needs weights or structure and no task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparseticket.errors import UserError
from sparseticket.models import Network, resolve
from sparseticket.released import ANY_HEAD
from sparseticket.rewind import Origin
from sparseticket.runs import SETTINGS, read_settings
from sparseticket.ticket import Ticket
from sparseticket.transfer_plan import check_weights, own_theta


def network_of(ticket: Ticket, path: Path, weights: Path | None) -> Network:
    """A network that holds the ticket's θ: from ``weights``, its run, or the model's own. It is not permuted.

    Raises:
        UserError: the weights are missing, or are not the ticket's θ.
    """
    check_weights(weights)
    settings = path.resolve().parent.parent / SETTINGS
    run = read_settings(settings) if settings.is_file() else None
    kept = own_theta(ticket, path)
    if ticket.theta_file and not (kept or weights):
        raise UserError(
            "the weights that this ticket belongs to are in the theta.safetensors of its run, which is missing beside "
            "it: give that file with --weights FILE."
        )
    found = weights or kept or (Path(run.weights) if run and run.weights else None)
    spec = resolve(run.model if run else ticket.model)
    if spec.kind == "vision" and found is not None:
        spec = _for_stem(spec, found)
    network = spec.build(ANY_HEAD[spec.kind], seed=0, weights=found)
    origin = Origin.of(network)
    ticket.check_theta(origin.theta(network.pretrained or frozenset(origin.backbone)))
    return network


def _for_stem(spec: Any, weights: Path) -> Any:
    """The model for small images, where the file is of such a one: its first convolution is 3×3."""
    from sparseticket.models.torchvision_resnet import SMALL_IMAGES
    from sparseticket.models.vision import STEM
    from sparseticket.models.vision_weights import read_weights

    stem = read_weights(weights).tensors.get(STEM)
    return spec.for_images(SMALL_IMAGES) if stem is not None and stem.shape[-1] == 3 else spec
