"""Store mostly-zero weights as the values and positions of what is not zero: a smaller file, no faster model."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from sparseticket.errors import UserError

POSITION_BYTES = 8  # ONNX asks for int64


def store_sparse(model: onnx.ModelProto) -> list[str]:
    """Replace, in place, each weight that becomes smaller by it; returns their names.

    The last step of all: quantizers and optimizers crash on such initializers or drop them.

    Raises:
        UserError: none would become smaller (fp32: at least two thirds must be zeros, fp16: 80 %).
    """
    dense, sparse = [], []
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        is_weight = array.ndim >= 2 and array.dtype.kind == "f"
        if is_weight and np.count_nonzero(array) * (array.itemsize + POSITION_BYTES) < array.nbytes:
            sparse.append(_sparse(tensor.name, array))
        else:
            dense.append(tensor)
    if not sparse:
        raise UserError(
            "no weight is sparse enough for sparse storage: with 8-byte positions it is smaller only above 67 % zeros "
            "(fp16: 80 %). Leave --layout dense, or export a sparser ticket."
        )
    kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in dense]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.graph.sparse_initializer.extend(sparse)
    return [one.values.name for one in sparse]


def _sparse(name: str, array: np.ndarray) -> onnx.SparseTensorProto:
    flat = array.reshape(-1)
    positions = np.flatnonzero(flat).astype(np.int64)
    values = numpy_helper.from_array(flat[positions], name)
    return onnx.SparseTensorProto(
        dims=array.shape, values=values, indices=numpy_helper.from_array(positions, f"{name}_positions")
    )
