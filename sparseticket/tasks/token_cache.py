"""Token ids kept between runs: one file for each tokenizer, texts and length, named by a hash of all three.

The folder is ``$SPARSETICKET_CACHE``, else ``sparseticket`` in the user's cache folder; it may be shared, copied, and
deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sparseticket.errors import RunFailure, UserError
from sparseticket.files import cache_folder
from sparseticket.tensors import load_tensors, save_tensors
from sparseticket.theta import tensor_hashes

Tensors = dict[str, Tensor]


def cached(tokenizer: PreTrainedTokenizerBase, *content: object, make: Callable[[], Tensors]) -> Tensors:
    """What ``make`` returns, or returned in an earlier run for the same tokenizer and the same ``content``.

    ``content`` is everything else that the tensors depend on: what they are, a digest of the texts, the longest
    sequence. A file that is missing, damaged, another user's or of another key is made again; where none can be
    written, none is.
    """
    key = hashlib.sha256(json.dumps([_identity(tokenizer), *content]).encode()).hexdigest()
    try:
        path = cache_folder() / f"{key}.safetensors"
    except UserError:
        return make()
    tensors = _read(path, key)
    if tensors is None:
        tensors = make()
        with suppress(RunFailure):  # a full or read-only disk costs the next run some seconds, and this one nothing
            save_tensors(path, tensors, key=key, hashes=tensor_hashes(tensors))
    return tensors


def _read(path: Path, key: str) -> Tensors | None:
    try:
        tensors, record = load_tensors(path)
    except UserError:
        return None
    return tensors if record == {"key": key, "hashes": tensor_hashes(tensors)} else None


def _identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of all that decides what the tokenizer makes of a text."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state = {name: part for name, part in state.items() if name not in ("truncation", "padding")}  # of its last call
    facts = [
        tokenizers.__version__,
        state,
        tokenizer.special_tokens_map,
        tokenizer.model_input_names,
        tokenizer.truncation_side,
    ]
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()
