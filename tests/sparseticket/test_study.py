"""Recipes of several steps: run whole, resume, train nothing twice, the paper beside ours, refuse what is wrong."""

import json
import re
from dataclasses import replace

import pytest
from papers import SEQUENCE

from sparseticket import files, imp, ticket
from sparseticket import transfer as transfers
from sparseticket.recipes import load_any, names, task_defaults
from sparseticket.recipes.study import Study
from sparseticket.runs import RunFolder, settings_table
from sparseticket.settings import Protocol, RunSettings

STUDY = """
title = "Everything on digits"
source = "mine"
model = "resnet20-cifar"

[training]
round_length = "2it"
batch_size = 16

[[step]]
name = "digits"
find = "demo/digits"
protocol = { schedule = "steps:0.3,0.5", sparsity = 0.5 }

[[step]]
name = "guess"
control = "digits"
kind = "random-weights"

[[step]]
name = "arms"
transfer = "digits"
seeds = 1
controls = ["complement"]
paper = { dense = "91.4 ± 0.3", ticket = 12.5 }

[[step]]
name = "curve"
sweep = "digits"
seeds = 1
paper = { matching = 91.41 }

[[step]]
name = "table"
matrix = ["digits", "guess"]
tasks = ["digits"]
seeds = 1

[step.paper]
digits = { digits = -0.25 }

[[step]]
name = "common"
compare = ["digits", "guess"]
"""


def check_tables(text, steps):
    """Every step has its section; means, differences and the paper's figures stand in the row that they belong to."""
    sections = {part.split("\n", 1)[0]: part for part in text.split("\n## ")[1:]}
    assert list(sections) == list(steps)

    def row(section, *first):
        (found,) = [line for line in sections[section].split("\n") if line.startswith(f"| {' | '.join(first)} |")]
        return [cell.strip() for cell in found.strip("|").split("|")]

    arms = steps["arms"]["result"]["arms"]
    for arm, of_paper in (("dense", "91.4 ± 0.3"), ("ticket", "12.5"), ("complement", "–")):
        mean = f"{100 * arms[arm]['mean']:.2f}"
        said = "–" if arm == "dense" else "no verdict"
        to_ticket = f"{100 * (arms['ticket']['mean'] - arms[arm]['mean']):+.2f}" if arm == "complement" else "–"
        assert row("arms", arm) == [arm, mean, mean, "–", "1", said, to_ticket, of_paper]
    cell = steps["table"]["result"]["cells"]["guess"]["digits"]
    differences = [f"{100 * cell[key]:+.2f}" for key in ("to_dense", "to_same_task")]
    assert row("table", "guess")[5:] == [*differences, "no verdict", "–"] and row("table", "digits")[-1] == "-0.25"
    last = steps["digits"]["result"]["rounds"][-1]
    assert row("digits", "2") == ["2", f"{last['sparsity']:.2%}", f"{last['value']:.2%}"]
    assert row("common", "all")[3] == "1.0000" and "random-weights (seed 0)" in sections["guess"]
    assert "Highest matching: –" in sections["curve"] and "matching 91.41" in sections["curve"]


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.toml").write_text(STUDY)
    return tmp_path / "mine.toml"


def test_a_study_runs_whole_trains_nothing_twice_and_prints_the_papers_figures_beside_ours(
    cli, mine, tmp_path, monkeypatch
):
    trained = []
    for module in (imp, transfers):
        original = module.train

        def spy(*arguments, original=original, **options):
            trained.append(1)
            return original(*arguments, **options)

        monkeypatch.setattr(module, "train", spy)
    code, text = cli("run", mine, "--out", tmp_path / "out")
    assert code == 0, text
    for printed in ("91.4 ± 0.3", "12.5", "91.41", "-0.25", "the paper's"):
        assert printed in text
    # 3 rounds; dense, ticket, complement; the sweep's other ticket; of the matrix the control's arm and nothing else:
    # its dense arm begins with the random weights that the control was made from, as all of this run
    assert len(trained) == 3 + 3 + 1 + 1
    steps = json.loads((tmp_path / "out" / "study.json").read_text())["steps"]
    assert list(steps) == ["digits", "guess", "arms", "curve", "table", "common"]
    assert [point["sparsity"] for point in steps["curve"]["result"]["points"]] == pytest.approx([0.3, 0.5], abs=1e-4)
    assert steps["curve"]["result"]["highest"] == {
        "matching": None,
        "strict": None,
        "gaps": [],
        "undecided": [pytest.approx(0.3, abs=1e-4), pytest.approx(0.5, abs=1e-4)],
    }
    assert steps["common"]["result"]["all"]["overlap"] == 1 and not steps["common"]["result"]["same_theta"]
    assert list(steps["table"]["result"]["cells"]) == ["digits", "guess"]
    check_tables((tmp_path / "out" / "study.md").read_text(), steps)

    code, _ = cli("run", mine, "--out", tmp_path / "out")
    assert code == 0 and len(trained) == 8


TEXTS = """
title = "A step of every kind"
source = "mine"
model = "{model}"

[training]
round_length = "2it"
batch_size = 8
max_length = 16

[[step]]
name = "found"
find = "neurips20/text"
protocol = {{ schedule = "steps:0.3,0.5", sparsity = 0.5 }}

[[step]]
name = "guess"
control = "found"
kind = "shuffled-weights"

[[step]]
name = "arms"
transfer = "found"
seeds = 1
controls = ["random-mask"]

[[step]]
name = "curve"
sweep = "found"
seeds = 1

[[step]]
name = "table"
matrix = ["found", "guess"]
tasks = ["text"]
seeds = 1

[[step]]
name = "common"
compare = ["found", "guess"]
"""
STOPS = {  # where each step is stopped once: in a training, or while a file is written
    "found": "found/round-01/checkpoint",
    "guess": "guess/guess.ticket",
    "arms": "arms/random-mask-seed0/checkpoint",
    "curve": "curve/round-01/ticket-seed0/checkpoint",
    "table": "table/cells/guess.*/ticket-seed0/checkpoint",
    "common": "common/compare.json",
}


def without_times(value):
    """Nor folders of cells: a cell's name depends on the path of a control's own weights."""
    if isinstance(value, dict):
        return {key: without_times(entry) for key, entry in value.items() if key not in ("seconds", "folder")}
    return [without_times(entry) for entry in value] if isinstance(value, list) else value


def test_a_study_stopped_in_a_step_of_every_kind_continues_and_gives_what_an_undisturbed_one_gives(
    cli, tiny_bert, tmp_path, monkeypatch
):
    recipe, data = tmp_path / "mine.toml", tmp_path / "text.csv"
    recipe.write_text(TEXTS.format(model=tiny_bert))
    rows = [f"the film {n} is {('good', 'bad')[n % 2]},{('good', 'bad')[n % 2]}" for n in range(40)]
    data.write_text("\n".join(["text,label", *rows]) + "\n")
    stopped, trained, out = [], [], tmp_path / "stopped"

    def stop_at(path):
        for step, place in STOPS.items():
            if path.is_relative_to(out) and re.search(place, path.as_posix()) and step not in stopped:
                stopped.append(step)
                raise KeyboardInterrupt

    for module in (imp, transfers):

        def training(*arguments, original=module.train, **options):
            if (path := options["checkpoint"].path).is_relative_to(out):
                trained.append(path.parent)
            options["on_step"] = lambda *_: stop_at(path)
            return original(*arguments, **options)

        monkeypatch.setattr(module, "train", training)
    write = files.write_whole

    def writing(path, content):
        if path.suffix in (".ticket", ".json"):
            stop_at(path)
        write(path, content)

    for module in (files, ticket):
        monkeypatch.setattr(module, "write_whole", writing)
    for _ in STOPS:
        assert cli("run", recipe, "--data", data, "--out", out)[0] == 130, stopped
    code, text = cli("run", recipe, "--data", data, "--out", out)
    assert code == 0 and stopped == list(STOPS), text
    # 3 rounds, 3 arms, the sweep's other ticket, the control in the matrix: the four that were stopped began twice
    again = sorted({path for path in trained if trained.count(path) == 2})
    assert len(trained) == 3 + 3 + 1 + 1 + len(again) and len(again) == 4
    assert cli("run", recipe, "--data", data, "--out", tmp_path / "whole")[0] == 0
    first, second = (json.loads((folder / "study.json").read_text()) for folder in (out, tmp_path / "whole"))
    assert without_times(first) == without_times(second)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('name = "guess"', 'name = "digits"', ["step 2", "two steps 'digits'"]),
        ('control = "digits"', 'control = "digit"', "names 'digit'"),
        ('kind = "random-weights"', 'kind = "random"', "there is no control 'random'"),
        ('kind = "random-weights"', "", "there is no control ''"),
        ('find = "demo/digits"', 'find = "demo/digit"', "Did you mean demo/digits"),
        ('transfer = "digits"', 'transfer = "digits"\nfind = "demo/digits"', "this has find and transfer"),
        ('sweep = "digits"', "", "this has none"),
        ("[training]", "[trainings]", "no table 'trainings'"),
        ("batch_size = 16", "batch = 16", "there is no setting 'batch'"),
        ("sparsity = 0.5 }", "sparsity = 1.5 }", "above 0 and below 1"),
        ("sparsity = 0.5 }", "sparse = 0.5 }", "there is no setting 'sparse'"),
        ("seeds = 1", "seeds = 0", "seeds is a whole number from 1"),
        ('tasks = ["digits"]', 'tasks = "digits"', "tasks is a list of names"),
        ('tasks = ["digits"]', "", "a matrix names steps and tasks"),
        ('matrix = ["digits", "guess"]', 'matrix = ["digits", "digits"]', "names each row and column once"),
        ("digits = { digits = -0.25 }", "guesses = { digits = -0.25 }", "paper is a table by row (digits, guess)"),
        ("digits = { digits = -0.25 }", "digits = -0.25", "paper is a table by row (digits, guess)"),
        ('compare = ["digits", "guess"]', 'compare = ["digits"]', "compare names two steps"),
        ('compare = ["digits", "guess"]', 'compare = ["digits", "guess"]\nseeds = 3', "'seeds' means nothing beside"),
        ('name = "arms"', 'name = "../arms"', "name is that of the step's folder"),
        ('tasks = ["digits"]', 'tasks = ["sst2"]', "is for text models"),
        ('model = "resnet20-cifar"', 'model = "resnet21-cifar"', "there is no model"),
    ],
)
def test_what_is_wrong_in_a_study_is_found_before_it_runs(cli, mine, tmp_path, old, new, says):
    assert STUDY.count(old)
    mine.write_text(STUDY.replace(old, new, 1))
    code, text = cli("recipes", "check", mine)
    assert code == 2 and all(word in text for word in ([says] if isinstance(says, str) else says)), text


def test_a_study_is_no_recipe_of_a_task(cli, mine, tmp_path):
    mine.write_text(STUDY.replace("demo/digits", str(mine)))
    code, text = cli("recipes", "check", mine)
    assert code == 2 and "has several steps" in text


def studies():
    return [name for name in names() if isinstance(load_any(name), Study)]


def test_the_papers_tables_and_figures_are_there():
    wanted = {"table2", "figure2", "rewinding", "controls", "sparsities", "mlm-rewinding"}
    wanted |= {"table2-released", "figure2-released"}
    assert {f"neurips20/{name}" for name in wanted} <= set(studies())


@pytest.mark.parametrize("name", ["neurips20/figure2", "neurips20/figure2-released"])
def test_figure_2_is_every_task_on_every_task_at_70_percent_beside_the_papers_rows(name):
    study = load_any(name)
    matrix = study.steps[-1]
    assert len(study.found) == 11 and {s.protocol.sparsity for s in study.found.values()} == {0.7}
    assert matrix.of == [*study.found, "one-shot"] and matrix.tasks == list(study.found)
    assert all(list(row) == matrix.tasks for row in matrix.paper.values())
    assert matrix.paper["mlm"]["mrpc"] == -3.65 and matrix.paper["one-shot"]["cola"] == -22.30


@pytest.mark.parametrize("name", ["neurips20/table2", "neurips20/table2-released"])
def test_table_2_has_each_tasks_own_recipe_and_five_runs(name):
    study = load_any(name)
    assert len(study.found) == 11 and all(name == settings.task for name, settings in study.found.items())
    transfers = [step for step in study.steps if step.verb == "transfer"]
    assert [step.of for step in transfers] == [[name] for name in study.found]
    for step in transfers:
        assert step.seeds == 5 and step.paper.keys() == {"dense", "ticket", *step.controls} - {"shuffled-weights"}
        dense = float(re.match(r"[\d.]+", step.paper["dense"])[0])
        assert dense > step.paper["random-mask"] and abs(dense - step.paper["ticket"]) < 1


@pytest.mark.parametrize("name", ["neurips20/table2", "neurips20/figure2"])
def test_as_released_every_ticket_is_found_by_the_released_recipe_of_its_task_and_compared_alike(name):
    paper, released = load_any(name), load_any(f"{name}-released")
    for step, settings in released.found.items():
        recipe = task_defaults(settings.task, "released")
        sparsity = paper.found[step].protocol.sparsity
        assert settings == replace(recipe, protocol=replace(recipe.protocol, sparsity=sparsity))
        assert settings.protocol.name == "released" and paper.found[step].protocol.name == "paper"
    shuffled = {"shuffled-weights"} & {control for step in paper.steps for control in step.controls}
    assert not any(shuffled & set(step.controls) for step in released.steps)  # the code shuffled whole layers
    for ours, theirs in zip(paper.steps, released.steps, strict=True):
        assert (ours.name, ours.verb, ours.seeds, ours.paper) == (theirs.name, theirs.verb, theirs.seeds, theirs.paper)
        assert [control for control in ours.controls if control not in shuffled] == theirs.controls
        assert ours.verb == "find" or ours.of == theirs.of


@pytest.mark.parametrize("name", ["neurips20/mlm-rewinding", "minilm/mlm-rewinding"])
def test_the_arm_that_is_pruned_once_trains_as_long_as_the_released_one_before_its_last_pruning(name):
    found = load_any(name).found
    rewound, released, once = (found[step] for step in ("rewound", "released", "pruned-once"))
    steps = {step: int(found[step].training.round_length.removesuffix("it")) for step in found}
    assert rewound.protocol.rewind == "theta_p" and released.protocol.rewind == once.protocol.rewind == "none"
    before_last_pruning = len(released.protocol.sparsities()) - 1
    assert released.protocol.prune_first and once.protocol.sparsities() == [0, released.protocol.sparsity]
    assert steps["pruned-once"] == before_last_pruning * steps["released"]


CURVE = """
title = "A curve on digits"
source = "mine"
model = "resnet20-cifar"

[training]
round_length = "2it"
batch_size = 16

[[step]]
name = "imp"
find = "demo/digits"
protocol = { schedule = "steps:0.3,0.5", sparsity = 0.5 }

[[step]]
name = "once"
find = "demo/digits"
protocol = { schedule = "one-round", sparsity = 0.5 }
dense_round = "imp"

[[step]]
name = "at-30"
transfer = "imp"
round = 1
controls = ["random-mask", "one-shot"]

[[step]]
name = "at-50"
transfer = "once"
"""


def test_a_study_shares_a_dense_round_takes_another_model_and_seeds_and_is_drawn_as_a_curve(cli, tmp_path):
    from sparseticket.bench.curves import draw, study_lines, study_table

    (tmp_path / "curve.toml").write_text(CURVE)
    arguments = ("run", tmp_path / "curve.toml", "--model", "resnet32-cifar", "--seeds", "2")
    code, text = cli(*arguments, "--out", tmp_path / "out")
    assert code == 0, text
    assert "taken_from" in json.loads((tmp_path / "out/once/round-00/metrics.json").read_text())
    title, metric, lines = study_lines(tmp_path / "out")
    assert (title, metric) == ("resnet32-cifar on digits", "accuracy")
    assert list(lines) == ["dense", "IMP", "random-mask", "one-shot", "one-round"]
    assert [[round(at, 3) for at in line] for line in lines.values()] == [[0.0], [0.3], [0.3], [0.3], [0.5]]
    assert all(arm["n"] == 2 for line in lines.values() for arm in line.values())
    table = study_table(lines).splitlines()
    assert table[0].startswith("| arm | 30.0") and table[3].split(" | ")[2] == "– |"
    draw([tmp_path / "out"], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")

    code, text = cli("run", tmp_path / "curve.toml", "--model", "bert-base", "--out", tmp_path / "other")
    assert code == 2 and "is for vision models" in text and not (tmp_path / "other").exists()


def test_every_control_can_be_drawn_beside_a_run(tmp_path):
    from sparseticket.bench.curves import draw

    (tmp_path / "run" / "transfer").mkdir(parents=True)
    rounds = [{"sparsity": 0.5, "value": 0.9}]
    found = {"model": "m", "task": "t", "metric": "accuracy", "dense": None, "rounds": rounds}
    (tmp_path / "run" / "summary.json").write_text(json.dumps(found))
    arms = {name: {"mean": 0.9, "std": 0.01, "n": 3} for name in ("dense", "random-weights", "flip:0.1")}
    (tmp_path / "run" / "transfer" / "transfer.json").write_text(json.dumps({"sparsity": 0.5, "arms": arms}))
    draw([tmp_path / "run"], tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_a_geometric_search_and_one_round_to_the_same_sparsity_stand_in_one_column_of_a_curve(tmp_path):
    from sparseticket.bench.curves import study_lines, study_table

    found = {"imp": ("geometric:0.2", 0.6723203), "once": ("one-round", 0.6723015)}
    steps = {}
    for name, (schedule, sparsity) in found.items():
        settings = RunSettings("resnet20-cifar", "digits", protocol=Protocol(schedule=schedule, sparsity=0.6723))
        RunFolder.open(tmp_path / name, settings_table(settings))
        arm = {"mean": sparsity, "std": 0.01, "n": 3}
        result = {"model": "m", "task": "t", "metric": "accuracy", "sparsity": sparsity, "arms": {"ticket": arm}}
        steps[f"{name}-arms"] = {"verb": "transfer", "of": [name], "result": result}
    (tmp_path / "study.json").write_text(json.dumps({"steps": steps}))
    assert study_table(study_lines(tmp_path)[2]).splitlines() == [
        "| arm | 67.23% |",
        "| --- | --- |",
        "| IMP | 67.2 ± 1.0 |",
        "| one-round | 67.2 ± 1.0 |",
    ]


def test_a_dense_round_of_a_step_that_is_no_find_before_it_is_refused(cli, tmp_path):
    (tmp_path / "curve.toml").write_text(CURVE.replace('dense_round = "imp"', 'dense_round = "at-30"'))
    code, text = cli("recipes", "check", tmp_path / "curve.toml")
    assert code == 2 and "the finds before it are ['imp']" in text


def test_seeds_for_steps_that_have_none_are_refused_and_not_ignored(cli, tmp_path):
    (tmp_path / "mine.toml").write_text('title = "t"\nsource = "s"\n[[step]]\nname = "a"\nfind = "demo/digits"\n')
    code, text = cli("run", tmp_path / "mine.toml", "--seeds", 5, "--out", tmp_path / "out")
    assert code == 2 and "has no step of several runs for --seeds to change" in text


def test_a_dense_round_that_is_trained_otherwise_is_refused_before_anything_is_trained(cli, tmp_path):
    other = CURVE.replace('dense_round = "imp"', 'dense_round = "imp"\ntraining = { lr = 0.5 }', 1)
    (tmp_path / "curve.toml").write_text(other)
    code, text = cli("recipes", "check", tmp_path / "curve.toml")
    assert code == 2 and "the dense round of step 'imp'" in text and "0.5 here" in text, text


def test_the_curve_of_a_cifar_resnet_has_every_way_of_finding_at_the_same_five_sparsities():
    study = load_any("cifar/curve")
    rounds = study.found["imp"].protocol.sparsities()
    at = {step.name: rounds[step.round] for step in study.steps if step.of == ["imp"]}
    assert sorted(at.values()) == pytest.approx([0.36, 0.6723, 0.7903, 0.8926, 0.956], abs=1e-4)
    once = {f"at-{name.removeprefix('one-round-')}": found for name, found in study.found.items() if name != "imp"}
    assert {name: found.protocol.sparsity for name, found in once.items()} == pytest.approx(at, abs=1e-4)
    assert {found.protocol.schedule for found in once.values()} == {"one-round"}
    assert all(step.dense_round == "imp" for step in study.steps if step.name in study.found and step.name != "imp")
    assert {step.seeds for step in study.steps if step.verb == "transfer"} == {3}


BEGINNINGS = """
title = "Three beginnings"
source = "mine"
model = "resnet20-cifar"

[training]
round_length = "1it"
batch_size = 8

[[step]]
name = "pre-trained"
find = "demo/digits"
weights = "simclr"
protocol = { schedule = "one-round", sparsity = 0.5 }

[[step]]
name = "late"
find = "demo/digits"
weights = "random"
training = { round_length = "2it" }
protocol = { schedule = "one-round", sparsity = 0.5, rewind = "50%" }

[[step]]
name = "similarity"
compare = ["pre-trained", "late"]
"""


@pytest.fixture
def beginnings(tmp_path):
    import torch

    from sparseticket.models import resolve
    from sparseticket.models.base import Head

    (tmp_path / "mine.toml").write_text(BEGINNINGS)
    network = resolve("resnet20-cifar").build(Head("image-classification", 10), seed=7)
    torch.save(network.module.state_dict(), tmp_path / "simclr.pth")
    return tmp_path


def test_steps_begin_at_the_weights_that_they_name_or_at_random_ones(cli, beginnings):
    out = beginnings / "out"
    code, text = cli("run", beginnings / "mine.toml", "--weights", f"simclr={beginnings / 'simclr.pth'}", "--out", out)
    assert code == 0, text
    begun = {name: (out / name / "run.toml").read_text() for name in ("pre-trained", "late")}
    assert f'weights = "{beginnings / "simclr.pth"}"' in begun["pre-trained"] and 'weights = "random"' in begun["late"]
    result = json.loads((out / "study.json").read_text())["steps"]["similarity"]["result"]
    assert not result["same_theta"]
    assert abs(result["all"]["overlap"] - result["all"]["chance"]) < 0.05  # two independent networks


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ([], "--weights simclr=FILE"),
        (["simclr=x.pth", "--weights", "moco=y.pth"], "no weights called 'moco'; it names simclr"),
        (["simclr=x.pth"], "there is no file"),
        (["x.pth", "--weights", "y.pth"], "as simclr=y.pth"),
    ],
)
def test_weights_that_are_missing_or_not_asked_for_are_said_before_anything_is_trained(cli, beginnings, weights, says):
    given = ["--weights", *weights] if weights else []
    code, text = cli("run", beginnings / "mine.toml", *given, "--out", beginnings / "out")
    assert code == 2 and says in text, text
    assert not (beginnings / "out" / "pre-trained").exists()


def test_the_vision_papers_classification_studies_are_there_with_their_figures():
    wanted = {"sparsities", "baselines", "perturbations", "similarity", "transfers"}
    assert {f"cvpr21/{name}" for name in wanted} <= set(studies())
    sweeps = [step for step in load_any("cvpr21/sparsities").steps if step.verb == "sweep"]
    assert {step.name: step.paper["matching"] for step in sweeps if "svhn" in step.name} == {
        "svhn-imagenet-sweep": 91.41,
        "svhn-simclr-sweep": 96.48,
        "svhn-moco-sweep": 93.13,
    }
    assert len(sweeps) == 15 and {step.seeds for step in sweeps} == {3}
    for name in ("baselines", "perturbations"):
        study = load_any(f"cvpr21/{name}")
        begun = {(step.weights, found.protocol.rewind) for step in study.steps if (found := study.found.get(step.name))}
        assert begun == {("", "theta_p"), ("random", "theta_p"), ("random", "5%")}


# protocol.md of the papers: highest matching sparsities on the pre-training tasks, and the sparsities of a search
PRE_TRAININGS = {"imagenet": 67.23, "simclr": 59.04, "moco": 95.60}
STEPS = [*SEQUENCE, 98.2]


def test_each_pre_training_is_swept_on_its_own_task_from_its_own_weights_to_the_papers_last_sparsity():
    study = load_any("cvpr21/pre-trainings")
    sweeps = {step.of[0]: step for step in study.steps if step.verb == "sweep"}
    assert {name: sweep.paper["matching"] for name, sweep in sweeps.items()} == PRE_TRAININGS
    assert {sweep.seeds for sweep in sweeps.values()} == {3}
    begun = {step.name: step.weights for step in study.steps if step.verb == "find"}
    assert begun == {"imagenet": "", "simclr": "simclr", "moco": "moco"}
    for name, settings in study.found.items():
        recipe = task_defaults(name)
        assert settings == replace(recipe, protocol=replace(recipe.protocol, sparsity=0.982))
        assert [round(100 * sparsity, 2) for sparsity in settings.protocol.sparsities()] == STEPS


def test_the_pre_trainings_tickets_of_their_highest_sparsity_move_to_all_seven_tasks_of_the_vision_paper():
    study = load_any("cvpr21/transfers")
    found = {name: round(100 * settings.protocol.sparsities()[-1], 2) for name, settings in study.found.items()}
    assert found == PRE_TRAININGS
    matrices = [step for step in study.steps if step.verb == "matrix"]
    assert [step.of for step in matrices] == [[name] for name in PRE_TRAININGS]
    classification = ["cifar10", "cifar100", "svhn", "fashion-mnist", "visda17"]
    for step in matrices:
        assert step.tasks == [*classification, "detection", "segmentation"] and step.controls == ["random-mask"]
        assert not (study.training | step.training)  # so that every column has its own task's recipe


SEVERAL_MODELS = """
title = "Text and images"
source = "mine"

[[step]]
name = "words"
find = "demo/docstring-order"

[[step]]
name = "pictures"
find = "demo/digits"

[[step]]
name = "shuffled"
control = "pictures"
kind = "random-mask"

[[step]]
name = "moved"
transfer = "shuffled"
task = "digits"
"""


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("", ""), None),
        (('task = "digits"', 'task = "docstring-order"'), "is for text models, not 'resnet20-cifar'"),
        (('transfer = "shuffled"', 'transfer = "words"'), "is for vision models, not 'minilm'"),
        (('transfer = "shuffled"', 'matrix = ["words", "pictures"]'), "several models, minilm and resnet20-cifar"),
        (('kind = "random-mask"', 'kind = "random-mask"\nround = 99'), "no round 99; those of pictures are 0 to"),
        (('find = "demo/digits"', 'find = "demo/digits"\nprotocol = { pattern = "channels" }'), None),
        (
            (
                'find = "demo/digits"',
                'find = "demo/digits"\nprotocol = { pattern = "channels" }',
                "random-mask",
                "flip:0.1",
            ),
            "flip:0.1 would break the pattern channels",
        ),
    ],
)
def test_each_step_is_checked_against_the_search_that_its_ticket_comes_from(cli, tmp_path, change, says):
    text = SEVERAL_MODELS
    for old, new in zip(change[::2], change[1::2], strict=True):
        text = text.replace(old, new)
    if "matrix" in text:
        text = text.replace('task = "digits"', 'tasks = ["digits"]')
    (tmp_path / "mine.toml").write_text(text)
    code, shown = cli("recipes", "check", tmp_path / "mine.toml")
    assert (code, says is None or says in " ".join(shown.split())) == (0 if says is None else 2, True), shown
