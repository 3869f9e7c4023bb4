"""Ship tickets: to ONNX, verified against PyTorch, or as plain weights.

``exporter.export_model`` is the way in. ``options`` says what may be asked for and refuses the rest before any work,
``source`` what may be exported, ``loaded_model`` loads it, ``prepare`` makes of it the model that is traced.
``to_onnx`` is the order of the steps: ``graph`` traces (and fuses), ``quantize`` or ``half`` changes the arithmetic,
``sparse_storage`` comes last. ``places`` and ``layers`` recount the zeros in the written file; ``verify``,
``decisions`` and ``on_task`` compare its answers with PyTorch's. ``shrink`` removes dead heads, neurons and channels;
``shrunk_folder`` saves and loads what is left (``sparseticket.export.save_shrunk`` and ``load_shrunk``).
"""

from typing import Any

__all__ = ["load_shrunk", "save_shrunk"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sparseticket.export import shrunk_folder  # here, because torch and transformers take seconds to import

    return getattr(shrunk_folder, name)
