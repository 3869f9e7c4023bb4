"""A model loaded in its runtime, its inputs bound. Imports only that runtime: a process of its own starts with this."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
Session = tuple[Callable[[], object], Callable[[], object] | None]  # the call, and what waits for the device


def open_session(runtime: str, path: Path, device: str, inputs: Mapping[str, np.ndarray], threads: int) -> Session:
    """Load ``path`` and bind its ``inputs`` (by the model's own names) on ``device``.

    ``runtime`` is "onnxruntime" or "pytorch"; PyTorch's number of threads is the caller's to set.
    """
    if runtime == "onnxruntime":
        return _onnx(path, device, inputs, threads)
    return _torch(path, device, inputs)


def _onnx(path: Path, device: str, inputs: Mapping[str, np.ndarray], threads: int) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # or the idle threads of one session would burn the cores that the next candidate is timed on
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(path, options, providers=[PROVIDERS[device]])
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, device)
    return lambda: session.run_with_iobinding(binding), binding.synchronize_outputs


def _torch(path: Path, device: str, inputs: Mapping[str, np.ndarray]) -> Session:
    import torch

    from sparseticket.export.loaded_model import load

    module = load(path, attention=None).module.to(device)
    tensors = {name: torch.from_numpy(array).to(device) for name, array in inputs.items()}
    arguments, named = ((tensors["pixel_values"],), {}) if "pixel_values" in tensors else ((), tensors)

    @torch.inference_mode()
    def call() -> object:
        return module(*arguments, **named)

    return call, torch.cuda.synchronize if device == "cuda" else None
