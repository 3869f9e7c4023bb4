"""Run tickets fast: Triton kernels, each beside its plain reference, and what picks between them and dense.

Names are loaded when they are first used, so that importing this package costs nothing and registers nothing: with the
repository's root on the path, transformers finds it under the name of a library that it looks for.
"""

_HOME = {
    "BlockLayout": "blocks",
    "BsrConv2d": "bsr_conv2d",
    "PackedBlocks": "bsr_packed",
    "PackedConv2d": "bsr_conv2d",
    "SemiStructuredLinear": "semi_structured",
    "SemiStructuredWeight": "semi_structured",
    "bsr_linear": "bsr_linear",
    "bsr_linear_packed": "bsr_packed",
    "restore": "apply",
    "semi_structured_linear": "semi_structured",
    "use_kernels": "apply",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"sparseticket.kernels.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
