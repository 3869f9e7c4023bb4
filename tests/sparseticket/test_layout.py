import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def python(code):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("folder", ["kernels", "export", "bench"])
def test_the_three_folders_are_subpackages_by_links(folder):
    link = ROOT / "sparseticket" / folder
    assert link.is_symlink() and os.readlink(link) == f"../{folder}"


def test_transformers_is_importable_with_this_repository_on_the_path():
    found = python("import kernels, transformers; from transformers import BertModel; print(kernels.__file__)")
    assert found.strip() == str(ROOT / "kernels" / "__init__.py")


def test_kernels_is_harmless_under_either_name():
    code = "import sys, kernels; assert not hasattr(kernels, '__version__'); print(sorted(sys.modules))"
    modules = python(code)
    assert "'triton'" not in modules and "'torch'" not in modules


@pytest.mark.parametrize("start", ["import sparseticket", "import sparseticket.cli.app"])
def test_neither_the_package_nor_its_help_imports_anything_heavy(start):
    # these take seconds; without them `sparseticket --help` takes about 0.3 s
    modules = python(f"{start}; import sys; print(sorted(sys.modules))")
    for heavy in ("torch", "transformers", "torchvision", "onnx", "onnxruntime", "sklearn", "matplotlib", "accelerate"):
        assert f"'{heavy}'" not in modules


def test_the_core_imports_kernels_export_and_bench_only_where_the_design_says():
    allowed = {"cli", "demo.py", "on_kernels.py", "kernels", "export", "bench"}
    for path in (ROOT / "sparseticket").rglob("*.py"):
        if path.relative_to(ROOT / "sparseticket").parts[0] in allowed:
            continue
        for part in ("kernels", "export", "bench"):
            assert f"sparseticket.{part}" not in path.read_text(), f"{path} imports {part}"


def test_export_imports_bench_and_kernels_only_in_functions_of_one_file_each():
    naming = {
        (path.name, part)
        for path in (ROOT / "export").rglob("*.py")
        for part in ("bench", "kernels")
        if f"sparseticket.{part}" in path.read_text()
    }
    assert naming == {("auto.py", "bench"), ("to_pt2.py", "kernels")}
    python(
        "import sys, sparseticket.export.auto, sparseticket.export.to_pt2\n"
        "assert not {'sparseticket.bench', 'sparseticket.kernels'} & set(sys.modules)"
    )


@pytest.mark.parametrize(
    ("folder", "listing", "section"),
    [
        ("sparseticket", "docs/design.md", "## The core"),
        ("kernels", "docs/design.md", "## Kernels"),
        ("export", "export/__init__.py", "Ship tickets"),
    ],
)
def test_every_file_of_a_folder_is_in_the_list_that_says_what_it_is_for(folder, listing, section):
    listed = re.findall(r"`([\w*]+)(?:\.\w+)?`", (ROOT / listing).read_text().split(section)[1].split("\n## ")[0])
    files = {path.stem for path in (ROOT / folder).glob("[!_]*.py")}
    assert not [file for file in files if not any(fnmatch(file, name) for name in listed)]


def test_nothing_is_unpickled():
    for folder in ("sparseticket", "export", "bench", "kernels"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            assert text.count("torch.load(") <= text.count("weights_only=True"), path
            assert "pickle.load" not in text, path


def test_everything_imports_absolutely():
    for folder in ("sparseticket", "export", "bench", "kernels"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            assert "from ." not in text and "import kernels" not in text, path


def test_kernels_stand_alone():
    found = python(
        "import sys, pkgutil, importlib, sparseticket.kernels as k\n"
        "for m in pkgutil.iter_modules(k.__path__): importlib.import_module(f'sparseticket.kernels.{m.name}')\n"
        "print(sorted(m for m in sys.modules if m.startswith('sparseticket.') and '.kernels' not in m))"
    )
    assert eval(found) == [f"sparseticket.{name}" for name in ("errors", "masks", "seeds")] or eval(found) == []


def test_no_public_name_of_the_kernels_is_a_files_name_too():
    # importing such a file would put the file in the name's place
    found = python(
        "import pkgutil, sparseticket.kernels as k\n"
        "print(set(dir(k)) & {m.name for m in pkgutil.iter_modules(k.__path__)}); [getattr(k, n) for n in dir(k)]"
    )
    assert found.strip() == "set()"


def test_a_file_put_among_the_tasks_is_a_task(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from sparseticket.tasks import register\n"
        "@register('mine', kind='vision', recipe='demo/digits')\n"
        "class Mine: ...\n"
    )
    found = python(
        "from sparseticket import tasks\n"
        f"tasks.__path__.append({str(tmp_path)!r})\n"
        "print(tasks.entry('mine').make.__name__)"
    )
    assert found.strip() == "Mine"
