"""What can be removed whole: attention heads, FFN neurons, channels inside a residual block; and all that goes with it.

To mask rows alone leaves GELU(bias)·W behind (measured 0.04 in the output, and 0.29 through BatchNorm). So a family
names every end of its entries; masking, shrinking and permuting all read it here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

KINDS = ("heads", "neurons", "channels")

# query, key, value, output: BERT (RoBERTa, ELECTRA, …), DistilBERT, MPNet, ALBERT
ATTENTIONS = (
    ("self.query", "self.key", "self.value", "output.dense"),
    ("q_lin", "k_lin", "v_lin", "out_lin"),
    ("attn.q", "attn.k", "attn.v", "attn.o"),
    ("query", "key", "value", "dense"),
)
FEED_FORWARDS = (("intermediate.dense", "output.dense"), ("lin1", "lin2"), ("ffn", "ffn_output"))
# producer, its BatchNorm, consumer: a residual block's first two; a Bottleneck has both
INNER_CHANNELS = (("conv1", "bn1", "conv2"), ("conv2", "bn2", "conv3"))


@dataclass(frozen=True)
class Slice:
    """Entry i of a family owns indices [i·size, (i+1)·size) of dimension ``dim`` of the backbone's tensor ``name``."""

    name: str
    dim: int
    size: int


@dataclass(frozen=True)
class Family:
    """All heads of one attention, all neurons of one FFN, or all inner channels between two convolutions.

    Attributes:
        kind: "heads", "neurons" or "channels".
        layer: path of the attention, of the layer with the FFN, or of the convolution whose filters are the channels.
        count: how many entries (heads, neurons, channels) there are.
        slices: every end: producers' rows and biases, BatchNorm's weight, bias and running statistics, consumers'
            columns.
    """

    kind: str
    layer: str
    count: int
    slices: tuple[Slice, ...]


def families(backbone: nn.Module, kind: str) -> list[Family]:
    """Every family of ``kind`` in a BERT-like encoder or a ResNet, in model order; none where it has no such thing.

    Names are those inside ``backbone`` (an encoder without its head; a ResNet as it is). The channels that a residual
    sum adds up belong to no family.
    """
    find = {"heads": _heads, "neurons": _neurons, "channels": _channels}[kind]
    return [family for path, module in backbone.named_modules() for family in find(path, module)]


def _heads(path: str, attention: nn.Module) -> Iterator[Family]:
    for *inputs, output in ATTENTIONS:
        size = _head_size(attention, *inputs, output)
        if size:
            rows = [end for name in inputs for end in _rows(attention, path, name, size)]
            count = attention.get_submodule(output).in_features // size
            yield Family("heads", path, count, (*rows, Slice(_join(path, f"{output}.weight"), 1, size)))


def _head_size(attention: nn.Module, *layers: str) -> int | None:
    """The size of a head that the attention module states (MobileBERT's differs from its configuration's).

    None if query, key, value and output do not all consist of such heads, or if a convolution follows them (ConvBERT,
    Nyströmformer).
    """
    if not _has(attention, nn.Linear, *layers):
        return None
    *inputs, output = (attention.get_submodule(name) for name in layers)
    owner = attention.get_submodule(layers[0].rpartition(".")[0])
    size, width = getattr(owner, "attention_head_size", None), output.in_features
    follows = any(isinstance(part, nn.Conv1d | nn.Conv2d) for part in owner.modules())
    alike = size and not width % size and all(layer.out_features == width for layer in inputs)
    return size if alike and not follows else None


def _neurons(path: str, layer: nn.Module) -> Iterator[Family]:
    for first, second in FEED_FORWARDS:
        if _has(layer, nn.Linear, first, second):
            ends = (*_rows(layer, path, first, 1), Slice(_join(path, f"{second}.weight"), 1, 1))
            yield Family("neurons", path, layer.get_submodule(first).out_features, ends)


def _channels(path: str, block: nn.Module) -> Iterator[Family]:
    for conv, norm, consumer in INNER_CHANNELS:
        if _has(block, nn.Conv2d, conv, consumer) and _ungrouped(block, conv, consumer):
            ends = (
                *_rows(block, path, conv, 1),
                *_rows(block, path, norm, 1),
                Slice(_join(path, f"{consumer}.weight"), 1, 1),
            )
            yield Family("channels", _join(path, conv), block.get_submodule(conv).out_channels, ends)


def _rows(parent: nn.Module, path: str, name: str, size: int) -> Iterator[Slice]:
    """The first dimension of all that the layer ``name`` holds, where it holds it."""
    layer = parent.get_submodule(name)
    for part in ("weight", "bias", "running_mean", "running_var"):
        if getattr(layer, part, None) is not None:
            yield Slice(_join(path, f"{name}.{part}"), 0, size)


def _has(module: nn.Module, kind: type[nn.Module], *paths: str) -> bool:
    return all(isinstance(_part(module, path), kind) for path in paths)


def _ungrouped(block: nn.Module, *convolutions: str) -> bool:
    return all(block.get_submodule(name).groups == 1 for name in convolutions)


def _part(module: nn.Module | None, path: str) -> nn.Module | None:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
