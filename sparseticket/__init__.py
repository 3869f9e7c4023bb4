"""Find lottery tickets in pre-trained models, train and transfer them, run them fast, and ship them."""

import os

__version__ = "0.1.0"

# from 1.29 on ONNX Runtime tells its makers names and hashes of models, unless this is set before it is imported
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
