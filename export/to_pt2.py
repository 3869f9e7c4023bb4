"""Write a model as a PyTorch program (``.pt2``) whose block-sparse layers run on this project's operators.

``model.pt2`` loads on any machine that has the operators (:func:`load_pt2`): without a GPU they compute by their plain
references, on one they launch the Triton kernels. Where there is a GPU, ``model.aoti.pt2`` is compiled for it as well:
it needs PyTorch only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from sparseticket.errors import RunFailure, UserError, reason
from sparseticket.export.layers import Layer, torch_layers
from sparseticket.export.loaded_model import DTYPES, LoadedModel
from sparseticket.export.quiet import quiet
from sparseticket.export.verify import Asked, Tolerance, compare
from sparseticket.masks import Masks, counted
from sparseticket.ticket import Ticket

if TYPE_CHECKING:
    from sparseticket.kernels.apply import Placement

FILE, COMPILED = "model.pt2", "model.aoti.pt2"
TRACED = (2, 8)  # batch and tokens; a batch of 1 would be burnt into the program as a constant
TRACED_FOR_GPU = (32, 128)  # a compiled package has the tiles that suit these rows, whatever it is given


def write_pt2(
    model: LoadedModel, ticket: Ticket | None, folder: Path, *, dtype: str, tolerance: Tolerance
) -> dict[str, Any]:
    """Write ``model.pt2`` (and, on a GPU, ``model.aoti.pt2``) into ``folder``; what the report says of it.

    Raises:
        UserError: the ticket has no layer that a block-sparse kernel runs.
        RunFailure: torch cannot express this model, or a written program answers differently from the model.
    """
    masks = _block_masks(model.module, ticket)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with quiet():
        program, placed = _program(model, masks, "cpu", dtype, TRACED)  # on the CPU, or it would load on GPUs only
        torch.export.save(program, folder / FILE)
        compared = {FILE: _compare(model, load_pt2(folder / FILE).module(), "cpu", tolerance)}
        if device == "cuda":
            compiled = str(folder / COMPILED)
            many_rows, _ = _program(model, masks, device, dtype, TRACED_FOR_GPU)
            torch._inductor.aoti_compile_and_package(many_rows, package_path=compiled)
            compared[COMPILED] = _compare(model, torch._inductor.aoti_load_package(compiled), device, tolerance)
    return {
        "device": device,
        "shapes": [{"file": name, **vars(one)} for name, several in compared.items() for one in several],
        "max_abs_error": max(one.max_abs_error for several in compared.values() for one in several),
        "tolerance": vars(tolerance),
        "kernels": [_described(one) for one in placed],
        "layers": [Layer.of(name, weight).report() for name, weight in torch_layers(model.module).items()],
    }


def load_pt2(path: str | Path) -> ExportedProgram:
    """Load a program that :func:`write_pt2` wrote, with its operators; ``.module()`` of it runs.

    Raises:
        UserError: the file is missing or no such program.
    """
    import sparseticket.kernels.bsr_packed
    import sparseticket.kernels.conv2d  # noqa: F401  (both register their operators)

    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}: export with --format pt2 first.")
    try:
        with quiet():
            return torch.export.load(path)
    except Exception as error:
        raise UserError(f"{path} is no program that this PyTorch ({torch.__version__}) loads: {error}") from error


class _Text(nn.Module):
    """A text model with its outputs as a plain dictionary, so that a program needs no class of transformers."""

    def __init__(self, model: LoadedModel, module: nn.Module) -> None:
        super().__init__()
        self.module, self.names = module, model.outputs

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        result = self.module(input_ids=input_ids, attention_mask=attention_mask, **types)
        return {name: result[name] for name in self.names}


class _Image(nn.Module):
    """The same of a vision model; images are fp32, whatever it computes in."""

    def __init__(self, model: LoadedModel, module: nn.Module) -> None:
        super().__init__()
        self.module, self.names = module, model.outputs
        self.dtype = next(module.parameters()).dtype

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        result = self.module(pixel_values.to(self.dtype))
        return {self.names[0]: result} if isinstance(result, Tensor) else {name: result[name] for name in self.names}


def _block_masks(module: nn.Module, ticket: Ticket | None) -> Masks:
    """Masks of the layers that a kernel with one form for any number of rows can run: those of whole blocks."""
    from sparseticket.kernels.pattern import block_of, pattern_of

    if ticket is None:
        raise UserError("--format pt2 needs a ticket, which says where blocks are dead: export a run or a round.")
    masks = counted(ticket.masks_in(module))
    blocky = {name: mask for name, mask in masks.items() if not mask.all() and block_of(pattern_of(mask))}
    if not blocky:
        raise UserError(
            f"--format pt2 is for tickets of blocks of 16 x 16 and more, and this one ({ticket.pattern}) has no layer "
            "made of such: find one with --pattern block:64x64, or make one with `convert TICKET --to block:64x64`."
        )
    return blocky


def _program(
    model: LoadedModel, masks: Masks, device: str, dtype: str, traced: tuple[int, int]
) -> tuple[ExportedProgram, list[Placement]]:
    from sparseticket.kernels import use_kernels

    sparse = copy.deepcopy(model.module).to(device=device, dtype=DTYPES[dtype]).eval().requires_grad_(False)
    placed = use_kernels(sparse, masks, "infer", everywhere=True, free_dense=True)
    named = (_Text if model.kind == "text" else _Image)(model, sparse)
    batch, length = traced
    example = model.example(batch, min(length, model.max_length))
    return _export(named, _on(example, device), model), placed


def _export(module: nn.Module, example: Mapping[str, Tensor], model: LoadedModel) -> ExportedProgram:
    dynamic = {0: Dim("batch", min=1)}
    if model.kind == "text":
        dynamic[1] = Dim("sequence", min=1, max=model.max_length)
    shapes_of_inputs = dict.fromkeys(example, dynamic)
    try:
        program = torch.export.export(module, (), dict(example), dynamic_shapes=shapes_of_inputs, strict=False)
    except Exception as error:
        raise RunFailure(
            f"torch could not export {type(model.module).__name__} as a program: {reason(error)}\n"
            "It can be written with --format hf or safetensors, and perhaps with onnx, which asks less of a model."
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # the Python stack that made it, with paths of the machine it was made on
    return program


def _compare(
    model: LoadedModel, run: Callable[..., dict[str, Tensor]], device: str, tolerance: Tolerance
) -> list[Asked]:
    """The largest difference between ``run`` and the dense model, for each shape that users will send."""

    def ask(inputs: Mapping[str, Tensor], words: str) -> dict[str, np.ndarray]:
        try:
            with torch.no_grad():
                answer = run(**_on(inputs, device))
        except Exception as error:
            raise RunFailure(f"the written program cannot run at {words}: {error}") from error
        return {name: value.float().cpu().numpy() for name, value in answer.items()}

    return compare(model, ask, tolerance)


def _on(inputs: Mapping[str, Tensor], device: str) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in inputs.items()}


def _described(placed: Placement) -> dict[str, Any]:
    names = " + ".join(name.removesuffix(".weight") for name in placed.names)
    return {"layers": names, "pattern": placed.pattern, "density": placed.density, "runs": placed.runs}
