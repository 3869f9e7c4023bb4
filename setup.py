"""The one part of the package that is compiled; everything else is in pyproject.toml.

Where there is no compiler, the installation succeeds without it, and `sparseticket env` says what is missing.
"""

import runpy
from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FOLDER = "export/native"
FLAGS = runpy.run_path(f"{FOLDER}/build.py")["FLAGS"]


class PlainLibrary(build_ext):
    """It is loaded by ONNX Runtime, not by Python: no PyInit to export."""

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """None beside those that the sources mark."""
        return []


setup(
    cmdclass={"build_ext": PlainLibrary},
    ext_modules=[
        Extension(
            "sparseticket.export.native._sparse_linear",
            sources=sorted(glob(f"{FOLDER}/*.cpp")),
            depends=sorted(glob(f"{FOLDER}/*.h") + glob(f"{FOLDER}/*.inl")),
            extra_compile_args=list(FLAGS),
            language="c++",
            optional=True,
        )
    ],
)
