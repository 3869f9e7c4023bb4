"""Load what is to be measured: ONNX files in ONNX Runtime, model folders in PyTorch; on the CPU, and on a GPU."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime
import torch

from sparseticket.bench.inputs import Feeds, Needs, needs_of_model, needs_of_onnx
from sparseticket.bench.machine import peak_memory
from sparseticket.bench.timing import Timed
from sparseticket.errors import UserError
from sparseticket.export.layers import Layer, file_layers, torch_layers
from sparseticket.export.loaded_model import load
from sparseticket.export.source import resolve

WHAT_A_CANDIDATE_IS = (
    "bench takes .onnx files, folders that `sparseticket export` wrote, runs, rounds, and model folders."
)
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@dataclass(frozen=True)
class Candidate:
    """A model on disk, and where it can run.

    Attributes:
        name: how records call it.
        path: an ``.onnx`` file or a model folder.
        devices: "cpu", and "cuda" where this machine can.
        needs: what its inputs look like.
        bytes: size of its weights on disk, external data included.
        sparsity: share of exact zeros in the weights of its matrix products and convolutions.
    """

    name: str
    path: Path
    runtime: str  # "pytorch" or "onnxruntime"
    devices: tuple[str, ...]
    needs: Needs
    bytes: int
    sparsity: float


@dataclass(frozen=True)
class Ready:
    """A candidate loaded on one device, ready to be called."""

    candidate: Candidate
    device: str
    timed: Timed
    load_ms: float
    memory_bytes: int | None

    @property
    def provider(self) -> str:
        return f"{self.candidate.runtime}-{self.device}"


def find(name: str, argument: str) -> Candidate:
    """What ``argument`` (a path) means. :class:`UserError` where it is nothing that can be measured."""
    path = Path(argument)
    if not path.exists():
        raise UserError(f"there is no {argument}. {WHAT_A_CANDIDATE_IS}")
    if (path / "model.onnx").is_file():
        path = path / "model.onnx"
    if path.is_file() and path.suffix == ".onnx":
        return _onnx_candidate(name, path)
    if path.is_file() and path.suffix != ".ticket":
        raise UserError(f"{argument} cannot be measured. {WHAT_A_CANDIDATE_IS}")
    return _torch_candidate(name, resolve(path).model)


def prepare(candidate: Candidate, device: str, feeds: Feeds, threads: int) -> Ready:
    """Load ``candidate`` on ``device``, and run it once: milliseconds to load, and the memory that both took."""
    for file in _weight_files(candidate.path):
        file.read_bytes()  # so that the first candidate does not pay for a cold disk
    with peak_memory() as memory:
        start = time.perf_counter()
        make = _onnx_call if candidate.runtime == "onnxruntime" else _torch_call
        call, synchronize = make(candidate, device, feeds, threads)
        load_ms = 1000 * (time.perf_counter() - start)
        try:
            call()
        except Exception as error:
            raise UserError(f"{candidate.name} does not run on these inputs ({feeds.words}): {error}") from error
    timed = Timed(f"{candidate.name} ({candidate.runtime}, {device})", call, synchronize)
    return Ready(candidate, device, timed, load_ms, memory.bytes if device == "cpu" else None)


def _onnx_candidate(name: str, file: Path) -> Candidate:
    try:
        layers = file_layers(file)
        needs = needs_of_onnx(file)
    except (onnx.checker.ValidationError, ValueError, OSError, RuntimeError) as error:
        raise UserError(f"{file} cannot be read as ONNX: {error}") from error
    except Exception as error:
        if type(error).__name__ != "DecodeError":  # protobuf's; not imported for its name alone
            raise
        raise UserError(f"{file} is not an ONNX file, or it is damaged: export it again.") from error
    available = onnxruntime.get_available_providers()
    devices = tuple(device for device, provider in PROVIDERS.items() if provider in available)
    return Candidate(name, file, "onnxruntime", devices, needs, _size(file), _sparsity(layers))


def _torch_candidate(name: str, folder: Path) -> Candidate:
    model = load(folder)
    layers = [
        Layer(layer, int((weight == 0).sum()), weight.numel()) for layer, weight in torch_layers(model.module).items()
    ]
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    needs, size = needs_of_model(model), _size(folder)
    del model
    gc.collect()
    return Candidate(name, folder, "pytorch", devices, needs, size, _sparsity(layers))


def _onnx_call(
    candidate: Candidate, device: str, feeds: Feeds, threads: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # or the idle threads of one session would burn the cores that the next candidate is timed on
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = onnxruntime.InferenceSession(candidate.path, options, providers=[PROVIDERS[device]])
    except Exception as error:
        raise UserError(f"ONNX Runtime cannot load {candidate.path}: {error}") from error
    binding = session.io_binding()
    for name, array in feeds.for_onnx(candidate.needs).items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, device)
    return lambda: session.run_with_iobinding(binding), binding.synchronize_outputs


def _torch_call(
    candidate: Candidate, device: str, feeds: Feeds, threads: int
) -> tuple[Callable[[], object], Callable[[], object] | None]:
    module = load(candidate.path, attention=None).module.to(device)
    inputs = {name: torch.from_numpy(array).to(device) for name, array in feeds.for_torch(candidate.needs).items()}
    arguments, named = ((inputs["pixel_values"],), {}) if "pixel_values" in inputs else ((), inputs)

    @torch.inference_mode()
    def call() -> object:
        return module(*arguments, **named)

    return call, torch.cuda.synchronize if device == "cuda" else None


def _weight_files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.glob("model*.safetensors"))
    beside = {
        entry.value
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return [path, *(path.parent / name for name in sorted(beside))]


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in _weight_files(path))


def _sparsity(layers: list[Layer]) -> float:
    return sum(layer.zeros for layer in layers) / max(1, sum(layer.weights for layer in layers))
