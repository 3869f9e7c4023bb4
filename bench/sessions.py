"""A model loaded in its runtime, its inputs bound. Imports only that runtime: a process of its own starts with this."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import nn

WITHOUT_LIBRARY = "onnxruntime, no library"  # sparse operators run in their bodies, as where only ONNX Runtime is
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class Session(NamedTuple):
    """The call, what waits for the device, and a line for each group of layers that a sparse kernel runs."""

    call: Callable[[], object]
    synchronize: Callable[[], object] | None
    on_kernels: tuple[str, ...] = ()


def open_session(
    runtime: str,
    path: Path,
    device: str,
    inputs: Mapping[str, np.ndarray],
    threads: int,
    ticket: Path | None = None,
) -> Session:
    """Load ``path`` and bind its ``inputs`` (by the model's own names) on ``device``.

    ``runtime`` is "onnxruntime", "onnxruntime, no library" or "pytorch"; PyTorch's number of threads is the caller's to
    set. With a ``ticket``, PyTorch's layers run on sparse kernels where they were measured to be faster, on a GPU.
    """
    if runtime != "pytorch":
        return _onnx(path, device, inputs, threads, library=runtime != WITHOUT_LIBRARY)
    return _torch(path, device, inputs, ticket)


def _onnx(path: Path, device: str, inputs: Mapping[str, np.ndarray], threads: int, *, library: bool) -> Session:
    import onnxruntime

    from sparseticket.export import runtime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # or the idle threads of one session would burn the cores that the next candidate is timed on
    options.add_session_config_entry("session.force_spinning_stop", "1")
    providers = [PROVIDERS[device]]
    if library:
        session = runtime.session(path, providers, options)
    else:
        session = onnxruntime.InferenceSession(path, options, providers)
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, device)
    return Session(lambda: session.run_with_iobinding(binding), binding.synchronize_outputs)


def _torch(path: Path, device: str, inputs: Mapping[str, np.ndarray], ticket: Path | None) -> Session:
    import torch

    from sparseticket.export.loaded_model import load

    module = load(path, attention=None).module.to(device)
    on_kernels = _use_kernels(module, ticket, inputs) if ticket is not None and device == "cuda" else ()
    tensors = {name: torch.from_numpy(array).to(device) for name, array in inputs.items()}
    arguments, named = ((tensors["pixel_values"],), {}) if "pixel_values" in tensors else ((), tensors)

    @torch.inference_mode()
    def call() -> object:
        return module(*arguments, **named)

    return Session(call, torch.cuda.synchronize if device == "cuda" else None, on_kernels)


def _use_kernels(module: nn.Module, ticket: Path, inputs: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    from sparseticket.errors import UserError
    from sparseticket.export.against_ticket import parameters_of
    from sparseticket.kernels import use_kernels
    from sparseticket.ticket import Ticket

    loaded = Ticket.load(ticket)
    named = {own: loaded.masks[name] for name, own in parameters_of(module, loaded.masks).items()}
    rows = [array.shape[0] * array.shape[1] for name, array in inputs.items() if name == "input_ids"]
    try:
        placed = use_kernels(module.eval(), named, "infer", measure_rows=rows)
    except ValueError as error:
        raise UserError(f"{ticket} does not fit the model beside it: {error}") from error
    return tuple(str(one) for one in placed if not one.plan.is_dense)
