"""Store mostly-zero weights as the values and positions of what is not zero: a smaller file, no faster model."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper
from torch import nn

from sparseticket.errors import UserError
from sparseticket.export.graph_index import keep_only
from sparseticket.export.sparse_op import refuse

POSITION_BYTES = 8  # ONNX asks for int64
VALUE_BYTES = {"fp32": 4, "fp16": 2}
NOTHING_SAVED = (
    "no weight is sparse enough for sparse storage: with 8-byte positions it is smaller only above 67 % zeros "
    "(fp16: 80 %). Leave --layout dense, or export a sparser ticket."
)


def check_saves(module: nn.Module, dtype: str) -> None:
    """Refuse, from the zeros of the weights alone, what :func:`store_sparse` would make no smaller.

    Raises:
        UserError: no weight would become smaller.
    """
    size = VALUE_BYTES[dtype]
    weights = (weight for weight in module.parameters() if weight.ndim >= 2)
    if not any(_is_smaller(int((weight != 0).sum()), size, weight.numel()) for weight in weights):
        raise UserError(NOTHING_SAVED)


def _is_smaller(nnz: int, value_bytes: int, weights: int) -> bool:
    return nnz * (value_bytes + POSITION_BYTES) < weights * value_bytes


def store_sparse(model: onnx.ModelProto) -> list[str]:
    """Replace, in place, each weight that becomes smaller by it; returns their names.

    The last step of all: quantizers and optimizers crash on such initializers or drop them.

    Raises:
        UserError: none would become smaller (fp32: at least two thirds must be zeros, fp16: 80 %).
    """
    refuse(model, "sparse storage")
    dense, sparse = [], []
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        is_weight = array.ndim >= 2 and array.dtype.kind == "f"
        if is_weight and _is_smaller(np.count_nonzero(array), array.itemsize, array.size):
            sparse.append(_sparse(tensor.name, array))
        else:
            dense.append(tensor)
    if not sparse:
        raise UserError(NOTHING_SAVED)
    keep_only(model.graph.initializer, dense)
    model.graph.sparse_initializer.extend(sparse)
    return [one.values.name for one in sparse]


def _sparse(name: str, array: np.ndarray) -> onnx.SparseTensorProto:
    flat = array.reshape(-1)
    positions = np.flatnonzero(flat).astype(np.int64)
    values = numpy_helper.from_array(flat[positions], name)
    return onnx.SparseTensorProto(
        dims=array.shape, values=values, indices=numpy_helper.from_array(positions, f"{name}_positions")
    )
