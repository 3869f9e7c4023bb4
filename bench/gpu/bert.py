"""BERT-base with random weights, made from its configuration: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparseticket.bench.gpu.lab import Lab
from sparseticket.bench.gpu.masks import ranked_masks

ROWS, TOKENS = 32, 128
VOCABULARY = 30522
RECOMPILE_LIMIT = 64  # every arm is a network of its own, and dynamo keeps them under one piece of code


def build(lab: Lab, seed: int = 0) -> nn.Module:
    """A sequence classifier of two classes."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=100 if lab.rehearse else VOCABULARY,
        hidden_size=lab.side(768),
        num_hidden_layers=1 if lab.rehearse else lab.layers,  # every arm is traced: most of a rehearsal's time
        num_attention_heads=2 if lab.rehearse else 12,
        intermediate_size=4 * lab.side(768),
        problem_type="single_label_classification",  # or the first forward sets it, and the second compiles anew
    )
    return BertForSequenceClassification(config).to(lab.device)


def batch(lab: Lab, lengths: list[int] | None = None, seed: int = 0) -> dict[str, Tensor]:
    """Random tokens: 32 × 128, or rows of these lengths, padded to the longest."""
    draw = torch.Generator().manual_seed(seed)
    rows = [lab.rows(TOKENS)] * (2 if lab.rehearse else ROWS) if lengths is None else lengths
    longest = max(rows)
    found = {
        "input_ids": torch.randint(0, 100, (len(rows), longest), generator=draw),
        "labels": torch.randint(0, 2, (len(rows),), generator=draw),
    }
    if lengths is not None:
        found["attention_mask"] = (torch.arange(longest)[None, :] < torch.tensor(rows)[:, None]).long()
    return {name: tensor.to(lab.device) for name, tensor in found.items()}


def encoder_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The matrices that IMP prunes, by name."""
    return {n: p for n, p in model.named_parameters() if ".encoder.layer." in n and p.ndim == 2}


def masks_for(model: nn.Module, density: float, block: tuple[int, int]) -> dict[str, Tensor]:
    """Masks ranked over all encoder weights at once (over random normal weights of one scale)."""
    weights = encoder_weights(model)
    shapes = [tuple(weight.shape) for weight in weights.values()]
    device = str(next(iter(weights.values())).device)
    masks = ranked_masks(shapes, block, density, 0, device, range(len(shapes)))
    return dict(zip(weights, masks, strict=True))


@torch.no_grad()
def zero_in_place(model: nn.Module, masks: dict[str, Tensor]) -> None:
    """Write +0.0 into what the masks prune."""
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        parameters[name].masked_fill_(~mask, 0.0)


def compiled(lab: Lab, model: nn.Module, **options: Any) -> Callable[..., Any]:
    """``torch.compile``; in a rehearsal without Inductor, which takes long on a CPU."""
    for name in ("recompile_limit", "cache_size_limit"):
        if hasattr(torch._dynamo.config, name):
            setattr(torch._dynamo.config, name, RECOMPILE_LIMIT)
            break
    if lab.rehearse:
        return torch.compile(model, backend="eager", dynamic=options.get("dynamic"))
    return torch.compile(model, **options)
