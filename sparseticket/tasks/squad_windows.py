"""Passages that are longer than a sequence: windows over them, targets in them, and the best span out of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sparseticket.errors import UserError
from sparseticket.hub import quiet_transformers
from sparseticket.tasks.squad_data import Answer, Passages
from sparseticket.tasks.text_batches import CHUNK, TokenRows, digest
from sparseticket.tasks.token_cache import Tensors, cached

STRIDE = 128  # tokens from the beginning of a window to that of the next, as in BERT's own code and the released one
LONGEST_QUESTION = 64  # tokens, likewise
LONGEST_ANSWER = 30
MISPLACED_SHARE = 0.01  # of the training questions whose answer is not where it is said to be: these are left out


@dataclass(frozen=True)
class Texts:
    """Tokens of texts without special ones; ``characters`` int32 [tokens, 2] is where each is, end exclusive."""

    rows: TokenRows
    characters: Tensor

    def characters_of(self, text: int) -> Tensor:
        """int32 [tokens of the text, 2]"""
        return self.characters[self.rows.starts[text] : self.rows.starts[text + 1]]

    def ids_of(self, text: int) -> Tensor:
        """int32 [tokens of the text]"""
        return self.rows.ids[self.rows.starts[text] : self.rows.starts[text + 1]]


@dataclass(frozen=True)
class Windows:
    """Sequences of a question and a part of its passage.

    Attributes:
        rows: the sequences.
        question: int64 [windows].
        first: int64 [windows], where the passage begins in the sequence.
        token: int64 [windows], which token of the passage that is.
        length: int64 [windows], tokens of the passage in the sequence.
        targets: int64 [windows, 2], first and last token of the answer in the sequence; 0 and 0 (the first special
            token), as in BERT's code, where the window does not hold all of it. None to evaluate.
    """

    rows: TokenRows
    question: Tensor
    first: Tensor
    token: Tensor
    length: Tensor
    targets: Tensor | None


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Texts:
    """Tokens of texts, whole, with their places."""

    def make() -> Tensors:
        ids: list[list[int]] = []
        places: list[Tensor] = []
        with quiet_transformers():
            for start in range(0, len(texts), CHUNK):
                chunk = list(texts[start : start + CHUNK])
                found = tokenizer(chunk, add_special_tokens=False, return_offsets_mapping=True)
                ids += found["input_ids"]
                places += [torch.tensor(text, dtype=torch.int32).view(-1, 2) for text in found["offset_mapping"]]
        return TokenRows.of(ids).tensors() | {"characters": torch.cat(places)}

    tensors = cached(tokenizer, "with places", digest(texts), make=make)
    return Texts(TokenRows.from_tensors(tensors), tensors["characters"])


def cut(tokenizer: PreTrainedTokenizerBase, passages: Passages, texts: Texts, limit: int, *, train: bool) -> Windows:
    """Windows of at most ``limit`` tokens over each question's passage, 128 apart (at most half a window).

    Raises:
        UserError: more than 1 % of the training answers are not in their passage where they are said to be.
    """
    questions = encode(tokenizer, [question.text for question in passages.questions])
    frame = _Frame.of(tokenizer)
    rows, types, facts, targets, misplaced = [], [], [], [], 0
    for number, question in enumerate(passages.questions):
        span = (0, 0)
        if train:
            answer = question.answers[0]
            span = locate(answer, passages.texts[question.passage], texts.characters_of(question.passage))
            if span is None:
                misplaced += 1
                continue
        asked, passage = questions.ids_of(number)[: min(LONGEST_QUESTION, limit // 3)], texts.ids_of(question.passage)
        room = limit - frame.tokens - len(asked)
        for begin in _beginnings(len(passage), room):
            part = passage[begin : begin + room]
            first = len(frame.before) + len(asked) + len(frame.between)
            rows.append(torch.cat([frame.before, asked, frame.between, part, frame.after]))
            types.append(frame.types(len(asked), len(part)))
            facts.append((number, first, begin, len(part)))
            inside = begin <= span[0] and span[1] < begin + len(part)
            targets.append([first + end - begin for end in span] if inside else [0, 0])
    if misplaced > MISPLACED_SHARE * len(passages.questions):
        raise UserError(
            f"{misplaced} of {len(passages.questions)} training questions have an answer that is not in its passage "
            "at answer_start, which counts characters: the data is not SQuAD v1.1 as published."
        )
    if not rows:
        raise UserError("no passage has any text.")
    columns = (torch.tensor(column) for column in zip(*facts, strict=True))
    uses_types = "token_type_ids" in tokenizer.model_input_names
    return Windows(
        TokenRows.of(rows, types if uses_types else None), *columns, torch.tensor(targets) if train else None
    )


def locate(answer: Answer, passage: str, characters: Tensor) -> tuple[int, int] | None:
    """First and last token (inclusive) that hold a character of the answer; None where the answer is not there.

    ``characters`` [tokens, 2] are the passage's.
    """
    end = answer.start + len(answer.text)
    if not answer.text.strip() or answer.start < 0 or passage[answer.start : end] != answer.text:
        return None
    touched = ((characters[:, 1] > answer.start) & (characters[:, 0] < end)).nonzero().flatten()
    return (int(touched[0]), int(touched[-1])) if len(touched) else None


def best_spans(start: Tensor, end: Tensor, first: Tensor, length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The span of at most 30 passage tokens with the highest sum of logits, in each window.

    ``start`` and ``end`` are logits, float [windows, width]; ``first`` and ``length``, int64 [windows], say where the
    passage is in each window. Returns the sum [windows], and the span's first and last token in its window [windows].
    """
    width = start.shape[1]
    at = torch.arange(width, device=start.device)
    outside = (at < first[:, None]) | (at >= (first + length)[:, None])
    sums = start.masked_fill(outside, -torch.inf)[:, :, None] + end.masked_fill(outside, -torch.inf)[:, None, :]
    distance = at[None, :] - at[:, None]
    sums = sums.masked_fill((distance < 0) | (distance >= LONGEST_ANSWER), -torch.inf)
    best, place = sums.flatten(1).max(dim=1)
    return best, place // width, place % width


def _beginnings(tokens: int, room: int) -> range:
    """Where windows of ``room`` tokens begin, so that the last one reaches the end of the passage."""
    step = min(STRIDE, room // 2)
    return range(0, max(tokens - room, 0) + step if tokens else 0, step)


@dataclass(frozen=True)
class _Frame:
    """The special tokens around the two texts of a pair, and the type of each token."""

    before: Tensor
    between: Tensor
    after: Tensor
    kinds: tuple[int, ...]  # of: before, first text, between, second text, after

    @property
    def tokens(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)

    def types(self, first: int, second: int) -> Tensor:
        counts = (len(self.before), first, len(self.between), second, len(self.after))
        return torch.tensor(self.kinds, dtype=torch.int8).repeat_interleave(torch.tensor(counts))

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> _Frame:
        inner = tokenizer("a", add_special_tokens=False)["input_ids"]
        pair = tokenizer("a", "a", return_token_type_ids=True)
        ids, types = pair["input_ids"], pair["token_type_ids"]
        size = len(inner)
        one, two = (place for place in range(len(ids)) if ids[place : place + size] == inner)
        parts = (
            slice(0, one),
            slice(one, one + size),
            slice(one + size, two),
            slice(two, two + size),
            slice(two + size, None),
        )
        before, _, between, _, after = (torch.tensor(ids[part], dtype=torch.int32) for part in parts)
        kinds = [next(iter(types[part]), 0) for part in parts]
        return cls(before, between, after, tuple(kinds))
