"""Load a text model folder: any encoder of transformers that is called with input_ids and attention_mask."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn

from sparseticket.errors import UserError, reason
from sparseticket.export.loaded_model import LoadedModel
from sparseticket.files import read_json
from sparseticket.hub import quiet_transformers
from sparseticket.models.positions import longest_sequence
from sparseticket.models.text import PLAIN_ANSWERS

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
PATH_KEYS = ("_name_or_path", "name_or_path", "tokenizer_file", "special_tokens_map_file")


def load_text(folder: Path, attention: str | None) -> LoadedModel:
    """Load ``folder``; a tensor that its architecture needs and the file lacks is an error, never a random one."""
    module = load_module(folder, attention)
    if "add_pooling_layer" in inspect.signature(type(module).__init__).parameters:
        module.pooler = None  # a plain encoder is exported for its token embeddings; nothing reads its pooler
    config = module.config
    takes = inspect.signature(module.forward).parameters
    if not {"input_ids", "attention_mask"} <= set(takes) or getattr(config, "is_encoder_decoder", False):
        raise UserError(f"{type(module).__name__} is not an encoder that takes input_ids and attention_mask.")
    token_types = getattr(config, "type_vocab_size", 0) if "token_type_ids" in takes else 0
    token_types = token_types if token_types > 1 else 0  # RoBERTa has one type, and needs no such input
    inputs = ("input_ids", "attention_mask", "token_type_ids")[: 3 if token_types else 2]
    unnamed = LoadedModel(
        kind="text",
        module=module,
        inputs=inputs,
        outputs=(),
        vocabulary=config.vocab_size,
        token_types=token_types,
        max_length=longest_sequence(config),
        companions=companions(folder),
    )
    try:
        with torch.inference_mode():
            outputs = module(**unnamed.example(1, 2))
    except Exception as error:
        raise UserError(
            f"{type(module).__name__} does not answer two tokens, and only encoders that take sequences of any length "
            f"are exported: {reason(error)}"
        ) from error
    if others := [name for name, value in outputs.items() if not isinstance(value, Tensor)]:
        raise UserError(
            f"{type(module).__name__} returns {others[0]}, which is no tensor: only encoders are exported, with a head."
        )
    return replace(unnamed, outputs=tuple(outputs))


def load_module(folder: Path, attention: str | None) -> nn.Module:
    """The transformers model in ``folder``, pooler included, fp32, on the CPU, in eval mode.

    Raises:
        UserError: transformers does not know its class, or the folder lacks some of its weights.
    """
    from sparseticket.export.shrunk_folder import is_shrunk, load_shrunk

    return (load_shrunk if is_shrunk(folder) else _load_whole)(folder, attention).eval()


def architecture(folder: Path) -> type[transformers.PreTrainedModel]:
    """The class of transformers that ``config.json`` in ``folder`` names; :class:`UserError` where it is none."""
    architectures = read_json(folder / "config.json").get("architectures") or [None]
    name = architectures[0] if isinstance(architectures, list) else None
    kind = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (inspect.isclass(kind) and issubclass(kind, transformers.PreTrainedModel)):
        raise UserError(
            f"{folder / 'config.json'} names the architecture {name!r}, which transformers "
            f"{transformers.__version__} does not have: save the model with save_pretrained of a transformers class."
        )
    return kind


def _load_whole(folder: Path, attention: str | None) -> nn.Module:
    kind = architecture(folder)
    try:
        with quiet_transformers():
            module, loading = kind.from_pretrained(
                folder,
                output_loading_info=True,
                use_safetensors=True,
                local_files_only=True,
                attn_implementation=attention,
                dtype=torch.float32,
                **PLAIN_ANSWERS,
            )
    except Exception as error:
        raise UserError(f"{folder} cannot be loaded as {kind.__name__}: {reason(error)}") from error
    if loading["missing_keys"] or loading["mismatched_keys"]:
        first = sorted(map(str, [*loading["missing_keys"], *loading["mismatched_keys"]]))[0]
        raise UserError(f"{folder} has no weights for {first}, which {kind.__name__} needs: save the whole model.")
    return module


def companions(folder: Path) -> dict[str, bytes]:
    """The configuration and the tokenizer's files in ``folder`` by name, without paths of this machine."""
    found = {}
    for name in ("config.json", *TOKENIZER_FILES):
        file = folder / name
        if file.is_file() and name in ("config.json", "tokenizer_config.json"):
            content = {key: value for key, value in read_json(file).items() if key not in PATH_KEYS}
            found[name] = (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
        elif file.is_file():
            found[name] = file.read_bytes()
    return found
