"""What can run as one product for inference: linears over the same input, and the activation behind a linear."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

SAME_INPUT = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"))
OTHER_INPUTS = ("crossattention", "encoder_attn", "EncDecAttention")  # queries of one input, keys of another
BEHIND = ("dense", "intermediate_act_fn")  # the linear and its activation in transformers' BERT-like feed-forward
PROBE = torch.linspace(-6, 6, 97)


@dataclass(frozen=True)
class Activation:
    """The activation behind a linear: which one, and the module and attribute that it is."""

    kind: str
    parent: nn.Module
    name: str

    def take(self) -> nn.Module:
        """Put nothing in its place; returns it."""
        function = getattr(self.parent, self.name)
        setattr(self.parent, self.name, nn.Identity())
        return function

    def give_back(self, function: nn.Module) -> None:
        """Put it back."""
        setattr(self.parent, self.name, function)


def groups_over_one_input(model: nn.Module, layers: Mapping[str, nn.Linear]) -> list[tuple[str, ...]]:
    """The names of ``layers``, in their order, those that may take the same input together.

    Linears of one parent that are called query, key and value, are as deep in inputs, and of one dtype.
    """
    taken: dict[str, tuple[str, ...]] = {}
    for path, _ in model.named_modules():
        if path.rpartition(".")[2] in OTHER_INPUTS:
            continue
        for members in SAME_INPUT:
            names = tuple(f"{path}.{member}.weight".lstrip(".") for member in members)
            if all(name in layers for name in names):
                modules = [layers[name] for name in names]
                if len({(module.in_features, module.weight.dtype) for module in modules}) == 1:
                    taken |= dict.fromkeys(names, names)
    return list(dict.fromkeys(taken.get(name, (name,)) for name in layers))


def activation_behind(model: nn.Module, name: str) -> Activation | None:
    """The activation behind the linear whose weight is called ``name``, where an epilogue can compute it."""
    path, _, own = name.removesuffix(".weight").rpartition(".")
    parent = model.get_submodule(path)
    function = getattr(parent, BEHIND[1], None)
    if own != BEHIND[0] or not isinstance(function, nn.Module):
        return None
    try:
        with torch.no_grad():
            result = function(PROBE)
    except Exception:  # one with parameters on a GPU, say: none of these
        return None
    for kind, exact in (("gelu", F.gelu), ("relu", F.relu)):  # GELU by tanh is off by 5e-4 and is left alone
        if torch.allclose(result, exact(PROBE), rtol=0, atol=1e-6):
            return Activation(kind, parent, BEHIND[1])
    return None
