"""Run tickets fast: Triton kernels, each beside its plain reference, and what picks between them and dense.

Names are loaded when they are first used, so that importing this package costs nothing and registers nothing: with the
repository's root on the path, transformers finds it under the name of a library that it looks for.
"""

_HOME = {
    "BitmapLinear": "bitmap_linear",
    "BitmapWeight": "bitmap_linear",
    "bitmap_linear": "bitmap_linear",
    "BlockLayout": "blocks",
    "bsr_linear": "bsr_linear",
    "bsr_linear_packed": "bsr_packed",
    "BsrConv2d": "bsr_conv2d",
    "live_adamw": "live_adamw",
    "LiveAdamW": "live_adamw",
    "masked_adamw": "masked_adamw",
    "masked_clip_grad_norm_": "masked_clip",
    "masked_grad_norm": "masked_clip",
    "masked_sgd": "masked_sgd",
    "MaskedAdamW": "masked_adamw",
    "MaskedSGD": "masked_sgd",
    "masked_linear": "masked_linear",
    "MaskedLinear": "masked_linear",
    "PackedBlocks": "bsr_packed",
    "PackedConv2d": "bsr_conv2d",
    "restore": "apply",
    "semi_structured_linear": "semi_structured",
    "SemiStructuredLinear": "semi_structured",
    "SemiStructuredWeight": "semi_structured",
    "use_kernels": "apply",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"sparseticket.kernels.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
