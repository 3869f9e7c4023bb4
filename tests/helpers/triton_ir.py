"""Triton's IR of a kernel, which takes no time; compiling it takes seconds."""

from unittest.mock import patch

from triton._C.libtriton import ir
from triton.compiler import make_backend

from sparseticket.kernels import aot


def only_ir():
    """Inside, `compile_ahead` stops at Triton's IR (`ttir`, before its passes)."""
    return patch.object(aot, "compile_source", _ir_of)


def _ir_of(source, target, options):
    backend, context = make_backend(target), ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    parsed = backend.parse_options(options)
    functions, modules = backend.get_codegen_implementation(parsed), backend.get_module_map()
    return aot.Compiled(str(source.make_ir(target, parsed, functions, modules, context)), "", 0, 0)
