"""Ship tickets: to ONNX, verified against PyTorch, or as plain weights.

``exporter.export_model`` is the way in. ``options`` says what may be asked for and refuses the rest before any work,
``source`` what may be exported, ``loaded_model`` loads it, ``prepare`` makes of it the model that is traced.
``to_onnx`` is the order of the steps: ``graph`` traces (and fuses), ``quantize`` or ``half`` changes the arithmetic,
``sparse_storage`` comes last. ``places`` and ``layers`` recount the zeros in the written file; ``verify``,
``decisions`` and ``on_task`` compare its answers with PyTorch's. ``shrink`` removes dead heads, neurons and channels;
``shrunk_folder`` saves and loads what is left.
"""

from sparseticket.export.shrunk_folder import load_shrunk, save_shrunk

__all__ = ["load_shrunk", "save_shrunk"]
