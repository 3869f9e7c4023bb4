"""An ONNX file behind the signature of the PyTorch model that it was exported from."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from sparseticket.export.loaded_model import LoadedModel, by_name
from sparseticket.export.verify import open_session


class OnnxModule(nn.Module):
    """Runs ``file`` on the CPU, and is called as ``model.module`` is: so a task evaluates either with the same code."""

    def __init__(self, model: LoadedModel, file: Path) -> None:
        super().__init__()
        self._session = open_session(file)
        self._model = (model.inputs, model.outputs, model.kind)
        self.anchor = nn.Parameter(torch.zeros(()), requires_grad=False)  # tells a task which device it is on

    @property
    def base_model(self) -> nn.Module:
        """Itself: there is no backbone inside that hooks could reach."""
        return self

    def forward(self, *arguments: Tensor, **named: Tensor) -> Tensor | ModelOutput:
        """Outputs as PyTorch tensors: a vision model's only one alone, several and those of a text by name."""
        inputs, outputs, kind = self._model
        given = dict(zip(inputs, arguments, strict=False)) | named
        feeds = {name: tensor.contiguous().numpy() for name, tensor in by_name(inputs, given).items()}
        tensors = [torch.from_numpy(array) for array in self._session.run(list(outputs), feeds)]
        return (
            tensors[0]
            if kind == "vision" and len(tensors) == 1
            else ModelOutput(dict(zip(outputs, tensors, strict=True)))
        )
