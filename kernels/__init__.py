"""Run tickets fast: Triton kernels, each beside its plain reference, and what picks between them and dense.

Names are loaded when they are first used, so that importing this package costs nothing and registers nothing: with the
repository's root on the path, transformers finds it under the name of a library that it looks for. No name here may be
a file's too: importing that file would put it in the name's place.
"""

_HOME = {
    "bitmap_linear": "bitmap",
    "BitmapLinear": "bitmap",
    "BitmapWeight": "bitmap",
    "BlockLayout": "blocks",
    "bsr_conv2d": "conv2d",
    "bsr_linear": "bsr",
    "bsr_linear_packed": "bsr_packed",
    "BsrConv2d": "conv2d",
    "live_adamw": "adamw_live",
    "LiveAdamW": "adamw_live",
    "masked_adamw": "adamw",
    "masked_clip_grad_norm_": "masked_clip",
    "masked_grad_norm": "masked_clip",
    "masked_linear": "masked",
    "masked_sgd": "sgd",
    "MaskedAdamW": "adamw",
    "MaskedLinear": "masked",
    "MaskedSGD": "sgd",
    "PackedBlocks": "bsr_packed",
    "PackedConv2d": "conv2d",
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
