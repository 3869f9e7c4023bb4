"""What an export may be asked for, and what is refused before any work is done."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args, get_type_hints

from sparseticket.errors import UserError

LOWEST_OPSET, HIGHEST_OPSET = 17, 25  # at 26, torch writes a file that is labelled 18 and that ONNX Runtime rejects
NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "pt2": ("triton",)}


@dataclass(frozen=True)
class Options:
    """What is written, and how far it may be from PyTorch.

    Attributes:
        layout: how the weights lie in the file: zeros included, without what is dead, as values and positions, or with
            the sparse operator where it is faster; "auto" is the fastest of dense, shrunk, sparse-op and INT8.
        target: the CPU that sparse-op and auto are for: this machine's (auto then measures), or one with these
            instructions, by the committed table.
        quantize: INT8 weights; activations measured at run time ("dynamic") or on data beforehand ("static").
        optimize: "ort" fuses attention, GELU and layer norms into ONNX Runtime's own operators.
        opset: version of ONNX's operators, 17 to 25.
        external_data: weights go into ``model.onnx.data``; they always do where they exceed protobuf's 2 GB.
        dtype: of the weights, and of what is computed with them; bf16 is not for ONNX.
        atol: largest absolute difference to PyTorch, in units of the output; None is 1e-4 (fp32), 2e-2 (fp16) or 0.16
            (bf16).
        rtol: largest relative difference on top of it; None is 0 (fp32 text), 1e-4 (fp32 vision: logits of an
            untrained ResNet-50 reach 390, and fp32 has no more digits), 2e-2 (fp16) or 0.16 (bf16).
        agreement: with INT8, the smallest share of decisions (largest logit, ...) that are PyTorch's; None is 0.9.
        metric_drop: what the task's metric may lose, as a fraction; None is 0.01, with INT8 0.03, or 1 - a lower
            ``agreement``. Layout "auto" considers INT8 only where it is given.
        task: the task to measure on; None is the one that the source was trained on, where ``data`` is given.
        data: its data, in the layout that `find --data` takes.
    """

    format: Literal["onnx", "pt2", "safetensors", "hf"] = "onnx"
    layout: Literal["dense", "shrunk", "sparse-storage", "sparse-op", "auto"] = "dense"
    target: Literal["this", "avx2", "avx512", "vnni"] = "this"
    quantize: Literal["none", "dynamic", "static"] = "none"
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    optimize: Literal["none", "ort"] = "none"
    opset: int = 20
    external_data: bool = False
    atol: float | None = None
    rtol: float | None = None
    agreement: float | None = None
    metric_drop: float | None = None
    task: str | None = None
    data: Path | None = None

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            choices = [choice for choice in get_args(hint) if isinstance(choice, str)]
            if choices and getattr(self, name) not in choices:
                raise UserError(f"--{name} {getattr(self, name)} is not known: it is one of {', '.join(choices)}.")
        if not LOWEST_OPSET <= self.opset <= HIGHEST_OPSET:
            raise UserError(
                f"--opset {self.opset} cannot be written: choose one from {LOWEST_OPSET} to {HIGHEST_OPSET}."
            )
        for name in ("atol", "rtol"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UserError(f"--{name} {value} is no tolerance: give a number that is 0 or more.")
        if self.agreement is not None and not 0 <= self.agreement <= 1:
            raise UserError(f"--agreement {self.agreement} is no share of decisions: give a number from 0 to 1.")
        if self.metric_drop is not None and not 0 <= self.metric_drop <= 1:
            raise UserError(f"--metric-drop {self.metric_drop} is no loss of a metric: give a fraction from 0 to 1.")
        self._check_format()
        self._check_layout()
        self._check_int8()
        if self.metric_drop is not None and not self.measures:
            raise UserError(
                "--metric-drop is how much the task's metric may lose: give the task's data with --data DIR."
            )
        if self.data is not None and not self.data.exists():
            raise UserError(f"there is no {self.data}: give the data's place.")

    @property
    def int8(self) -> bool:
        """The weights are quantized, dynamically or statically."""
        return self.quantize != "none"

    @property
    def measures(self) -> bool:
        """The task's metric of the file is measured beside PyTorch's."""
        return self.data is not None or self.task is not None

    def _check_format(self) -> None:
        if self.format == "hf" and self.layout == "shrunk":
            raise UserError(
                "a configuration of transformers cannot say that layers differ in size: use --format safetensors, "
                "whose folder sparseticket.export.load_shrunk loads, or onnx."
            )
        if self.format == "pt2" and self.layout == "shrunk":
            raise UserError(
                "--format pt2 is for live blocks, and shrunk layers have none that are dead: choose --layout dense."
            )
        if self.format == "onnx" and self.dtype == "bf16":
            raise UserError("ONNX Runtime has hardly an operator in bf16: choose --dtype fp16, or another format.")
        if self.format != "onnx" and (asked := self._onnx_only()):
            raise UserError(f"--{asked} is for --format onnx: leave it out.")

    def _check_layout(self) -> None:
        may_be_sparse_op = self.layout in ("sparse-op", "auto")
        if may_be_sparse_op and self.dtype == "fp16":
            raise UserError(
                f"--layout {self.layout} is for CPUs, and the sparse operator takes fp32: leave out --dtype fp16."
            )
        if may_be_sparse_op and self.optimize == "ort":
            raise UserError(
                "fusing hides the linear layers that the sparse operator would take: leave out --optimize ort."
            )
        if self.target != "this" and not may_be_sparse_op:
            raise UserError("--target is for --layout sparse-op and auto: leave it out.")
        if self.layout == "auto" and self.int8:
            raise UserError(
                "--layout auto chooses INT8 by itself, where --data and --metric-drop say how much the task's metric "
                "may lose: leave out --quantize."
            )
        if self.layout == "sparse-op" and self.quantize == "static":
            raise UserError("the sparse operator measures activations when it runs: use --quantize dynamic.")
        if self.layout == "sparse-storage" and self.external_data:
            raise UserError("sparse-storage keeps all weights inside the file: leave out --external-data.")

    def _check_int8(self) -> None:
        if not self.int8:
            if self.agreement is not None and self.layout != "auto":
                raise UserError("--agreement is for INT8 files; floats are judged by --atol and --rtol.")
            return
        if self.optimize == "ort":
            raise UserError(
                "fuse or quantize, not both: the quantizer cannot see into fused attention (measured on BERT-base: "
                "1.83x instead of 2.50x). Leave out --optimize ort; INT8 is the faster of the two."
            )
        if self.layout == "sparse-storage":
            raise UserError(
                "a sparse-storage file cannot be quantized, and INT8 weights with 8-byte positions are smaller than "
                "dense ones only above 89 % zeros: leave out --quantize or --layout sparse-storage."
            )
        if self.dtype == "fp16":
            raise UserError(
                "INT8 operators take fp32 (ONNX Runtime rejects fp16 there): leave out --dtype fp16 or --quantize."
            )
        if self.quantize == "static" and not self.measures:
            raise UserError(
                "static quantization measures activations on real data: give the task's with --data DIR "
                "(or --task NAME for one that brings its own)."
            )
        if self.atol is not None or self.rtol is not None:
            raise UserError("--atol and --rtol are for floats; an INT8 file is judged by its decisions: --agreement.")

    def _onnx_only(self) -> str | None:
        same = {"format", "dtype"} | ({"layout"} if self.layout == "shrunk" else set())
        same |= {"atol", "rtol"} if self.format == "pt2" else set()
        asked = (item.name for item in fields(self) if getattr(self, item.name) != item.default)
        return next((name.replace("_", "-") for name in asked if name not in same), None)

    def check_kind(self, kind: str) -> None:
        """Refuse what was measured to be useless for "text" or "vision" models."""
        if kind == "vision" and self.quantize == "dynamic":
            raise UserError(
                "dynamic quantization makes a ResNet slower (measured: 7x, ONNX Runtime has no fast integer "
                "convolution with it): use --quantize static --data DIR."
            )
        if kind == "vision" and self.optimize == "ort":
            raise UserError(
                "--optimize ort fuses attention, and a ResNet has none; ONNX Runtime fuses its convolutions by itself "
                "when it loads the file. Leave it out."
            )
        if kind == "text" and self.quantize == "static":
            raise UserError(
                "static quantization ruins an encoder (measured on MiniLM: cosine 0.41 to PyTorch's embeddings, "
                "dynamic 0.99, which is also twice as fast): use --quantize dynamic."
            )

    def check_installed(self) -> None:
        """Refuse a format whose libraries are not there."""
        for library in NEEDS.get(self.format, ("safetensors",)):
            if importlib.util.find_spec(library) is None:
                raise UserError(
                    f"--format {self.format} needs {library}, which is not installed: pip install {library}"
                )
