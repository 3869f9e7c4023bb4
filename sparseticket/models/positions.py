"""The longest sequence that a text model takes, as its configuration says it."""

from __future__ import annotations

from typing import Any

USUAL = 512  # where a configuration does not say

# their position ids start behind the padding id, so that the first rows of the table are never used
AFTER_PADDING = {
    "camembert",
    "data2vec-text",
    "esm",
    "ibert",
    "lilt",
    "longformer",
    "luke",
    "markuplm",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}


def longest_sequence(config: Any) -> int:
    """In tokens, special ones included; ``config`` has the attributes of a configuration of transformers."""
    positions: int = getattr(config, "max_position_embeddings", USUAL)
    if positions < 1:  # XLNet's way to say: any
        return USUAL
    if getattr(config, "model_type", None) not in AFTER_PADDING:
        return positions
    padding = getattr(config, "pad_token_id", None)
    return positions - (1 if padding is None else padding) - 1
