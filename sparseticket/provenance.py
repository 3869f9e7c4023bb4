"""Which versions made a thing: part of every ticket."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from sparseticket import __version__

LIBRARIES = ("torch", "torchvision", "transformers", "accelerate", "numpy", "safetensors")


def versions(libraries: tuple[str, ...] = LIBRARIES) -> dict[str, str]:
    """Versions of Python, this package and the libraries that decide a result; absent ones are left out."""
    found = {"python": platform.python_version(), "sparseticket": __version__}
    for library in libraries:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
