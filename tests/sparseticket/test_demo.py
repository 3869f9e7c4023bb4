import json
from pathlib import Path

import pytest

from sparseticket import demo, recipes
from sparseticket.errors import UserError
from sparseticket.progress import Screen
from sparseticket.tasks.docstrings import Docstring

MADE_UP = tuple(Docstring(f"the film number {i} is a good one", f"package{i % 8}") for i in range(160))
NAMES = ("demo/docstring-topic", "demo/digits")


def shortened(folder, name, **changes):
    """A packaged demo recipe as a file of the user's, with some lines changed."""
    lines = recipes.path_of(name).read_text().splitlines()
    for key, value in changes.items():
        places = [number for number, line in enumerate(lines) if line.startswith(f"{key} = ")]
        assert len(places) == 1, key
        lines[places[0]] = f"{key} = {json.dumps(value)}"
    path = folder / f"{Path(name).name}.toml"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def ran(tmp_path_factory, tiny_bert):
    folder = tmp_path_factory.mktemp("demo")
    names = [
        shortened(folder, NAMES[0], model=str(tiny_bert), schedule="one-round", round_length="2it", batch_size=4),
        shortened(folder, NAMES[1], schedule="one-round", round_length="2it", batch_size=2, seeds=1),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # in place of the standard library's, which take seconds to parse
        patch.setattr("sparseticket.tasks.docstrings.docstrings", lambda: MADE_UP)
        result = demo.run_demo(names=names, screen=Screen(quiet=True), seconds=0.05)
    return folder, names, result


def test_each_task_has_its_arms_its_verdict_its_sizes_and_its_latencies(ran):
    folder, _, result = ran
    assert json.loads((folder / "demo" / "demo.json").read_text()) == result
    text, digits = result["tasks"]
    assert [task["task"] for task in result["tasks"]] == ["docstring-topic", "digits"]
    assert [task["sparsity"] for task in result["tasks"]] == pytest.approx([0.5, 0.84], abs=1e-3)
    for task, runs in ((text, 3), (digits, 1)):
        assert {name: arm["n"] for name, arm in task["arms"].items()} == dict.fromkeys(
            ("dense", "ticket", "random-mask"), runs
        )
        assert task["speedup"]["low"] <= task["speedup"]["median"] <= task["speedup"]["high"]
        for arm in ("dense", "ticket"):
            file = folder / task["files"][f"onnx {arm}"]
            assert task["onnx"][arm]["bytes"] == file.stat().st_size
            assert task["onnx"][arm]["p50_ms"] > 0
            assert task["onnx"][arm]["max_abs_error"] < 1e-3
    assert text["matching"] in (True, False) and text["reason"] is None
    assert digits["matching"] is None and "too few" in digits["reason"]


def test_the_exports_are_of_the_dense_network_and_of_the_last_rounds_ticket(ran):
    folder, _, result = ran
    for task in result["tasks"]:
        zeros = {}
        for arm in ("dense", "ticket"):
            report = json.loads((folder / task["files"][f"onnx {arm}"]).with_name("export_report.json").read_text())
            zeros[arm] = sum(layer["zeros"] for layer in report["layers"])
            weights = sum(layer["weights"] for layer in report["layers"])
        assert zeros["dense"] < 0.001 * weights
        assert zeros["ticket"] == pytest.approx(task["sparsity"] * weights, rel=0.15)  # heads and stems are not pruned


def test_every_file_that_it_names_is_there_by_a_relative_path(ran):
    folder, _, result = ran
    for task in result["tasks"]:
        for path in task["files"].values():
            assert not Path(path).is_absolute()
            assert (folder / path).is_file()


def test_run_again_it_does_nothing_twice(ran, monkeypatch):
    folder, names, result = ran
    monkeypatch.chdir(folder)
    before = {path: path.stat().st_mtime_ns for path in (folder / "demo").rglob("*.onnx")}
    monkeypatch.setattr("sparseticket.tasks.docstrings.docstrings", lambda: MADE_UP)
    monkeypatch.setattr("sparseticket.transfer.train", None)
    monkeypatch.setattr("sparseticket.imp.train", None)
    again = demo.run_demo(names=names, screen=Screen(quiet=True), seconds=0.05)
    assert again["tasks"] == result["tasks"]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_table_shows_what_the_file_holds_and_that_zeros_alone_are_not_faster(ran, capsys):
    _, _, result = ran
    demo.show_demo(Screen(), result)
    shown = capsys.readouterr().out
    for task in result["tasks"]:
        assert f"{task['arms']['dense']['mean']:.2%}" in shown
        assert all(path in shown for path in task["files"].values())
    assert "Zeros alone do not make ONNX Runtime faster" in shown
    assert "demo/demo.json" in shown


def test_a_folder_of_other_settings_is_refused_and_nothing_in_it_is_lost(ran, tmp_path, monkeypatch):
    folder, _, _ = ran
    monkeypatch.chdir(folder)
    other = shortened(tmp_path, NAMES[1], schedule="one-round", round_length="3it", batch_size=2, seeds=1)
    with pytest.raises(UserError, match=r"training\.round_length: '2it' there, '3it' now"):
        demo.run_demo(names=[other], screen=Screen(quiet=True), seconds=0.05)
    assert (folder / "demo/digits/summary.json").is_file()


def test_the_packaged_recipes_are_those_of_the_demo_and_transfer_with_a_verdict():
    assert demo.RECIPES == NAMES
    for name in demo.RECIPES:
        recipe = recipes.load(name)
        assert len(recipe.settings.protocol.sparsities()) == 3
        assert recipe.transfer.seeds >= 3
        assert recipe.transfer.controls == ["random-mask"]


def test_the_readme_shows_what_the_committed_run_printed():
    root = Path(__file__).parents[2]
    screen = Screen()
    screen.console.width = 200
    with screen.console.capture() as printed:
        demo.show_demo(screen, json.loads((root / "bench/results/demo.json").read_text()))
    shown = [line for line in printed.get().splitlines() if "What was found" not in line and ": demo/" not in line]
    assert "\n".join(shown) in (root / "README.md").read_text()
