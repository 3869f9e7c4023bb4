"""Masked language modelling: predict the 15 % of tokens that were hidden."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy
from transformers import PreTrainedTokenizerBase

from sparseticket.data_places import HUB
from sparseticket.errors import UserError
from sparseticket.hub import load_splits, quiet_transformers
from sparseticket.models import Head
from sparseticket.models.text import TextModel
from sparseticket.seeds import generator
from sparseticket.tasks import register
from sparseticket.tasks.base import MASKED_ACCURACY, Batch, Stateless, TaskOptions
from sparseticket.tasks.evaluating import evaluating
from sparseticket.tasks.row_batches import RowBatches
from sparseticket.tasks.text_batches import CHUNK, TokenRows, digest, fitting_length, shuffled
from sparseticket.tasks.token_cache import Tensors, cached

MASKED_SHARE = 0.15
WIKITEXT = f"{HUB}Salesforce/wikitext:wikitext-103-raw-v1"
PLACEHOLDER = "<unk>"  # what wikitext writes for rare words; a tokenizer would split it into pieces
NO_TARGET = -100


class MaskedLanguageModelling(Stateless):
    """Masks drawn anew in every epoch for training, and once, from a fixed seed, for evaluation.

    Args:
        train, evaluation: lines of text; they are joined and cut into sequences of ``options.max_length`` tokens.
    """

    metric = MASKED_ACCURACY
    head = Head("masked-lm")

    def __init__(
        self, name: str, spec: TextModel, options: TaskOptions, train: Sequence[str], evaluation: Sequence[str]
    ) -> None:
        self.name = name
        self.data_id = digest(train, evaluation)
        self._batch_size = options.batch_size
        self._limit = fitting_length(spec, options.max_length)
        self._tokenizer = spec.tokenizer()
        if self._tokenizer.mask_token_id is None:
            raise UserError(f"the tokenizer of {spec.name} has no mask token: it cannot be trained by masking.")
        self._rows = {
            "train": pack(self._tokenizer, train, self._limit),
            "eval": pack(self._tokenizer, evaluation, self._limit),
        }

    def batches(self, split: str, *, seed: int, round: int, epoch: int) -> Sequence[Batch]:
        """See :class:`Task`; ``labels`` [rows, width] holds the hidden tokens, and -100 where none is hidden."""
        rows = self._rows[split]
        order = torch.arange(len(rows.lengths))
        if split == "train":
            order = shuffled(len(order), seed=seed, round=round, epoch=epoch)

        def make(part: Tensor) -> Batch:
            chosen = part.tolist()
            batch = rows.pad(chosen, self._tokenizer.pad_token_id, self._limit)
            hidden = [
                hide(
                    ids,
                    self._tokenizer,
                    generator(seed, "mlm", round, epoch, row) if split == "train" else generator(0, "mlm-eval", row),
                )
                for row, ids in zip(chosen, batch["input_ids"], strict=True)
            ]
            inputs, labels = (torch.stack(parts) for parts in zip(*hidden, strict=True))
            return batch | {"input_ids": inputs, "labels": labels}

        return RowBatches(make, order, self._batch_size)

    def loss(self, model: nn.Module, batch: Batch, *, step: int) -> Tensor:
        """Mean cross entropy over the hidden tokens."""
        logits, targets = logits_at_hidden(model, batch)
        return cross_entropy(logits, targets)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The share of the hidden tokens of the evaluation split that the model names."""
        network = extract_model_from_parallel(model)  # every process evaluates everything: nothing to synchronize
        with evaluating(model) as device:
            score = MulticlassAccuracy(len(self._tokenizer), average="micro", validate_args=False).to(device)
            for batch in self.batches("eval", seed=0, round=0, epoch=0):
                logits, targets = logits_at_hidden(network, {name: t.to(device) for name, t in batch.items()})
                score.update(logits.argmax(-1), targets)
            return {self.metric: float(score.compute())}


def logits_at_hidden(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Float32 logits [hidden tokens, vocabulary] and their targets [hidden tokens].

    The head sees the hidden positions only: a hook on the backbone hands on nothing else (with 30,000 words, the other
    85 % of the logits would be most of a step's memory). The whole model is called, so wrappers of it still work. This
    needs a head that treats positions alone, as all known ones do; a model without a backbone inside computes all.
    """
    at = batch["labels"] != NO_TARGET
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    network = extract_model_from_parallel(model)
    backbone = network.base_model
    if backbone is network:
        return model(**inputs).logits[at].float(), batch["labels"][at]

    def keep_hidden(module: nn.Module, arguments: object, output: object) -> object:
        output.last_hidden_state = output.last_hidden_state[at].unsqueeze(0)
        return output

    hook = backbone.register_forward_hook(keep_hidden)
    try:
        logits = model(**inputs).logits
    finally:
        hook.remove()
    return logits.squeeze(0).float(), batch["labels"][at]


def hide(ids: Tensor, tokenizer: PreTrainedTokenizerBase, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Hide 15 % of the tokens ``ids`` [width]: 80 % of them become the mask token, 10 % any word, 10 % stay.

    Returns the input [width] and the labels [width]. Special tokens (padding and [UNK] too) are never hidden; a
    sequence that would keep all its tokens hides the one that was drawn lowest.
    """
    ordinary = torch.isin(ids, torch.tensor(tokenizer.all_special_ids), invert=True)
    chance = torch.rand(ids.shape, generator=draw).masked_fill(~ordinary, 2.0)
    what = torch.rand(ids.shape, generator=draw)
    words = torch.randint(len(tokenizer), ids.shape, generator=draw)
    hidden = ordinary & ((chance < MASKED_SHARE) | (chance == chance.min()))
    inputs = ids.masked_fill(hidden & (what < 0.8), tokenizer.mask_token_id)
    inputs = torch.where(hidden & (what >= 0.9), words, inputs)
    return inputs, ids.masked_fill(~hidden, NO_TARGET)


def pack(tokenizer: PreTrainedTokenizerBase, lines: Sequence[str], max_length: int) -> TokenRows:
    """All lines end to end, cut into sequences that fill ``max_length`` with their special tokens; the last is short.

    The placeholder for rare words becomes the tokenizer's own token for unknown ones.
    """

    def make() -> Tensors:
        return _pack(tokenizer, lines, max_length).tensors()

    return TokenRows.from_tensors(cached(tokenizer, "packed", digest(lines), max_length, make=make))


def _pack(tokenizer: PreTrainedTokenizerBase, lines: Sequence[str], max_length: int) -> TokenRows:
    tokens = list(_token_chunks(tokenizer, lines))
    if not tokens:
        raise UserError("the corpus has no text.")
    stream = torch.cat(tokens)
    begin, end = _special_ends(tokenizer)
    pieces = stream.split(max_length - len(begin) - len(end))
    rows = [torch.cat([begin, piece, end]) for piece in pieces]
    lengths = torch.tensor([0, *map(len, rows)])
    return TokenRows(torch.cat(rows), None, lengths.cumsum(0))


def _token_chunks(tokenizer: PreTrainedTokenizerBase, lines: Sequence[str]) -> Iterator[Tensor]:
    with quiet_transformers():
        for start in range(0, len(lines), CHUNK):
            texts = [line.strip() for line in lines[start : start + CHUNK] if line.strip()]
            if tokenizer.unk_token:
                texts = [text.replace(PLACEHOLDER, tokenizer.unk_token) for text in texts]
            if texts:
                ids = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
                yield torch.tensor(list(chain.from_iterable(ids)), dtype=torch.int32)


def _special_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[Tensor, Tensor]:
    """What the tokenizer puts before and after a text ([CLS] and [SEP] for BERT), int32."""
    inner = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    before = next(start for start in range(len(whole)) if whole[start : start + len(inner)] == inner)
    ends = whole[:before], whole[before + len(inner) :]
    return torch.tensor(ends[0], dtype=torch.int32), torch.tensor(ends[1], dtype=torch.int32)


@register("mlm", kind="text", recipe="neurips20/mlm")
def make(spec: TextModel, options: TaskOptions) -> MaskedLanguageModelling:
    """MLM on a user's text, or on a corpus of the hub: wikitext-103-raw, or the one that is named."""
    corpus = WIKITEXT if options.data is None else str(options.data)
    train, evaluation = from_hub(corpus) if corpus.startswith(HUB) else from_files(Path(corpus))
    return MaskedLanguageModelling("mlm", spec, options, train, evaluation)


def from_hub(corpus: str) -> tuple[Sequence[str], Sequence[str]]:
    """Texts of ``hub:OWNER/NAME[:CONFIGURATION]`` to train and evaluate on: its splits train and test (or validation).

    Without either of these the last tenth of train evaluates.
    """
    dataset, _, configuration = corpus.removeprefix(HUB).partition(":")
    splits = load_splits(
        dataset,
        configuration or None,
        otherwise="Or train on text of your own (--data FILE), or on the documentation strings of Python's standard "
        "library, which need no data: --task docstring-mlm.",
    )
    if "train" not in splits or "text" not in splits["train"].column_names:
        raise UserError(f"{corpus} has no split train with a column text: name another corpus.")
    train = list(splits["train"]["text"])
    evaluation = next((list(splits[name]["text"]) for name in ("test", "validation") if name in splits), None)
    return (train, evaluation) if evaluation else _last_tenth_evaluates(train, corpus)


def from_files(path: Path) -> tuple[list[str], list[str]]:
    """Lines to train and evaluate on: a file trains on all but its last tenth; a folder on train.txt (or valid.txt)
    and evaluates on test.txt. WikiText's own names (wiki.train.raw, wiki.train.tokens, …) do too.
    """
    if path.is_dir():
        train, test = _first(path, "train") or _first(path, "valid"), _first(path, "test")
        if train is None or test is None:
            raise UserError(
                f"the folder {path} needs train.txt (or valid.txt) and test.txt: plain text to train on. WikiText's "
                "wiki.train.raw and wiki.test.raw will do too."
            )
        return _lines(train), _lines(test)
    if not path.is_file():
        raise UserError(f"there is no {path}: --data takes a text file, or a folder with train.txt and test.txt.")
    return _last_tenth_evaluates(_lines(path), path)


def _first(folder: Path, split: str) -> Path | None:
    names = (f"{split}.txt", f"wiki.{split}.raw", f"wiki.{split}.tokens")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _last_tenth_evaluates(lines: list[str], where: Path | str) -> tuple[list[str], list[str]]:
    if len(lines) < 2:
        raise UserError(f"{where} has one line only: its last tenth of lines evaluates, so at least two are needed.")
    border = len(lines) - max(1, len(lines) // 10)
    return lines[:border], lines[border:]


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from error
    lines = lines[:-1] if lines[-1] == "" else lines
    if not any(line.strip() for line in lines):
        raise UserError(f"{path} has no text.")
    return lines
