"""What is handed out: a source distribution that builds, into the same wheel as a checkout."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("sparseticket", "kernels", "export", "bench")
HANDED_OUT = (*FOLDERS, "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")


def build(what, folder, out):
    """``build_wheel`` or ``build_sdist`` in a folder, without a compiler (the extension is optional); the file."""
    code = f"import sys; from setuptools import build_meta; print(build_meta.{what}(sys.argv[1]))"
    env = os.environ | {"CC": "false", "CXX": "false"}
    done = subprocess.run([sys.executable, "-c", code, out], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return out / done.stdout.split()[-1]


@pytest.fixture
def checkout(tmp_path):
    """A copy of what is packaged, with its links, and nothing that was built."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in HANDED_OUT:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.so")
            shutil.copytree(source, folder / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, folder / name)
    return folder


def test_a_source_distribution_builds_into_the_wheel_of_its_checkout(checkout, tmp_path):
    packed = build("build_sdist", checkout, tmp_path)
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    wheels = build("build_wheel", checkout, tmp_path / "a"), build("build_wheel", unpacked, tmp_path / "b")
    names = [sorted(zipfile.ZipFile(wheel).namelist()) for wheel in wheels]
    assert names[0] == names[1]
    needed = ("py.typed", "recipes/neurips20/table2.toml", "kernels/tables/nvidia-h200.json", "export/break_even.json")
    assert {f"sparseticket/{name}" for name in needed} <= set(names[0])
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names[0])
    assert not [name for name in names[0] if "tests" in name or "results" in name]
