"""Ship tickets: to ONNX, verified against PyTorch.

``sparseticket.export.to_onnx.export_onnx`` is the way in; ``source`` says what may be exported, ``loaded_model`` loads
it, ``graph`` traces and writes it, ``layers`` recounts the zeros in the written file, ``verify`` compares the answers.
``shrink`` removes dead heads, neurons and channels; ``shrunk_folder`` saves and loads what is left.
"""

from sparseticket.export.shrunk_folder import load_shrunk, save_shrunk

__all__ = ["load_shrunk", "save_shrunk"]
