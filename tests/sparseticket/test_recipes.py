"""Recipes: what is packaged loads and says what the papers say; what a user writes is checked."""

import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparseticket.models import resolve
from sparseticket.models.vision import prunable_names
from sparseticket.options import default_recipe_folder
from sparseticket.recipes import FOLDER, Recipe, check_names, load, load_any, names, task_defaults
from sparseticket.tasks import entries

ROOT = Path(__file__).parents[2]

# protocol.md of the papers: lr, batch, length, most tokens, target
BERT = {
    "mnli": (2e-5, 32, "3ep", 128, 0.7),
    "qqp": (2e-5, 32, "3ep", 128, 0.9),
    "stsb": (2e-5, 32, "3ep", 128, 0.5),
    "wnli": (2e-5, 32, "3ep", 128, 0.9),
    "qnli": (2e-5, 32, "3ep", 128, 0.7),
    "mrpc": (2e-5, 32, "3ep", 128, 0.5),
    "rte": (2e-5, 32, "3ep", 128, 0.6),
    "sst2": (2e-5, 32, "3ep", 128, 0.6),
    "cola": (2e-5, 32, "3ep", 128, 0.5),
    "squad": (3e-5, 16, "2ep", 384, 0.4),
    "mlm": (5e-5, 16, "10000it", 512, 0.7),
}
WITHOUT_POOLER = {"mlm", "squad"}


@pytest.mark.parametrize("task", BERT)
def test_the_bert_recipes_have_table_2s_figures_to_be_printed_beside_ours(task):
    (of_table,) = (step.paper for step in load_any("neurips20/table2").steps if step.of == [task] and step.paper)
    for name in (f"neurips20/{task}", f"neurips20/{task}-released"):
        figures = load(name).transfer.paper
        assert figures == {arm: of_table[arm] for arm in ("dense", "ticket", "random-mask")}


def test_a_recipe_prints_the_papers_figures_beside_ours(cli, tmp_path):
    mine = tmp_path / "mine.toml"
    short = MINE.replace('"4ep"', '"1it"').replace("0.488", "0.2").replace("seeds = 3", "seeds = 1")
    mine.write_text(short + 'paper = { dense = "91.4 ± 0.3", random-mask = 12.5 }\n')
    code, text = cli("run", mine, "--out", tmp_path / "out")
    assert code == 0 and "the paper's" in text and "91.4 ± 0.3" in text and "12.5" in text, text
    assert "is finished" not in text, text  # of a round that it has just trained


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("task", BERT)
def test_the_bert_recipes_have_the_papers_settings(task, released):
    settings = task_defaults(task, "released" if released else "paper")
    training, protocol = settings.training, settings.protocol
    found = (training.lr, training.batch_size, training.round_length, training.max_length, protocol.sparsity)
    lr, batch, length, longest, target = BERT[task]
    if released and task == "squad":
        length = "4ep"  # the released README's; the paper's 2 are known at second hand
    assert found == (lr, batch, length, longest, target)
    assert (training.optimizer, training.eps, training.weight_decay) == ("adamw", 1e-8, 0.0)
    assert (training.warmup, training.clip, training.decay) == (0.0, 1.0, "linear")
    assert (settings.model, settings.task, protocol.schedule) == ("bert-base", task, "linear:0.1")
    assert protocol.optimizer_state == "fresh" and protocol.pattern == "unstructured"


@pytest.mark.parametrize("task", BERT)
def test_the_released_bert_recipes_differ_from_the_paper_in_the_named_fields_alone(task):
    paper, released = (task_defaults(task, name).protocol for name in ("paper", "released"))
    assert (paper.name, paper.rewind, paper.head, paper.lr_schedule) == ("paper", "theta_p", "rewind", "restart")
    assert not paper.prune_pooler and not paper.prune_first
    assert (released.name, released.head, released.lr_schedule) == ("released", "keep", "keep")
    of_mlm = task == "mlm"  # its copy of the weights was an alias, and it pruned before training
    assert (released.rewind, released.prune_first) == (("none", True) if of_mlm else ("theta_p", False))
    assert released.prune_pooler is (task not in WITHOUT_POOLER)
    training = task_defaults(task).training
    if task == "squad":
        training = replace(training, round_length="4ep")
    assert task_defaults(task, "released").training == training


def test_another_precision_reaches_every_training_of_a_recipe(cli, tmp_path):
    mine, out = tmp_path / "mine.toml", tmp_path / "out"
    mine.write_text(MINE.replace('"4ep"', '"1it"').replace("0.488", "0.2").replace("seeds = 3", "seeds = 1"))
    code, text = cli("run", mine, "--precision", "bf16", "--out", out)
    assert code == 0, text
    written = [path.read_text() for path in out.rglob("*.toml")]
    assert written and all('precision = "bf16"' in one for one in written)

    code, text = cli("run", mine, "--precision", "int8", "--out", tmp_path / "other")
    assert code == 2 and "precision is one of no, fp16, bf16, not 'int8'" in text and not (tmp_path / "other").exists()


def test_another_precision_stands_above_what_a_study_and_its_steps_say():
    study = load_any("minilm/mlm-rewinding").instead(precision="no")
    assert {found.training.precision for found in study.found.values()} == {"no"}
    assert {(study.training | step.training)["precision"] for step in study.steps} == {"no"}


SMALL = ("cifar10", "cifar100", "svhn", "fashion-mnist")


@pytest.mark.parametrize("name", [f"cvpr21/{t}{r}" for t in SMALL for r in ("", "-released")] + ["cvpr21/image-folder"])
def test_the_vision_recipes_have_the_papers_settings(name):
    settings = load(name).settings
    training, protocol = settings.training, settings.protocol
    assert (settings.model, protocol.schedule, protocol.rewind) == ("resnet50", "geometric:0.2", "theta_p")
    assert (training.optimizer, training.lr, training.batch_size) == ("sgd", 0.1, 256)
    assert (training.momentum, training.weight_decay, training.round_length) == (0.9, 2e-4, "182ep")
    assert training.decay == "steps" and [round(m * 182) for m in training.milestones] == [91, 136]
    assert round(training.warmup * 182, 2) == (1.0 if name.endswith("released") else 0.0)
    assert not protocol.prune_first  # only on the pre-training tasks themselves


def test_visda_has_settings_of_its_own():
    settings = load("cvpr21/visda17").settings
    training, protocol = settings.training, settings.protocol
    assert (settings.model, protocol.schedule, protocol.rewind) == ("resnet50", "geometric:0.2", "theta_p")
    assert (training.optimizer, training.lr, training.batch_size) == ("sgd", 1e-3, 128)
    assert (training.momentum, training.weight_decay, training.round_length) == (0.9, 5e-4, "20ep")
    assert training.decay == "steps" and [m * 20 for m in training.milestones] == [10]


@pytest.mark.parametrize(
    ("task", "highest"),
    [("cifar10", 91.41), ("cifar100", 86.58), ("svhn", 91.41), ("fashion-mnist", 89.26), ("visda17", 67.23)],
)
def test_each_tasks_recipe_ends_at_the_highest_winning_imagenet_ticket_of_the_paper(task, highest):
    protocol = load(f"cvpr21/{task}").settings.protocol
    assert round(100 * protocol.sparsities()[-1], 2) == highest
    assert protocol.sparsities() == load("cvpr21/cifar10").settings.protocol.sparsities()[: len(protocol.sparsities())]


def test_the_cifar10_recipe_reaches_the_highest_winning_ticket_of_the_paper():
    sparsities = [round(100 * s, 2) for s in load("cvpr21/cifar10").settings.protocol.sparsities()]
    assert sparsities == [0, 20, 36, 48.8, 59.04, 67.23, 73.79, 79.03, 83.22, 86.58, 89.26, 91.41]


# protocol.md of the papers: lr and weight decay, as in the paper and as released
PRE_TRAININGS = {"imagenet": (1e-4, 1e-4, 1e-4), "simclr": (1e-4, 1e-4, 1e-6), "moco": (3e-4, 1e-4, 1e-4)}


@pytest.mark.parametrize("task", PRE_TRAININGS)
def test_the_pre_training_recipes_have_the_papers_settings(task):
    paper, released = (task_defaults(task, name) for name in ("paper", "released"))
    lr, *decays = PRE_TRAININGS[task]
    for settings, decay in zip((paper, released), decays, strict=True):
        training, protocol = settings.training, settings.protocol
        assert (settings.model, protocol.schedule, protocol.rewind) == ("resnet50", "geometric:0.2", "theta_p")
        assert (training.lr, training.weight_decay, training.momentum, training.decay) == (lr, decay, 0.9, "constant")
        assert (training.round_length, training.batch_size) == ("10ep", 256)
    assert paper.training.optimizer == "sgd"
    assert released.training.optimizer == ("lars" if task == "simclr" else "sgd")
    assert paper.protocol.optimizer_state == "fresh" and paper.protocol.head == "rewind"
    assert released.protocol.optimizer_state == ("fresh" if task == "imagenet" else "keep")


def test_the_released_simclr_recipe_lists_images_averages_before_the_logarithm_and_blurs_nothing():
    paper, released = (task_defaults("simclr", name).training for name in ("paper", "released"))
    assert (paper.nt_xent, paper.order, paper.blur, paper.temperature) == ("mean-of-logs", "shuffled", True, 0.5)
    assert (released.nt_xent, released.order, released.blur, released.temperature) == (
        "log-of-mean",
        "listed",
        False,
        0.5,
    )
    assert task_defaults("simclr", "released").protocol.head == "keep"


def test_resnet152_is_transferred_with_as_many_weights_left_as_resnet50():
    study = load_any("cvpr21/resnet152")
    sparsities = {name: settings.protocol.sparsities() for name, settings in study.found.items()}
    left = {}
    for step in (step for step in study.steps if step.verb == "transfer"):
        with torch.device("meta"):
            module = resolve(step.of[0]).make_module(1000)
        weights = sum(dict(module.named_parameters())[name].numel() for name in prunable_names(module))
        model, _, pair = step.name.partition("-")
        left.setdefault(pair[3:], {})[model] = weights * (1 - sparsities[step.of[0]][step.round])
    assert left.keys() == {"36", "59", "79", "dense"} and left["dense"]["resnet152"] == pytest.approx(
        23_445_504, rel=1e-3
    )
    for pair in ("36", "59", "79"):
        assert left[pair]["resnet152"] == pytest.approx(left[pair]["resnet50"], rel=1e-3)


@pytest.mark.parametrize("name", names())
def test_every_packaged_recipe_is_fine_and_says_where_it_is_from(name, cli):
    recipe = load_any(name)
    check_names(recipe)
    assert recipe.title and recipe.source
    if isinstance(recipe, Recipe):
        assert recipe.settings.protocol.name == ("released" if name.endswith("-released") else "paper")
    assert cli("recipes", "check", name) == (0, f"{name}: fine\n")


def test_every_task_has_its_recipe():
    for task, entry in entries().items():
        assert task_defaults(task).task == task, entry.recipe


def test_a_task_that_has_no_released_recipe_is_refused_with_the_protocol_that_it_has(cli, tmp_path):
    of_no_paper = {
        "text",
        "digits",
        "image-folder",
        "segmentation-v3",
        "docstring-mlm",
        "docstring-order",
        "docstring-topic",
    }
    as_in_the_paper = {"visda17"}
    without = {task for task, entry in entries().items() if f"{entry.recipe}-released" not in names()}
    assert without == of_no_paper | as_in_the_paper
    for task in sorted(without):
        model = "minilm" if entries()[task].kind == "text" else "resnet50"
        code, text = cli("find", "--model", model, "--task", task, "--protocol", "released", "--out", tmp_path / "run")
        said = f"has one recipe, {entries()[task].recipe} for --protocol paper, and none for --protocol released"
        assert code == 2 and said in " ".join(text.split()) and not (tmp_path / "run").exists(), text


def test_ls_prints_every_whole_name_on_its_own_line(cli):
    code, text = cli("recipes", "ls")
    assert code == 0 and text.split("\n")[:-1] == names()
    assert "neurips20/sst2" in names() and "cvpr21/cifar10" in names()


def test_show_prints_a_recipe_as_it_stands(cli):
    code, text = cli("recipes", "show", "neurips20/sst2")
    assert code == 0 and text == (FOLDER / "neurips20" / "sst2.toml").read_text(encoding="utf-8")


def test_copy_makes_a_file_that_loads_and_never_overwrites_one(cli, tmp_path):
    mine = tmp_path / "mine.toml"
    assert cli("recipes", "copy", "demo/digits", mine)[0] == 0
    assert load(str(mine)).settings == load("demo/digits").settings
    mine.write_text("mine")
    code, text = cli("recipes", "copy", "demo/digits", mine)
    assert code == 2 and "exists: choose a new file" in text and mine.read_text() == "mine"


@pytest.mark.parametrize("verb", ["show", "check"])
def test_an_unknown_recipe_is_refused_with_close_names(cli, verb):
    code, text = cli("recipes", verb, "neurips20/sst")
    assert code == 2 and "Did you mean neurips20/sst2" in text and "recipes ls" in text


@pytest.mark.parametrize("verb", ["show", "check"])
def test_a_recipe_that_is_not_utf_8_is_refused_in_words(cli, tmp_path, verb):
    (tmp_path / "latin.toml").write_bytes('title = "für alle"\n'.encode("latin-1"))
    code, text = cli("recipes", verb, tmp_path / "latin.toml")
    assert code == 2 and "could not be read as UTF-8 text" in text


MINE = """
title = "Digits"
source = "mine"
[find]
model = "resnet20-cifar"
task = "digits"
[protocol]
schedule = "geometric:0.2"
sparsity = 0.488
head = "rewind"
[training]
round_length = "4ep"
decay = "steps"
milestones = [0.5, 0.747]
[transfer]
seeds = 3
controls = ["random-mask"]
"""


def test_a_recipe_of_ones_own_is_fine(cli, tmp_path):
    (tmp_path / "mine.toml").write_text(MINE)
    assert cli("recipes", "check", tmp_path / "mine.toml")[0] == 0


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("round_length", "round_lenght", ["[training]", "there is no setting 'round_lenght'", "round_length"]),
        ("[protocol]", "[protokoll]", "there is no table 'protokoll'"),
        (
            'model = "resnet20-cifar"',
            'model = "resnet21-cifar"',
            ["there is no model", "Did you mean", "resnet20-cifar"],
        ),
        ('task = "digits"', 'task = "digit"', ["there is no task 'digit'", "Did you mean digits"]),
        ('task = "digits"', 'task = "sst2"', "is for text models"),
        ('task = "digits"', "", "it lacks task"),
        ('model = "resnet20-cifar"', "model = 20", "model is a text"),
        ('task = "digits"', 'task = "digits"\nseed = -1', "seed is a whole number from 0"),
        ('task = "digits"', 'task = "digits"\nseed = "one"', "seed is a whole number from 0"),
        ('task = "digits"', 'task = "digits"\nprotocol = 3', "three tables beside each other"),
        ("geometric:0.2", "geometrical:0.2", "there is no schedule"),
        ("sparsity = 0.488", "sparsity = 1.5", "above 0 and below 1"),
        ("sparsity = 0.488", "sparsity = true", "sparsity is a number"),
        ("sparsity = 0.488", 'sparsity = "half"', "sparsity is a number"),
        ("[0.5, 0.747]", "[50, 75]", "fractions of a round"),
        ('head = "rewind"', 'head = "reset"', "rewind, keep"),
        ("seeds = 3", 'seeds = "three"', ["[transfer]", "seeds is a whole number from 1"]),
        ("seeds = 3", "seeds = 0", "seeds is a whole number from 1"),
        (
            "seeds = 3",
            "paper = { random-weights = 61.0 }",
            "a table of figures by arm (dense, ticket, random-mask)",
        ),
        ("seeds = 3", "round = 9", "there is no round 9; this recipe's are 0 to"),
        ('["random-mask"]', '["random"]', "there is no control 'random'"),
        ('["random-mask"]', "[[1]]", "there is no control"),
        ('["random-mask"]', '"random-mask"', "controls is a list of names"),
        ("title", "titel", "there is no table 'titel'"),
        ("source = ", "# ", "source must say"),
        ("[find]", "[find", "recipe"),
        ("[training]", "[[training]]", "a table of settings belongs here"),
    ],
)
def test_check_and_run_find_what_is_wrong_in_a_recipe(cli, tmp_path, old, new, says):
    mine = tmp_path / "mine.toml"
    assert MINE.count(old)
    mine.write_text(MINE.replace(old, new, 1))
    for verb in (["recipes", "check", mine], ["run", mine, "--out", tmp_path / "out"]):
        code, text = cli(*verb)
        assert code == 2, text
        assert all(word in text for word in ([says] if isinstance(says, str) else says)), text
    assert not (tmp_path / "out").exists()


def test_seeds_without_a_transfer_are_refused_and_not_ignored(cli, tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text(MINE.partition("[transfer]")[0])
    code, text = cli("run", mine, "--seeds", 5, "--out", tmp_path / "out")
    assert code == 2 and "transfers nothing, so --seeds would change nothing" in text
    assert not (tmp_path / "out").exists()


def test_what_a_recipe_says_of_files_is_kept_as_whole_paths(cli, tiny_bert, tmp_path, monkeypatch):
    rows = "\n".join(f"the film {n} is {('good', 'bad')[n % 2]},{n % 2}" for n in range(40))
    (tmp_path / "text.csv").write_text(f"text,label\n{rows}\n")
    shutil.copytree(tiny_bert, tmp_path / "bert")
    (tmp_path / "mine.toml").write_text(
        'title = "t"\nsource = "s"\n[find]\nmodel = "./bert"\ntask = "text"\ndata = "text.csv"\n'
        '[protocol]\nsparsity = 0.5\nschedule = "one-round"\n'
        '[training]\nround_length = "1it"\nbatch_size = 8\nmax_length = 16\n'
    )
    monkeypatch.chdir(tmp_path)
    code, text = cli("run", "./mine.toml")
    assert code == 0, text
    written = tomllib.loads((tmp_path / "runs" / "mine" / "run.toml").read_text())
    assert (written["model"], written["data"]) == (str(tmp_path / "bert"), str(tmp_path / "text.csv"))


def test_a_recipes_default_folder_is_named_after_its_file_however_the_path_is_written(tmp_path):
    for path in ("tiny.toml", "./tiny.toml", "../mine/tiny.toml", str(tmp_path / "tiny.toml")):
        assert default_recipe_folder(path) == Path("runs/tiny")
    assert default_recipe_folder("neurips20/sst2") == Path("runs/neurips20-sst2")


def test_two_processes_run_a_recipe_to_its_end(tmp_path):
    mine = tmp_path / "mine.toml"
    short = MINE.replace("4ep", "1it").replace("0.488", "0.2").replace("seeds = 3", "seeds = 1")
    mine.write_text(short)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m", "sparseticket"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, "run", str(mine), "--out", str(tmp_path / "run")],
        env=env,
        capture_output=True,
        text=True,
        timeout=200,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Verdict:") == 1
