"""Controls: what a ticket is compared with. Each gives an arm other masks, or other weights, than the ticket has.

Every draw is a function of the kind and a seed: ``transfer --control KIND`` trains with seed s just what
``control --kind KIND --seed s`` writes. Masks keep the ticket's pattern, or the control is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparseticket import masks as mask_algebra
from sparseticket.errors import UserError
from sparseticket.masks import Masks
from sparseticket.models import Network
from sparseticket.pattern import NOfM, Unstructured
from sparseticket.pruning import Pruner
from sparseticket.pruning.score import magnitude
from sparseticket.seeds import derive, generator

FLIP = "flip:"


@dataclass(frozen=True)
class Control:
    """One kind of control.

    Attributes:
        masks: from the ticket's masks, its pattern in the network, the weights that the masks lie on and a seed; None
            keeps the ticket's masks.
        weights: from the network at θ, the names of θ's tensors and a seed, those tensors anew; None keeps θ.
        check: raises :class:`UserError` where a ticket cannot have this control. Cheap: called before any work.
    """

    masks: Callable[[Masks, Pruner, Mapping[str, Tensor], int], Masks] | None = None
    weights: Callable[[Network, Collection[str], int], dict[str, Tensor]] | None = None
    check: Callable[[Masks, Pruner, Network], object] = lambda masks, pruner, network: None


def control_of(kind: str) -> Control:
    """The control of that name; :class:`UserError` lists them where there is none."""
    if isinstance(kind, str) and kind.startswith(FLIP):
        share = _share(kind)
        return Control(
            masks=lambda masks, pruner, weights, seed: mask_algebra.flip(masks, share, seed=seed), check=_single_weights
        )
    if not isinstance(kind, str) or kind not in CONTROLS:
        raise UserError(
            f"there is no control {kind!r}. Controls: {', '.join(CONTROLS)}, flip:0.1. (Rewinding to a step and "
            "standard pruning are searches: find --rewind 5%, find --rewind none.)"
        )
    return CONTROLS[kind]


def check_control(kind: str) -> str:
    """The kind, when there is such a control."""
    control_of(kind)
    return kind


def one_shot(masks: Masks, pruner: Pruner, weights: Mapping[str, Tensor], seed: int) -> Masks:
    """θ's own largest weights (groups by their mean): as sparse as the ticket, with no training before."""
    scores = magnitude({name: weights[name] for name in pruner.shapes})
    return pruner.select(scores, pruner.dense(), mask_algebra.sparsity(masks))


def complement(masks: Masks, pruner: Pruner, weights: Mapping[str, Tensor], seed: int) -> Masks:
    """What the ticket pruned is alive and the other way round: 70 % sparse becomes 30 % (CVPR 2021)."""
    return pruner.groups.masks(~pruner.kept(masks)) if pruner.groups else mask_algebra.complement(masks)


def random_weights(network: Network, names: Collection[str], seed: int) -> dict[str, Tensor]:
    """The backbone as its architecture initialises it: embeddings and normalisation too (BERT-Tickets' ``rand``)."""
    fresh = network.spec.untrained(network, seed=derive(seed, "random-weights")).backbone()
    return {name: fresh[name].detach() for name in names}


def shuffled_weights(network: Network, names: Collection[str], seed: int) -> dict[str, Tensor]:
    """The entries of each tensor of θ in another order: its distribution stays, what it had learned does not."""
    backbone = network.backbone()

    def shuffled(name: str) -> Tensor:
        tensor = backbone[name].detach().cpu()
        if not tensor.is_floating_point():  # BatchNorm's counters
            return tensor
        order = torch.randperm(tensor.numel(), generator=generator(seed, "shuffled-weights", name))
        return tensor.flatten()[order].reshape(tensor.shape)

    return {name: shuffled(name) for name in names}


def shuffled_layers(network: Network, names: Collection[str], seed: int) -> dict[str, Tensor]:
    """Whole encoder layers in another order, each as it was: what the released code calls shuffled weights."""
    backbone, (layers, count) = network.backbone(), _layers(network.backbone_module)
    draw = generator(seed, "shuffled-layers")
    order = torch.arange(count)
    while torch.equal(order, torch.arange(count)):
        order = torch.randperm(count, generator=draw)

    def source(name: str) -> str:
        if not name.startswith(layers):
            return name
        number, _, rest = name.removeprefix(layers).partition(".")
        return f"{layers}{int(order[int(number)])}.{rest}"

    return {name: backbone[source(name)].detach().cpu().clone() for name in names}


def _layers(backbone: nn.Module) -> tuple[str, int]:
    """What the names of the encoder's layers begin with, and how many there are."""
    for name, part in backbone.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) > 1:
            shapes = [{inner: t.shape for inner, t in layer.state_dict().items()} for layer in part]
            if shapes[0] and all(other == shapes[0] for other in shapes):
                return f"{name}.", len(part)
    raise UserError(
        "shuffled-layers puts whole encoder layers in another order, and this model has no layers that are alike: "
        "use shuffled-weights."
    )


def _share(kind: str) -> float:
    try:
        share = float(kind.removeprefix(FLIP))
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise UserError(f"{kind!r}: a flip says which share of the living is pruned, above 0 and up to 1: flip:0.1.")
    return share


def _single_weights(masks: Masks, pruner: Pruner, network: Network) -> None:
    if not isinstance(pruner.pattern, Unstructured):
        raise UserError(f"flip draws single weights, which would break the pattern {pruner.pattern}: use random-mask.")


def _has_complement(masks: Masks, pruner: Pruner, network: Network) -> None:
    pattern = pruner.pattern
    if isinstance(pattern, NOfM) and 2 * pattern.n != pattern.m:
        raise UserError(f"the complement of {pattern} has {pattern.m - pattern.n} of {pattern.m}: not this pattern.")
    if pruner.groups is not None:
        others = ~pruner.kept(masks)
        if not others[pruner.groups.best_of_each_layer(others.int())].all():
            raise UserError(f"the complement of this ticket would leave a layer without any {pattern}: it has none.")
    elif mask_algebra.alive(masks) == mask_algebra.size(masks):
        raise UserError("this ticket is dense: nothing is alive in its complement.")


CONTROLS: dict[str, Control] = {
    # as many alive in all as in the ticket, placed evenly over all tensors together
    "random-mask": Control(masks=lambda masks, pruner, weights, seed: pruner.draw(masks, seed=seed)),
    # as many alive in each layer as in the ticket
    "random-mask-per-layer": Control(
        masks=lambda masks, pruner, weights, seed: pruner.draw_per_layer(masks, seed=seed)
    ),
    "one-shot": Control(masks=one_shot),
    "complement": Control(masks=complement, check=_has_complement),
    "random-weights": Control(weights=random_weights),
    "shuffled-weights": Control(weights=shuffled_weights),
    "shuffled-layers": Control(
        weights=shuffled_layers, check=lambda masks, pruner, network: _layers(network.backbone_module)
    ),
}
