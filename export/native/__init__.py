"""The library with the sparse operator: where it is, and which instruction set it takes on this machine.

It is C++ of this folder behind ONNX Runtime's C interface, compiled with the package or by ``make native``; it is no
Python module. Without it, the operator's body of standard operators runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

HERE = Path(__file__).parent
NAME = "_sparse_linear"
ENDINGS = (".so", ".dylib", ".pyd")
CPU_INFO = Path("/proc/cpuinfo")
AVX512 = {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
INSTRUCTIONS = {"vnni": AVX512 | {"avx512_vnni"}, "avx512": AVX512, "avx2": {"avx2", "fma"}}
ISA_VARIABLE = "SPARSETICKET_ISA"
MISSING = (
    "not built: it needs a C++17 compiler (gcc or clang) when the package is installed, or `make native` in a checkout"
)


def find_library() -> Path | None:
    """The compiled library beside this file, the newest where there are several; None where there is none."""
    found = [file for file in HERE.glob(f"{NAME}*") if file.suffix in ENDINGS]
    return max(found, key=lambda file: file.stat().st_mtime, default=None)


def isa() -> str | None:
    """What the library runs on here: "avx512-vnni", "avx512", "avx2" or "portable"; ``SPARSETICKET_ISA`` forces one.

    None where there is no library, or where this CPU lacks what is forced.
    """
    library = find_library()
    if library is None:
        return None
    ask = ctypes.CDLL(str(library)).sparseticket_isa
    ask.restype = ctypes.c_char_p
    found = ask()
    return found.decode() if found else None


def target(asked: str) -> str:
    """The CPU that "this" means, by its instructions ("avx2", "avx512", "vnni", "portable"); others are themselves."""
    if asked != "this":
        return asked
    found = None
    with contextlib.suppress(OSError, AttributeError):  # a library that does not load
        found = isa()
    if found is not None:
        return "vnni" if found == "avx512-vnni" else found
    with contextlib.suppress(OSError):
        flags = next((line for line in CPU_INFO.read_text().splitlines() if line.startswith("flags")), "").split()
        return next((name for name, needed in INSTRUCTIONS.items() if needed <= set(flags)), "portable")
    return "portable"


def report() -> str:
    """For ``sparseticket env``: what runs, or what is in the way."""
    if find_library() is None:
        return MISSING
    try:
        found = isa()
    except (OSError, AttributeError) as error:
        return f"built, but it cannot be loaded ({error}): build it again"
    if found is None:
        return f"built, but this CPU has no {os.environ.get(ISA_VARIABLE)}, which {ISA_VARIABLE} asks for"
    return f"built, runs on {found}"
