"""Compile the masked optimizers and the norm without a GPU."""

from __future__ import annotations

import triton.language as tl

from sparseticket.kernels import adamw, adamw_live, masked_clip
from sparseticket.kernels.adamw import masked_adamw_kernel
from sparseticket.kernels.adamw_live import live_adamw_kernel
from sparseticket.kernels.aot import Compiled, compile_ahead
from sparseticket.kernels.masked_clip import squares_kernel
from sparseticket.kernels.sgd import masked_sgd_kernel
from sparseticket.kernels.tensor_table import Chunking

DEFAULTS = {
    "masked_adamw": adamw.CHUNKING,
    "live_adamw": adamw_live.CHUNKING,
    "masked_sgd": Chunking(),
    "masked_norm": masked_clip.CHUNKING,
}
SETTINGS = ("lr", "beta1", "new1", "beta2", "new2", "log_beta1", "log_beta2", "eps", "decay", "momentum")
POINTERS = {"rows": "*i64", "owners": "*i32", "partial": "*fp32", "grad_scale": "*fp32", "found_inf": "*fp32"}
KERNELS = {
    "masked_adamw": (masked_adamw_kernel, dict.fromkeys(("WEIGHT", "GRADIENT", "MOMENT"), tl.float32)),
    "live_adamw": (live_adamw_kernel, dict.fromkeys(("WEIGHT", "GRADIENT"), tl.bfloat16)),
    "masked_sgd": (
        masked_sgd_kernel,
        {"WEIGHT": tl.float32, "GRADIENT": tl.float32, "BUFFER": tl.float32, "MOMENTUM": True, "NESTEROV": False},
    ),
    "masked_norm": (squares_kernel, {"GRADIENT": tl.float32}),
}


def compile_optimizer(name: str, chunking: Chunking, arch: int, **dtypes: tl.dtype) -> Compiled:
    """One of :data:`KERNELS` over tensors of even sizes, with loss scaling; ``dtypes`` instead of those there."""
    kernel, usual = KERNELS[name]
    constants = {"lr_tensor": None, "CHUNK": chunking.chunk, "EVEN": True, **usual, **dtypes}
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    types = POINTERS | dict.fromkeys(SETTINGS, "fp32")
    return compile_ahead(kernel, types, constants, arch=arch, num_warps=chunking.num_warps, num_stages=1)
