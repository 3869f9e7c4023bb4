"""Compile the library of the sparse operator into this folder: ``python -m sparseticket.export.native.build``.

Only Python and a C++17 compiler are needed. ``setup.py`` takes the flags from here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

# The sources choose their instruction sets by themselves, when they run: no -march here.
FLAGS = ("-O3", "-std=c++17", "-fvisibility=hidden", "-g0")
COMPILERS = ("c++", "g++", "clang++")


def compiler() -> str | None:
    """The C++ compiler: the variable CXX, or the first that is installed."""
    return os.environ.get("CXX") or next(filter(None, map(shutil.which, COMPILERS)), None)


def build(folder: Path) -> Path:
    """Compile ``folder``/*.cpp, several at once; returns the library in it.

    Raises:
        SystemExit: there is no compiler, or it failed (its messages are on the screen).
    """
    cxx = compiler()
    if not any(folder.glob("*.cpp")):
        raise SystemExit("the sources are not installed: build it in a checkout, or install the package from one.")
    if cxx is None:
        raise SystemExit("no C++ compiler was found: install gcc or clang, or name one in the variable CXX.")
    sources, library = sorted(folder.glob("*.cpp")), folder / "_sparse_linear.so"
    with TemporaryDirectory(dir=folder) as scratch, ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [Path(scratch) / f"{source.stem}.o" for source in sources]
        commands = [
            [cxx, *FLAGS, "-fPIC", "-c", str(source), "-o", str(made)]
            for source, made in zip(sources, objects, strict=True)
        ]
        failed = any(pool.map(subprocess.call, commands))
        linked = Path(scratch) / library.name
        if failed or subprocess.call([cxx, "-shared", "-o", str(linked), *map(str, objects)]):
            raise SystemExit(f"{cxx} could not compile the sparse operator: see its messages above.")
        linked.replace(library)
    return library


if __name__ == "__main__":
    print(build(Path(__file__).parent), file=sys.stderr)
