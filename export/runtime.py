"""Run an exported file in ONNX Runtime, with the library that makes its sparse operators fast.

To create a session yourself, register the library in its options before:
``options.register_custom_ops_library(sparseticket.export.runtime.library_path())``. Imports nothing but ONNX Runtime.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from sparseticket.errors import UserError
from sparseticket.export import native

CPU = "CPUExecutionProvider"


class NotLoaded(UserError):
    """ONNX Runtime refuses the file."""


def library_path() -> str:
    """The compiled library, for ``SessionOptions.register_custom_ops_library``.

    Raises:
        UserError: it is not built.
    """
    library = native.find_library()
    if library is None:
        raise UserError(f"the library of the sparse operator is {native.MISSING}.")
    return str(library)


def session(
    path: str | os.PathLike[str],
    providers: Sequence[Any] = (CPU,),
    session_options: onnxruntime.SessionOptions | None = None,
) -> onnxruntime.InferenceSession:
    """An ``InferenceSession`` of the file at ``path``, with the library registered.

    Where there is no library, its sparse operators run as the standard operators in their bodies, at about dense speed,
    with one warning. On other providers than the CPU they always do: the library is for CPUs.

    Args:
        path: the file.
        providers: as ONNX Runtime takes them.
        session_options: yours; the library is registered in it.

    Raises:
        UserError: ONNX Runtime refuses the library (it is too old for it, or the CPU lacks what ``SPARSETICKET_ISA``
            asks for), or ``session_options`` have the library already.
        NotLoaded: a UserError: ``path`` is no file that ONNX Runtime can load.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"a session is made of a file's path, not of {type(path).__name__}.")
    options = session_options or onnxruntime.SessionOptions()
    library = native.find_library()
    named = [providers] if isinstance(providers, str) else list(providers)
    on_cpu = [one if isinstance(one, str) else one[0] for one in named] == [CPU]
    if on_cpu and library is not None:
        _register(options, library)
    try:
        session = onnxruntime.InferenceSession(path, options, providers=named)
    except Exception as error:
        if "Domain already set" in str(error):
            raise UserError("these session_options have the library already: give each call new ones.") from error
        raise NotLoaded(f"ONNX Runtime cannot load {os.fspath(path)}: {error}") from error
    if on_cpu and library is None and _has_sparse_operators(path):
        warnings.warn(
            f"the library of the sparse operator is {native.MISSING}. The file runs at about dense speed.",
            stacklevel=2,
        )
    return session


def _register(options: onnxruntime.SessionOptions, library: Path) -> None:
    try:
        options.register_custom_ops_library(str(library))
    except Exception as error:
        raise UserError(
            f"ONNX Runtime {onnxruntime.__version__} does not take the library of the sparse operator: {error}. "
            "Where it is too old: pip install --upgrade onnxruntime; where the library is broken, build it again."
        ) from error


def _has_sparse_operators(path: str | os.PathLike[str]) -> bool:
    import onnx  # only where there is no library

    from sparseticket.export.sparse_op import sparse_nodes

    return bool(sparse_nodes(onnx.load(path, load_external_data=False)))
