"""Write a model's weights, zeros in place, for PyTorch: one safetensors file, or a folder that libraries load."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from sparseticket.errors import RunFailure
from sparseticket.export.layers import Layer, torch_layers
from sparseticket.export.loaded_model import DTYPES, LoadedModel
from sparseticket.export.shrink import Shrunk
from sparseticket.export.shrunk_folder import load_shrunk, save_shrunk
from sparseticket.export.source import Source
from sparseticket.hub import quiet_transformers
from sparseticket.models.vision_saved import DESCRIPTION, WEIGHTS


def write_safetensors(model: LoadedModel, folder: Path, dtype: str, metadata: Mapping[str, str]) -> list[Layer]:
    """Write the state dict as ``model.safetensors``; tied tensors once (``safetensors.torch.load_model`` ties them).

    Raises:
        RunFailure: what is read back is not what was written.
    """
    module = model.module.to(DTYPES[dtype])
    for parameter in module.parameters():
        if parameter.untyped_storage().nbytes() > parameter.nbytes:  # NomicBERT's query, key and value are one
            parameter.data = parameter.data.clone()
    file = folder / WEIGHTS
    _written(lambda: safetensors.torch.save_model(module, str(file), dict(metadata)))
    return _read_back(module, safetensors.torch.load_file(file))


def write_shrunk(shrunk: Shrunk, source: Source, folder: Path, dtype: str) -> list[Layer]:
    """Write what is left of a network as the folder that :func:`load_shrunk` loads (in fp32, whatever is stored).

    Raises:
        RunFailure: what is read back is not what was written.
    """
    shrunk.module.to(DTYPES[dtype])
    save_shrunk(shrunk, folder, source=source.model, ticket=source.ticket)
    return _read_back(shrunk.module, load_shrunk(folder).to(DTYPES[dtype]).state_dict())


def write_hf(model: LoadedModel, source: Path, folder: Path, dtype: str) -> list[Layer]:
    """Write the model folder ``source`` again: what ``save_pretrained`` writes, or this project's vision folder.

    Raises:
        UserError: the folder cannot be loaded.
        RunFailure: what is read back is not what was written.
    """
    if model.kind == "vision":
        from sparseticket.models.vision_saved import load_saved

        module = model.module.to(DTYPES[dtype])
        (folder / DESCRIPTION).write_bytes((source / DESCRIPTION).read_bytes())
        _written(lambda: safetensors.torch.save_model(module, str(folder / WEIGHTS)))
        return _read_back(module, load_saved(folder).to(DTYPES[dtype]).state_dict())

    from sparseticket.export.text_model import PATH_KEYS, load_module

    module = load_module(source, None).to(DTYPES[dtype])  # with the pooler, which a traced encoder does without
    with quiet_transformers():
        _written(lambda: module.save_pretrained(folder))
    config = folder / "config.json"
    entries = {key: value for key, value in json.loads(config.read_text()).items() if key not in PATH_KEYS}
    config.write_text(json.dumps(entries, indent=2) + "\n")
    return _read_back(module, load_module(folder, None).to(DTYPES[dtype]).state_dict())


def _written(write: Callable[[], None]) -> None:
    try:
        write()
    except SafetensorError as error:  # a full disk, in safetensors' words
        raise OSError(str(error)) from error


def _read_back(module: nn.Module, stored: Mapping[str, Tensor]) -> list[Layer]:
    """The zeros of each layer as they are in ``stored``, once every tensor of it is the module's bit for bit."""
    live = module.state_dict()
    shared = {tensor.data_ptr() for name, tensor in live.items() if name in stored}
    for name, tensor in live.items():
        if name not in stored and tensor.data_ptr() in shared:
            continue
        if name not in stored or not torch.equal(stored[name], tensor):
            raise RunFailure(f"{name} is not in the written file as it is in the model. Nothing was kept.")
    return [Layer.of(name, stored.get(f"{name}.weight", held)) for name, held in torch_layers(module).items()]
