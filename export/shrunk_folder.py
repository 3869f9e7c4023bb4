"""A folder that holds a shrunk network: safetensors, what describes the architecture, and what of it was kept.

A configuration of transformers has one number of heads for all layers, so ``shrink.json`` says what each layer keeps:
loading builds the whole architecture, cuts it in the same places, and checks every tensor before it is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torchvision
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn

import sparseticket
from sparseticket.errors import UserError, reason
from sparseticket.export.shrink import Kept, Shrunk, backbone_of, cut, removable
from sparseticket.export.text_model import PATH_KEYS, architecture, companions
from sparseticket.files import read_json, replace_folder, write_json, write_whole
from sparseticket.hub import quiet_transformers
from sparseticket.models.base import POOLER
from sparseticket.models.vision_saved import DESCRIPTION, WEIGHTS, describe_saved
from sparseticket.models.vision_weights import check_fit
from sparseticket.ticket import Ticket

RECORD = "shrink.json"
FORMAT = 1


def save_shrunk(shrunk: Shrunk, folder: Path, *, source: Path, ticket: Path | None = None) -> None:
    """Write ``model.safetensors``, ``shrink.json`` and what else :func:`load_shrunk` needs, whole or not at all.

    Args:
        shrunk: what :func:`sparseticket.export.shrink.shrink` returned.
        folder: a new folder, or one that this function made (replaced).
        source: the model folder that the network was loaded from; its tokenizer or ``model.json`` is copied.
        ticket: the ticket that the network was trained under; its identity is written down.

    Raises:
        UserError: ``folder`` holds something else.
        RunFailure: the disk is full, read-only or failing; ``folder`` is then as it was before.
    """
    if folder.exists() and not is_shrunk(folder) and (folder.is_file() or any(folder.iterdir())):
        raise UserError(f"{folder} holds something else: give a new folder to save the shrunk model in.")
    record = {
        "format": FORMAT,
        "ticket": Ticket.load(ticket).identity if ticket else None,
        "versions": {lib.__name__: lib.__version__ for lib in (sparseticket, torch, torchvision, transformers)},
        "layers": [asdict(layer) for layer in shrunk.kept],
    }
    tensors = _without_ties(shrunk.module.state_dict())
    with replace_folder(folder) as new:
        write_whole(new / WEIGHTS, safetensors.torch.save({name: one.contiguous() for name, one in tensors.items()}))
        write_whole(new / RECORD, json.dumps(record) + "\n")  # without indents, or each kept index would fill a line
        if isinstance(shrunk.module, transformers.PreTrainedModel):
            for name, content in companions(source).items():
                write_whole(new / name, content)
            write_json(new / "config.json", _config(shrunk.module))
        else:
            write_whole(new / DESCRIPTION, (source / DESCRIPTION).read_bytes())


def is_shrunk(folder: Path) -> bool:
    """True where ``folder`` says that it holds a shrunk network."""
    return (folder / RECORD).is_file()


def load_shrunk(folder: str | Path, attention: str | None = None) -> nn.Module:
    """The network that :func:`save_shrunk` wrote: a plain module, on the CPU, in fp32 and eval mode.

    ``attention`` is transformers' name of an implementation ("eager", "sdpa"); None is its default.

    Raises:
        UserError: the folder holds no shrunk network, or a file in it is damaged or does not fit the others.
    """
    folder = Path(folder)
    layers = _read_layers(folder)
    is_vision = (folder / DESCRIPTION).is_file()
    module = describe_saved(folder).random_module() if is_vision else _make_text(folder, attention)
    stored = _read_weights(folder / WEIGHTS)
    if hasattr(module, "pooler") and not any(name.startswith(POOLER) for name in stored):
        module.pooler = None  # a bare encoder may have been shrunk without
    backbone = backbone_of(module)
    known = {(family.kind, family.layer): family for family in removable(backbone)}
    for layer in layers:
        family = known.get((layer.kind, layer.layer))
        if family is None or family.count != layer.count:
            raise UserError(
                f"{folder / RECORD} keeps {len(layer.kept)} of {layer.count} {layer.kind} of {layer.layer}, and "
                f"{type(module).__name__} has {family.count if family else 'none'} there: copy the folder again."
            )
        cut(backbone, family, layer.kept)
    live = module.state_dict()
    tied = frozenset(live.keys() - _without_ties(live).keys())
    check_fit(stored, live, missing_allowed=tied, source=str(folder / WEIGHTS), model=f"what {RECORD} says of it")
    module.load_state_dict(stored, strict=False)  # what check_fit lets be absent
    return module.eval()


def _read_layers(folder: Path) -> list[Kept]:
    if not is_shrunk(folder):
        raise UserError(f"{folder} holds no shrunk model: there is no {RECORD} in it.")
    record = read_json(folder / RECORD)
    if record.get("format") != FORMAT:
        raise UserError(f"{folder / RECORD} has format {record.get('format')!r}, and this version reads {FORMAT}.")
    entries = record.get("layers")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{folder / RECORD} should list layers, and does not: copy the folder again.")
    layers = [_checked(folder, entry) for entry in entries]
    names = [(layer.kind, layer.layer) for layer in layers]
    if len(set(names)) < len(names):
        raise UserError(f"{folder / RECORD} lists a layer twice: copy the folder again.")
    return layers


def _checked(folder: Path, entry: Any) -> Kept:
    sound = (
        isinstance(entry, dict)
        and entry.keys() == Kept.__dataclass_fields__.keys()
        and isinstance(entry["kind"], str)
        and isinstance(entry["layer"], str)
        and type(entry["count"]) is int
        and isinstance(entry["kept"], list)
        and bool(entry["kept"])
        and all(type(index) is int and 0 <= index < entry["count"] for index in entry["kept"])
        and all(a < b for a, b in zip(entry["kept"], entry["kept"][1:], strict=False))
    )
    if not sound:
        raise UserError(
            f"{folder / RECORD} has a layer that cannot be: {str(entry)[:200]}\n"
            "Each names its kind, layer and count, and the indices kept, from low to high. Copy the folder again."
        )
    return Kept(entry["kind"], entry["layer"], entry["count"], tuple(entry["kept"]))


def _make_text(folder: Path, attention: str | None) -> nn.Module:
    kind = architecture(folder)
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            config = kind.config_class.from_pretrained(folder, local_files_only=True, attn_implementation=attention)
            return kind(config).float()
    except Exception as error:
        raise UserError(f"{folder / 'config.json'} does not describe a {kind.__name__}: {reason(error)}") from error


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is missing or damaged ({error}): copy the folder again.") from error


def _config(module: transformers.PreTrainedModel) -> dict[str, Any]:
    config = module.config.to_diff_dict()
    config["architectures"] = [type(module).__name__]
    return {key: value for key, value in config.items() if key not in PATH_KEYS}


def _without_ties(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One name for each tensor: a decoder that shares the embeddings' is stored once."""
    seen: set[int] = set()
    return {name: one for name, one in state.items() if not (one.data_ptr() in seen or seen.add(one.data_ptr()))}
