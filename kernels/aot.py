"""Compile a kernel ahead of time, on a machine without a GPU, and read what the compiler made of it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SELECTION, BRANCH = re.compile(r"selp\.f32"), re.compile(r"\bbra\b|wait_group\.sync\.aligned 0")
FEWEST_ACCUMULATORS = 16  # of a thread: a tile of 64 x 32 over four warps
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 120: 99 * 1024}  # bytes a program may have, by compute capability


@dataclass(frozen=True)
class Compiled:
    """What the compiler made. ``spilled`` is bytes of local memory a thread; ``shared`` bytes a program."""

    ttir: str
    ptx: str
    shared: int
    spilled: int

    @property
    def uses_wgmma(self) -> bool:
        """Hopper's warp-group products of matrices."""
        return "wgmma.mma_async" in self.ptx

    @property
    def uses_tensor_cores(self) -> bool:
        """Any matrix instruction."""
        return self.uses_wgmma or "mma.sync" in self.ptx

    @property
    def selected_in_flight(self) -> int:
        """Selections between fp32 values behind a wait that leaves products running, before the next branch.

        As many as a thread has accumulators would read them before they are written: where a sum begins anew inside a
        loop, Triton's IR selects it there, and it is the compiler that makes a branch of that.
        """
        behind = re.split(r"wgmma\.wait_group\.sync\.aligned [1-9]", self.ptx)[1:]
        return max((len(SELECTION.findall(BRANCH.split(part)[0])) for part in behind), default=0)


def compile_ahead(
    kernel: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    *,
    arch: int,
    num_warps: int,
    num_stages: int,
    ones: tuple[str, ...] = (),
) -> Compiled:
    """Compile ``kernel`` for compute capability ``arch`` (80, 90, 120), as the launcher would for aligned arguments.

    ``signature`` says Triton's type of each argument that is no constexpr (``"*fp16"``, ``"i32"``, …), ``constexprs``
    the value of each that is; ``ones`` are integer arguments that are 1 (a contiguous stride), which the launcher makes
    constants.

    Raises:
        RuntimeError: the process runs Triton's interpreter, which has nothing to compile.
    """
    if not hasattr(kernel, "cache_key"):
        raise RuntimeError("kernels cannot be compiled in a process with TRITON_INTERPRET=1")
    names = kernel.arg_names
    constants = dict(constexprs) | dict.fromkeys(ones, 1)
    types = {name: "constexpr" if name in constants else signature[name] for name in names}
    attrs = {
        (place,): [["tt.divisibility", 16]]
        for place, (name, parameter) in enumerate(zip(names, kernel.params, strict=True))
        if name not in constants
        and not parameter.do_not_specialize
        and (types[name].startswith("*") or types[name] in ("i32", "i64"))
    }
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=attrs)
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
    return compile_source(source, GPUTarget("cuda", arch, 32), options)


def compile_source(source: ASTSource, target: GPUTarget, options: Mapping[str, Any]) -> Compiled:
    """The last step of :func:`compile_ahead`."""
    made = triton.compile(source, target=target, options=options)
    return Compiled(made.asm["ttir"], made.asm["ptx"], made.metadata.shared, _spilled(made.asm["cubin"]))


def _spilled(cubin: bytes) -> int:
    """Bytes of stack, which is where spilled registers go, of the kernel in ``cubin``."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [str(tool), "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"STACK:(\d+)", text)
    if not found:
        raise RuntimeError(f"cuobjdump did not say what the kernel uses: {text}")
    return int(found[1])
