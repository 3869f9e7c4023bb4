"""Kernels of convolutions under a mask: which are pruned completely, layer by layer, and all of them as a picture.

A kernel is the k x k slice that one filter has for one input channel (CVPR 2021, arXiv 2012.06908, its heat maps of
masks). In a 1x1 convolution it is a single weight, so those are listed and left out of the total.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch.nn.functional as F
from torch import Tensor

from sparseticket import masks as mask_algebra
from sparseticket.errors import UserError
from sparseticket.files import write_json, write_whole
from sparseticket.masks import layer_order
from sparseticket.ticket import Ticket

LARGEST_PANEL = 128  # cells a side; larger layers are averaged to it
COLUMNS = 9


def kernel_report(ticket: Ticket) -> dict[str, Any]:
    """How many kernels a ticket prunes completely: ``layers`` by name in order of depth, and ``all`` larger than 1x1.

    Each entry has ``size`` ("3x3"), ``kernels``, ``dead``, ``dead_filters`` (outputs without a living weight) and
    ``sparsity``, a fraction.

    Raises:
        UserError: the ticket prunes no convolution.
    """
    layers = {}
    for name, mask in _convolutions(ticket).items():
        living = mask.flatten(2).any(dim=2)  # [out, in]
        layers[name] = {
            "size": "x".join(map(str, mask.shape[2:])),
            "kernels": living.numel(),
            "dead": int((~living).sum()),
            "dead_filters": int((~living.any(dim=1)).sum()),
            "sparsity": mask_algebra.sparsity({name: mask}),
        }
    larger = [entry for entry in layers.values() if entry["size"] != "1x1"]
    total = {key: sum(entry[key] for entry in larger) for key in ("kernels", "dead")}
    return {"model": ticket.model, "ticket": ticket.identity, "layers": layers, "all": total}


def draw(ticket: Ticket, out: Path) -> dict[str, Any]:
    """Write ``out``, a PNG, and the report beside it as JSON; returns the report.

    One panel a layer, from the input to the output: rows are its filters, columns its input channels, the colour how
    many weights of a kernel live.

    Raises:
        UserError: the ticket prunes no convolution, or ``out`` is no place for a picture.
    """
    if out.suffix.lower() != ".png" or out.is_dir():
        raise UserError(f"--kernels {out}: name a .png file for the picture; its figures go beside it, as .json.")
    report, convolutions = kernel_report(ticket), _convolutions(ticket)
    columns = min(COLUMNS, len(convolutions))
    rows = math.ceil(len(convolutions) / columns)
    figure, panels = plt.subplots(rows, columns, figsize=(1.7 * columns + 0.8, 1.95 * rows + 0.6), squeeze=False)
    for panel in panels.flat:
        panel.axis("off")
    for panel, (name, mask) in zip(panels.flat, convolutions.items(), strict=False):
        entry = report["layers"][name]
        shown = panel.imshow(_shrunk(mask), cmap="magma", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        share = entry["dead"] / entry["kernels"]
        panel.set_title(f"{name.removesuffix('.weight')}\n{entry['size']}, {share:.0%} dead", fontsize=7)
    figure.suptitle(
        f"{ticket.model}, {ticket.sparsity:.2%} sparse: share of each kernel's weights that live "
        "(rows: filters, columns: inputs)",
        fontsize=9,
    )
    figure.colorbar(shown, ax=panels, shrink=0.5, pad=0.01)
    write_whole(out, lambda path: figure.savefig(path, format="png", dpi=130, bbox_inches="tight"))
    plt.close(figure)
    write_json(out.with_suffix(".json"), report)
    return report


def _convolutions(ticket: Ticket) -> dict[str, Tensor]:
    masks = ticket.masks
    found = {name: masks[name] for name in sorted(masks, key=layer_order) if masks[name].dim() == 4}
    if not found:
        raise UserError(f"this ticket of {ticket.model!r} prunes no convolution, so it has no kernels.")
    return found


def _shrunk(mask: Tensor) -> Tensor:
    """The share alive in each kernel, [out, in], averaged to at most :data:`LARGEST_PANEL` a side."""
    alive = mask.float().mean(dim=(2, 3))
    side = [min(LARGEST_PANEL, length) for length in alive.shape]
    return F.adaptive_avg_pool2d(alive[None], side)[0]
