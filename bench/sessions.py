"""A model loaded in its runtime, its inputs bound. Imports only that runtime: a process of its own starts with this."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

WITHOUT_LIBRARY = "onnxruntime, no library"  # sparse operators run in their bodies, as where only ONNX Runtime is
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class TorchCall(NamedTuple):
    """How PyTorch runs a model folder.

    Attributes:
        dtype: that its weights are cast to: fp32, fp16 or bf16.
        launched: "eager", from Python; "compiled", by ``torch.compile``; "graph", as a CUDA graph.
        ticket: by which its layers run on sparse kernels where they were measured to be faster, on a GPU.
    """

    dtype: str = "fp32"
    launched: str = "eager"
    ticket: Path | None = None


PLAINLY = TorchCall()


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
    how: TorchCall = PLAINLY,
) -> Session:
    """Load ``path`` and bind its ``inputs`` (by the model's own names) on ``device``.

    ``runtime`` is "onnxruntime", "onnxruntime, no library", "pt2" (a program that export wrote) or "pytorch" (a model
    folder, run as ``how`` says). PyTorch's number of threads is the caller's to set.
    """
    if runtime == "pytorch":
        return _torch(path, device, inputs, how)
    if runtime == "pt2":
        return _program(path, device, inputs)
    return _onnx(path, device, inputs, threads, library=runtime != WITHOUT_LIBRARY)


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


def _torch(path: Path, device: str, inputs: Mapping[str, np.ndarray], how: TorchCall) -> Session:
    import torch

    from sparseticket.errors import UserError, reason
    from sparseticket.export.loaded_model import DTYPES, load
    from sparseticket.kernels.clock import graphed

    dtype = DTYPES[how.dtype]
    module = load(path, attention=None).module.to(device, dtype).eval()
    on_kernels = _use_kernels(module, how, inputs) if how.ticket is not None and device == "cuda" else ()
    tensors = _tensors(inputs, device)
    tensors = {name: one.to(dtype) if one.is_floating_point() else one for name, one in tensors.items()}
    arguments, named = ((tensors["pixel_values"],), {}) if "pixel_values" in tensors else ((), tensors)
    run = torch.compile(module, dynamic=False) if how.launched == "compiled" else module

    @torch.inference_mode()
    def call() -> object:
        return run(*arguments, **named)

    if how.launched != "graph":
        return Session(call, _waits_for(device), on_kernels)
    try:
        replay = graphed(call, device)
    except Exception as error:
        raise UserError(
            f"{path} cannot be captured in a CUDA graph ({reason(error)}): try --launched compiled."
        ) from error

    def call_again(held: object = call) -> object:  # a graph knows addresses, and does not keep what lies there
        return replay()

    return Session(call_again, _waits_for(device), on_kernels)


@contextmanager
def compiling_anew() -> Iterator[None]:
    """Inside, ``torch.compile`` has seen no model yet, and says so where it gives up on one.

    It keeps 8 forms of a function, for all models and shapes together, and would run what comes next as from Python.
    """
    import torch

    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield


def _program(path: Path, device: str, inputs: Mapping[str, np.ndarray]) -> Session:
    """A program as it is for the CPU, or as it was compiled for a GPU."""
    import torch

    from sparseticket.export.to_pt2 import load_pt2

    run = torch._inductor.aoti_load_package(str(path)) if device == "cuda" else load_pt2(path).module()
    tensors = _tensors(inputs, device)
    return Session(torch.no_grad()(lambda: run(**tensors)), _waits_for(device))


def _tensors(inputs: Mapping[str, np.ndarray], device: str) -> dict[str, Tensor]:
    import torch

    return {name: torch.from_numpy(array).to(device) for name, array in inputs.items()}


def _waits_for(device: str) -> Callable[[], object] | None:
    import torch

    return torch.cuda.synchronize if device == "cuda" else None


def _use_kernels(module: nn.Module, how: TorchCall, inputs: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    from sparseticket.errors import UserError
    from sparseticket.kernels import use_kernels
    from sparseticket.ticket import Ticket

    masks = Ticket.load(how.ticket).masks_in(module)
    rows = [array.shape[0] * array.shape[1] for name, array in inputs.items() if name == "input_ids"]
    try:
        placed = use_kernels(module, masks, "infer", measure_rows=rows, launched=how.launched)
    except ValueError as error:
        raise UserError(f"{how.ticket} does not fit the model beside it: {error}") from error
    return tuple(str(one) for one in placed if not one.plan.is_dense)
