"""Load what is to be measured: ONNX files in ONNX Runtime, model folders and programs in PyTorch; on CPU and GPU."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import onnxruntime
import torch

from sparseticket.bench.alone import Alone, measure_alone
from sparseticket.bench.inputs import Feeds, Needs, needs_of_model, needs_of_onnx, needs_of_program
from sparseticket.bench.sessions import PLAINLY, PROVIDERS, TorchCall, open_session
from sparseticket.bench.timing import Timed
from sparseticket.errors import UserError
from sparseticket.export.exporter import REPORT
from sparseticket.export.layers import Layer, file_layers, torch_layers
from sparseticket.export.loaded_model import DTYPES, load
from sparseticket.export.source import resolve
from sparseticket.export.sparse_op import sparse_nodes
from sparseticket.export.to_pt2 import COMPILED, FILE, load_pt2
from sparseticket.files import read_json

WHAT_A_CANDIDATE_IS = (
    "bench takes .onnx files, folders that `sparseticket export` wrote, runs, rounds, and model folders."
)


@dataclass(frozen=True)
class Candidate:
    """A model on disk, and where it can run.

    Attributes:
        name: how records call it.
        path: an ``.onnx`` file, a model folder, or a program's ``.pt2`` file.
        devices: "cpu", and "cuda" where this machine can.
        needs: what its inputs look like.
        bytes: size of its weights on disk, external data included.
        sparsity: share of exact zeros in the weights of its matrix products and convolutions.
        sparse_operators: how many layers of an ONNX file run on the sparse operator, where its library is; or of a
            program block-sparse, on a GPU.
        dtype: that a program computes in.
        ticket: of a model for PyTorch, the ticket beside it, by which its layers may run on sparse kernels.
    """

    name: str
    path: Path
    runtime: str  # "pytorch", "onnxruntime" or "pt2"
    devices: tuple[str, ...]
    needs: Needs
    bytes: int
    sparsity: float
    ticket: Path | None = None
    sparse_operators: int = 0
    dtype: str | None = None


@dataclass(frozen=True)
class Ready:
    """A candidate loaded on one device, ready to be called."""

    candidate: Candidate
    device: str
    timed: Timed
    alone: Alone
    on_kernels: tuple[str, ...] = ()

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
    folder = path.parent if path.name in (FILE, COMPILED) else path
    if (folder / FILE).is_file():
        return _program_candidate(name, folder)
    if path.is_file() and path.suffix != ".ticket":
        raise UserError(f"{argument} cannot be measured. {WHAT_A_CANDIDATE_IS}")
    source = resolve(path)
    return replace(_torch_candidate(name, source.model), ticket=source.ticket)


def prepare(
    candidate: Candidate, device: str, feeds: Feeds, threads: int, how: TorchCall = PLAINLY, *, kernels: bool = True
) -> Ready:
    """Load ``candidate`` on ``device``, here to be timed, and once more in a process of its own for load and memory.

    A model folder runs as ``how`` says; with ``kernels``, layers under its ticket may run on sparse ones, on a GPU.
    """
    of_folder = how._replace(ticket=candidate.ticket if kernels else None)
    how = of_folder if candidate.runtime == "pytorch" else PLAINLY
    inputs = feeds.for_model(candidate.needs)
    for file in _weight_files(candidate.path):
        file.read_bytes()  # so that the first candidate does not pay for a cold disk
    try:
        session = open_session(candidate.runtime, candidate.path, device, inputs, threads, how)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{candidate.path} cannot be loaded: {error}") from error
    try:
        session.call()
    except Exception as error:
        raise UserError(f"{candidate.name} does not run on these inputs ({feeds.words}): {error}") from error
    alone = measure_alone(candidate.runtime, candidate.path, device, inputs, threads, how, name=candidate.name)
    timed = Timed(f"{candidate.name} ({candidate.runtime}, {device})", session.call, session.synchronize)
    return Ready(candidate, device, timed, alone, session.on_kernels)


def _onnx_candidate(name: str, file: Path) -> Candidate:
    if file.stat().st_size == 0:
        raise UserError(f"{file} is empty: export it again.")
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
    sparse = len(sparse_nodes(onnx.load(file, load_external_data=False)))
    return Candidate(name, file, "onnxruntime", devices, needs, _size(file), _sparsity(layers), sparse_operators=sparse)


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


def _program_candidate(name: str, folder: Path) -> Candidate:
    """What was compiled for a GPU where there is one; on the CPU its layers would be dense products of zeros, too."""
    program, compiled = load_pt2(folder / FILE), folder / COMPILED
    on_gpu = torch.cuda.is_available() and compiled.is_file()
    file, device = (compiled, "cuda") if on_gpu else (folder / FILE, "cpu")
    report = read_json(folder / REPORT)
    try:
        layers = [Layer(one["name"], one["zeros"], one["weights"]) for one in report["layers"]]
        sparsity, dtype = _sparsity(layers), report["dtype"]
        if dtype not in DTYPES:
            raise KeyError("dtype")
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / REPORT} does not say what its layers hold ({error}): export it again.") from error
    sparse = sum(str(node.target).startswith("sparseticket.") for node in program.graph.nodes)
    needs = needs_of_program(program, folder)
    return Candidate(name, file, "pt2", (device,), needs, _size(file), sparsity, sparse_operators=sparse, dtype=dtype)


def _weight_files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.glob("model*.safetensors"))
    if path.suffix == ".pt2":
        return [path]
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
