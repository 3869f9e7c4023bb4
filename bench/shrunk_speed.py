"""How fast a network is in ONNX Runtime without half of its heads and neurons, or inner channels; and with INT8 on top.

Shapes are those of BERT-base and ResNet-50, weights are random: nothing here is about accuracy. One thread, batch 1
(128 tokens; one image of 224 x 224); the files take turns. Exporting and measuring takes about ten minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import transformers
from torch import Tensor, nn

from sparseticket.bench import timing
from sparseticket.bench.machine import describe
from sparseticket.bench.messages import errors_as_messages
from sparseticket.export import quantize
from sparseticket.export.exporter import export_model
from sparseticket.export.shrink import backbone_of, removable
from sparseticket.files import write_json
from sparseticket.hub import quiet_transformers
from sparseticket.models import Head, resolve
from sparseticket.tensors import save_tensors

RESULTS = Path("bench/results")
TOKENS, CLASSES = 128, 1000
CALIBRATION_BATCHES = 4
BASELINE = "dense"
LEAST = {"bert-base": {"shrunk": 1.8, "shrunk int8": 3.8}, "resnet50": {"shrunk": 1.9, "shrunk int8": 4.5}}


@dataclass(frozen=True)
class Shape:
    """A network to measure.

    Attributes:
        save: writes a model folder in which half of each layer's entries is 0 at every end.
        feeds: what ONNX Runtime is called with.
        to_int8: writes an ONNX file quantized to another.
    """

    name: str
    words: str
    save: Callable[[Path], None]
    feeds: dict[str, np.ndarray]
    to_int8: Callable[[Path, Path], None]


def bert(name: str = "bert-base", tokens: int = TOKENS, **sizes: int) -> Shape:
    """An encoder with a classifier; by default in BERT-base's sizes."""

    def save(folder: Path) -> None:
        torch.manual_seed(0)
        model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes))
        with quiet_transformers():
            halve(model).save_pretrained(folder)

    ids = np.random.default_rng(0).integers(1, transformers.BertConfig(**sizes).vocab_size, (1, tokens))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return Shape(name, f"batch 1, {tokens} tokens", save, feeds, lambda *files: quantize.dynamic(*files, large=False))


def resnet(name: str = "resnet50") -> Shape:
    """A ResNet of the registry with its usual image size."""
    spec = resolve(name)
    size = spec.format.size

    def save(folder: Path) -> None:
        torch.manual_seed(0)
        weights = folder.with_suffix(".safetensors")
        save_tensors(weights, halve(spec.make_module(CLASSES)).state_dict())
        spec.build(Head("image-classification", CLASSES), seed=0, weights=weights).save(folder)

    def to_int8(source: Path, target: Path) -> None:
        quantize.static(source, target, RandomImages(size), "pixel_values", large=False)

    feeds = {"pixel_values": np.random.default_rng(0).standard_normal((1, 3, size, size), dtype=np.float32)}
    return Shape(name, f"batch 1, images 3x{size}x{size}", save, feeds, to_int8)


def shapes() -> list[Shape]:
    """What the command measures."""
    return [bert(), resnet()]


class RandomImages:
    """Noise to calibrate with: enough where only the speed is measured."""

    def __init__(self, size: int) -> None:
        self.size = size

    def batches(self, *_: Any, **__: Any) -> Iterator[dict[str, Tensor]]:
        """A few batches of four images, float32 [4, 3, size, size]."""
        draw = torch.Generator().manual_seed(0)
        for _batch in range(CALIBRATION_BATCHES):
            yield {"pixels": torch.randn(4, 3, self.size, self.size, generator=draw)}


@torch.no_grad()
def halve(module: nn.Module) -> nn.Module:
    """Write 0 into the second half of each layer's heads, neurons or channels, at every end that is a parameter."""
    backbone = backbone_of(module)
    parameters = dict(backbone.named_parameters())
    for family in removable(backbone):
        for end in family.slices:
            if end.name in parameters:
                first = family.count // 2 * end.size
                parameters[end.name].narrow(end.dim, first, family.count * end.size - first).zero_()
    return module


def measure(shape: Shape, seconds: float) -> dict[str, Any]:
    """Export ``shape`` dense and shrunk, both in fp32 and INT8, and time the four files against the dense one."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shape.save(folder / "model")
        files = {}
        for layout in ("dense", "shrunk"):
            export_model(folder / "model", folder / layout, layout=layout)
            files[layout] = folder / layout / "model.onnx"
            files[f"{layout} int8"] = folder / layout / "int8.onnx"
            shape.to_int8(files[layout], files[f"{layout} int8"])
        sizes = {name: file.stat().st_size for name, file in files.items()}
        samples = timing.interleave([_timed(name, file, shape.feeds) for name, file in files.items()], seconds=seconds)
    times = dict(zip(files, samples, strict=True))
    return {
        "inputs": shape.words,
        "files": {name: _record(times[BASELINE], times[name], sizes[name]) for name in files},
        "least": LEAST.get(shape.name, {}),
    }


def show(results: dict[str, Any]) -> None:
    """Print each file's time, and how it stands against the mark it is held to."""
    for name, result in results["models"].items():
        print(f"{name}, {result['inputs']}, ONNX Runtime, {results['machine']['threads']} thread")
        for file, one in result["files"].items():
            mark = f", at least {result['least'][file]} is wanted" if file in result["least"] else ""
            print(
                f"  {file:12} {one['p50_ms']:8.2f} ms  {one['bytes'] / 1e6:6.1f} MB  {one['speedup']:.2f}x "
                f"({one['speedup_low']:.2f}-{one['speedup_high']:.2f}){mark}"
            )
    if not results["vnni"]:
        print("This CPU has no VNNI: the marks for INT8 are for one that has.")


@errors_as_messages()
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m sparseticket.bench.shrunk_speed", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long to measure each network")
    parser.add_argument("--out", type=Path, default=RESULTS / "shrunk_speed_cpu.json")
    given = parser.parse_args(arguments)
    results = {"machine": describe(1), "vnni": _has_vnni(), "models": {}}
    for shape in shapes():
        results["models"][shape.name] = measure(shape, given.seconds)
    write_json(given.out, results)
    show(results)
    print(f"Written to {given.out}")


def _timed(name: str, file: Path, feeds: dict[str, np.ndarray]) -> timing.Timed:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return timing.Timed(name, lambda: session.run(None, feeds))


def _record(baseline: np.ndarray, times: np.ndarray, size: int) -> dict[str, float]:
    ratio = timing.speedup(baseline, times)
    return {
        **timing.percentiles(times),
        "n": int(times.size),
        "bytes": size,
        "speedup": ratio.median,
        "speedup_low": ratio.low,
        "speedup_high": ratio.high,
    }


def _has_vnni() -> bool | None:
    with contextlib.suppress(OSError):
        return "vnni" in Path("/proc/cpuinfo").read_text()
    return None


if __name__ == "__main__":
    main()
