"""Ship tickets: to ONNX, verified against PyTorch, or as plain weights.

``exporter.export_model`` is the way in, ``report`` what it says on the screen. ``options`` says what may be asked for
and refuses the rest before any work, ``source`` what may be exported, ``loaded_model`` and ``text_model`` load it,
``prepare`` makes of it the model that is traced, ``against_ticket`` checks its zeros, ``provenance`` says where it is
from. ``to_onnx`` is the order of the steps: ``graph`` traces (and fuses), ``quantize`` or ``half`` changes the
arithmetic, ``sparse_storage`` comes last; ``quiet`` holds back what libraries say meanwhile. ``linears`` finds linear
layers, ``break_even`` says which run faster on the sparse operator, ``sparse_rewrite`` puts it there, ``attention`` and
``add_layer_norm`` those beside it (all by ``graph_index``), and ``sparse_op`` says how a file holds them; ``native``
is their library, ``runtime`` makes sessions with it. ``auto`` tries several layouts. ``places`` and ``layers`` recount
the zeros in the written file; ``verify``, ``decisions`` and ``on_task`` (through ``onnx_module``) compare its answers
with PyTorch's. ``shrink`` removes dead heads, neurons and channels; ``shrunk_folder`` saves and loads what is left
(``sparseticket.export.save_shrunk`` and ``load_shrunk``). ``to_safetensors`` writes plain weights, ``to_pt2`` a program
with this project's operators instead.
"""

from typing import Any

_HOME = {"load_pt2": "to_pt2", "load_shrunk": "shrunk_folder", "save_shrunk": "shrunk_folder"}
__all__ = ["load_pt2", "load_shrunk", "save_shrunk"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # here, because torch and transformers take seconds to import

    return getattr(import_module(f"sparseticket.export.{_HOME[name]}"), name)
