"""What every text task shares: tokens made once, and batches of them padded to their longest row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sparseticket.errors import UserError
from sparseticket.hub import quiet_transformers
from sparseticket.models.text import TextModel
from sparseticket.seeds import generator
from sparseticket.tasks.token_cache import Tensors, cached

EVAL_BATCH = 64
POOL = 50  # batches
CHUNK = 10_000  # texts tokenized at a time: the tokenizer's own objects are several times as large as the ids


@dataclass(frozen=True)
class TokenRows:
    """Token sequences of different lengths, end to end: row i is ``ids[starts[i] : starts[i + 1]]``.

    Attributes:
        ids: int32 [tokens].
        types: int8 [tokens], which of a pair's two texts a token belongs to; None where the model does not use it.
        starts: int64 [rows + 1].
    """

    ids: Tensor
    types: Tensor | None
    starts: Tensor

    @classmethod
    def of(cls, ids: Iterable[Sequence[int]], types: Iterable[Sequence[int]] | None = None) -> TokenRows:
        """Rows from lists (or tensors) of token ids and, where there are any, token types."""
        rows = [torch.as_tensor(row, dtype=torch.int32) for row in ids]
        lengths = torch.tensor([0, *map(len, rows)])
        flat_types = None if types is None else torch.cat([torch.as_tensor(row, dtype=torch.int8) for row in types])
        return cls(torch.cat(rows), flat_types, lengths.cumsum(0))

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> TokenRows:
        """What :meth:`tensors` gave."""
        return cls(tensors["ids"], tensors.get("types"), tensors["starts"])

    def tensors(self) -> Tensors:
        """The fields by name, without those that are None: what a file of them holds."""
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}

    @property
    def lengths(self) -> Tensor:
        """Tokens in each row, int64 [rows]."""
        return self.starts.diff()

    def pad(self, rows: Sequence[int], pad_id: int, limit: int) -> dict[str, Tensor]:
        """The rows as int64 [rows, width] ``input_ids``, ``attention_mask`` and, where known, ``token_type_ids``.

        The width is that of the longest row; for a GPU rounded up to a multiple of 8 (which tensor cores like) within
        ``limit``. A CPU takes as long as there are tokens: on SST-2 rounding up made it 14 % more of them.
        """
        spans = [(int(self.starts[row]), int(self.starts[row + 1])) for row in rows]
        width = max(end - start for start, end in spans)
        if torch.cuda.is_available():
            width = max(width, min(-(-width // 8) * 8, limit))
        padded = {"input_ids": torch.full((len(spans), width), pad_id)}
        padded["attention_mask"] = torch.zeros(len(spans), width, dtype=torch.long)
        if self.types is not None:
            padded["token_type_ids"] = torch.zeros(len(spans), width, dtype=torch.long)
        for line, (start, end) in enumerate(spans):
            padded["input_ids"][line, : end - start] = self.ids[start:end]
            padded["attention_mask"][line, : end - start] = 1
            if self.types is not None:
                padded["token_type_ids"][line, : end - start] = self.types[start:end]
        return padded


def shuffled(rows: int, *, seed: int, round: int, epoch: int) -> Tensor:
    """The training order of an epoch, int64 [rows]."""
    return torch.randperm(rows, generator=generator(seed, "order", round, epoch))


def shuffled_by_length(rows: TokenRows, size: int, *, seed: int, round: int, epoch: int) -> Tensor:
    """The training order of an epoch, int64 [rows]: batches of ``size`` rows of similar length, in random order.

    Rows are drawn into pools of 50 batches and sorted by length within one, as transformers' group_by_length does: on
    SST-2 a step takes half the time of plain shuffling, because half of a plain batch is padding.
    """
    pools = shuffled(len(rows.lengths), seed=seed, round=round, epoch=epoch).split(POOL * size)
    draw = generator(seed, "order of batches", round, epoch)
    order = torch.cat([pool[rows.lengths[pool].argsort(stable=True)] for pool in pools])
    batches = list(order.split(size))
    short = [batches.pop()] if len(batches[-1]) < size else []
    return torch.cat([batches[i] for i in torch.randperm(len(batches), generator=draw)] + short)


def by_length(rows: TokenRows) -> Tensor:
    """The evaluation order, int64 [rows]: shortest first, so that little of a batch is padding."""
    return torch.argsort(rows.lengths, stable=True)


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
) -> TokenRows:
    """Texts (or pairs of them) with their special tokens, cut at ``max_length`` tokens, the longer of a pair first."""

    def make() -> Tensors:
        return _tokenize(tokenizer, texts, pairs, max_length).tensors()

    content = digest(texts, pairs or ())
    return TokenRows.from_tensors(cached(tokenizer, "texts", content, max_length, make=make))


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
) -> TokenRows:
    ids: list[list[int]] = []
    types: list[list[int]] = []
    with quiet_transformers():
        for start in range(0, len(texts), CHUNK):
            second = None if pairs is None else list(pairs[start : start + CHUNK])
            encoded = tokenizer(list(texts[start : start + CHUNK]), second, truncation=True, max_length=max_length)
            ids += encoded["input_ids"]
            types += encoded.get("token_type_ids", [])
    return TokenRows.of(ids, types or None)


def fitting_length(spec: TextModel, max_length: int) -> int:
    """``max_length`` where the model has that many positions; :class:`UserError` otherwise."""
    if not 8 <= max_length <= spec.max_positions:
        raise UserError(
            f"sequences of {max_length} tokens do not fit {spec.name}, which takes 8 to {spec.max_positions}: "
            "give another with --max-length."
        )
    return max_length


def digest(*parts: Iterable[object]) -> str:
    """SHA-256 over sequences of texts or labels: tells two data sets apart, wherever they lie."""
    total = hashlib.sha256()
    for part in parts:
        for item in part:
            text = str(item).encode(errors="surrogatepass")
            total.update(len(text).to_bytes(8, "little") + text)
        total.update(b"\xff" * 8)  # no text is that long: the end of a part
    return total.hexdigest()
