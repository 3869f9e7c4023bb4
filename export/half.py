"""fp16 weights and arithmetic in an ONNX file whose inputs and outputs stay fp32."""

from __future__ import annotations

import onnx

from sparseticket.export.quiet import quiet
from sparseticket.export.sparse_op import refuse


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` in fp16, converted in place by ONNX Runtime's own converter.

    Zeros stay zeros and no others appear: values too small for fp16 become 1e-7. Constants beyond 1e4 (the -3e38 of
    hidden positions) become 1e4.
    """
    refuse(model, "fp16")
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    with quiet():  # the traced graph knows every shape; the converter's own inference stops at 2 GB
        converted = OnnxModel(convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True))
        converted.topological_sort()  # the converter leaves the cast of an input last
    return converted.model
