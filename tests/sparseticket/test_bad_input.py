"""Wrong input through the command line: one message that says what to do, the right exit code, nothing damaged."""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError
from transformers import BertConfig, BertForPreTraining, PreTrainedModel

from sparseticket.cli import main
from sparseticket.ticket import Ticket

ROOT = Path(__file__).parents[2]
SETTINGS = "--sparsity 0.5 --schedule linear:0.3 --round-length 3it --batch-size 8 --max-length 16".split()
DIGITS = "--model resnet20-cifar --task digits --sparsity 0.5 --schedule one-round --round-length 1it".split()


@pytest.fixture
def refused(cli):
    """Run a command that must be refused with code 2 and one message that holds these words."""

    def run(*arguments, says):
        code, text = cli(*arguments)
        assert code == 2, text
        assert all(word in text for word in ([says] if isinstance(says, str) else says)), text
        assert len(text.splitlines()) <= 16
        return text

    return run


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    path.write_text("text,label\n" + "".join(f"the film {n} is {('dull', 'good')[n % 2]},{n % 2}\n" for n in range(60)))
    return path


@pytest.fixture(scope="module")
def find(tiny_bert, csv):
    return ["find", "--model", tiny_bert, "--task", "text", "--data", csv, *SETTINGS]


def in_a_process(*arguments, **environment):
    command = [sys.executable, "-c", "from sparseticket.cli import main; main()", *map(str, arguments)]
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)


def found(out, *command):
    """The folder of a run that is made once for many tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sparseticket", *map(str, command), "--out", str(out)])
        with pytest.raises(SystemExit) as end:
            main()
    assert not end.value.code
    return out


@pytest.fixture(scope="module")
def run(find, tmp_path_factory):
    return found(tmp_path_factory.mktemp("finished") / "run", *find)


@pytest.fixture
def own_run(run, tmp_path):
    """A copy of it to be damaged."""
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture(scope="module")
def last(run):
    return run / "round-02" / "ticket.ticket"


@pytest.fixture(scope="module")
def other_models(tiny_bert, tmp_path_factory):
    """The same model with other random weights, and a smaller one."""
    root = tmp_path_factory.mktemp("others")
    with torch.random.fork_rng():
        torch.manual_seed(7)
        for name, size in (("weights", 32), ("size", 16)):
            BertForPreTraining(BertConfig.from_pretrained(tiny_bert, hidden_size=size)).save_pretrained(root / name)
            for file in tiny_bert.glob("*tok*"):
                shutil.copy(file, root / name)
    return root


def tree(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---- names and numbers


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--sparsity", "0", "above 0 and below 1"),
        ("--sparsity", "1", "above 0 and below 1"),
        ("--sparsity", "1.5", "above 0 and below 1 (0.7 is 70 %), not 1.5"),
        ("--sparsity", "nan", "above 0 and below 1 (0.7 is 70 %), not nan"),
        ("--sparsity", "half", ("--sparsity", "a valid")),
        ("--sparsity", "0.9999999", "0.9999999 leaves none of"),
        ("--temperature", "0.1", "--temperature is for moco and simclr, and changes nothing of text"),
        ("--queue", "64", "--queue is for moco, and changes nothing of text"),
        ("--schedule", "lin", "geometric:0.2"),
        ("--schedule", "linear:0", "its step is above 0"),
        ("--schedule", "geometric:nan", "its step is above 0"),
        ("--schedule", "linear:0.00001", "take a larger step"),
        ("--round-length", "3", "write 3ep for three epochs"),
        ("--round-length", "0it", "write 3ep for three epochs"),
        ("--rewind", "5", "write theta_p"),
        ("--rewind", "500it", "not inside a round of 3 steps"),
        ("--rewind", "1%", "not inside a round of 3 steps"),
        ("--lr", "0", "lr is a number above 0"),
        ("--lr", "nan", "lr is a number"),
        ("--batch-size", "0", "batch-size is a whole number from 1"),
        ("--max-length", "500", "takes 8 to 64"),
        ("--seed", "-1", "seed is a whole number from 0"),
        ("--precision", "fp8", "no, fp16, bf16"),
        ("--protocol", "mine", "paper or released"),
        ("--protocol", "released", "Use --protocol paper"),
        ("--optimizer", "adam", "adamw, sgd"),
        ("--pattern", "0x4", ["there is no pattern '0x4'", "block:RxC (block:64x64), heads"]),
        ("--pattern", "5:4", "N from 1 and below M"),
        ("--pattern", "2:4", ["prunes 1 of every 4 a round, not linear:0.3", "linear:1/4, one-round"]),
        ("--pattern", "3:5", "3:5 is 0.4 sparse and nothing else, not 0.5: leave --sparsity out"),
        ("--pattern", "block:64", "block:RxC"),
        ("--pattern", "block:0x8", "two weights or more"),
        ("--pattern", "block:512x512", "larger than every layer of this model"),
        ("--pattern", "heads+channels", "heads and neurons can be combined"),
        ("--pattern", "channels", "is a text model and has no channels. It has heads and neurons"),
        ("--pattern", "heads", ["a sparsity of 0.5 cannot be reached", "it is 0.25", "Choose a lower --sparsity"]),
        ("--checkpoint-every", "nan", "seconds from 0"),
        ("--checkpoint-every", "-1", "seconds from 0"),
        ("--task", "tekst", ["there is no task 'tekst'", "Did you mean text"]),
        ("--task", "digits", ["a folder or hub name always is; models for images: resnet101, ", "another of the two"]),
        ("--model", "bert-bse", ["there is no model 'bert-bse'", "Did you mean bert-base"]),
        ("--model", "vgg16", ["vgg16 of torchvision is not taken: ", "Models for images: resnet101, "]),
        ("--model", "/nowhere/bert", "a folder with a config.json"),
        ("--data", "/nowhere/data", ["there is no file or folder /nowhere/data", "--data"]),
        ("--weights", "/nowhere/weights", ["there is no file /nowhere/weights", "--weights"]),
        ("--wieghts", "x", "No such option"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_written(find, refused, tmp_path, option, value, says):
    refused(*find, "--out", tmp_path / "new", option, value, says=says)
    assert not (tmp_path / "new").exists()


def test_a_vision_model_needs_its_task_named(refused):
    refused("find", "--model", "resnet20-cifar", says="name its task with --task: cifar10, cifar100, detection, ")


@pytest.mark.parametrize("option", [("--max-length", 64), ("--prune-pooler",)])
def test_an_option_for_texts_is_refused_for_images(refused, tmp_path, option):
    digits = ("find", "--model", "resnet20-cifar", "--task", "digits", "--out", tmp_path / "new")
    refused(*digits, *option, says=f"{option[0]} is for tasks on texts, and changes nothing of digits")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("pattern", ["heads", "heads+neurons"])
def test_heads_are_refused_for_a_resnet_before_anything_is_read(refused, tmp_path, pattern):
    says = ["'resnet50' is a vision model and has no heads", "It has channels"]  # and not that it has no weights here
    command = ["find", "--model", "resnet50", "--task", "digits", "--pattern", pattern, "--out", tmp_path / "new"]
    refused(*command, says=says)
    assert not (tmp_path / "new").exists()


def test_n_of_m_is_refused_where_m_does_not_divide_the_inputs(find, refused, tmp_path):
    command = [*find[: find.index("--sparsity")], "--pattern", "1:3", "--max-length", "16", "--out", tmp_path / "new"]
    refused(*command, says=["multiples of 3", "encoder.layer.0.attention.self.query.weight has 32"])
    assert not (tmp_path / "new").exists()


def test_a_recipe_whose_pattern_its_model_cannot_have_is_found_out_by_its_check(refused, tmp_path):
    recipe = tmp_path / "mine.toml"
    text = 'title = "x"\nsource = "x"\n[find]\nmodel = "resnet18"\ntask = "digits"\n[protocol]\npattern = "neurons"\n'
    recipe.write_text(text)
    refused("recipes", "check", recipe, says="'resnet18' is a vision model and has no neurons")
    recipe.write_text(text.replace('"neurons"', "4"))
    refused("recipes", "check", recipe, says="pattern is a text, not 4")


def test_an_unknown_name_ends_a_real_process_with_code_2_and_a_message_alone(find, tmp_path):
    ended = in_a_process(*find, "--out", tmp_path / "new", "--task", "tekst")
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr.startswith("error: there is no task 'tekst'. Did you mean text?")


# ---- no network, no library


def test_without_a_network_a_hub_model_says_what_to_use_instead(find, tmp_path):
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    ended = in_a_process(*find, "--out", tmp_path / "new", "--model", "bert-base", **offline)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "--model minilm" in ended.stderr and "--model FOLDER" in ended.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("task", "instead"),
    [
        ("mlm", ["wikitext-103-raw-v1", "--data FILE", "--task docstring-mlm"]),
        ("sst2", ["--data SST-2", "docstring-topic"]),
    ],
)
def test_without_the_library_for_data_sets_the_pip_line_and_the_ways_around_are_named(
    refused, monkeypatch, tiny_bert, tmp_path, task, instead
):
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    says = ['pip install "sparseticket[data]"', *instead]
    refused("find", "--model", tiny_bert, "--task", task, "--out", tmp_path / "new", says=says)
    assert not (tmp_path / "new").exists()


def test_without_a_network_a_resnet_asks_for_its_weights(refused, monkeypatch, tmp_path):
    def no_network(*arguments, **options):
        raise urllib.error.URLError(socket.gaierror(-2, "Name or service not known"))

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    says = ["resnet50", "--weights FILE", "https://download.pytorch.org"]
    refused("find", "--model", "resnet50", "--task", "digits", "--out", tmp_path / "new", says=says)


# ---- data


def test_a_link_that_leads_back_to_itself_is_no_data_weights_or_place_for_a_ticket(find, refused, tmp_path, last):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    python_says_so = sys.version_info < (3, 13)  # later ones make a path of it, at which nothing is
    for option in ("--data", "--weights"):
        says = "leads back to itself" if python_says_so else "there is no file"
        refused(*find, option, loop, "--out", tmp_path / "new", says=says)
    if python_says_so:
        refused("control", last, "--kind", "complement", "--out", loop, says="leads back to itself")


def test_no_number_is_no_sparsity_of_a_pattern_that_has_its_own(refused, last, tmp_path):
    asked = ["convert", last, "--to", "2:4", "--by", "score", "--out", tmp_path / "x"]
    refused(*asked, "--sparsity", "nan", says="and nothing else")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "text,class\na film,good\n", ["no column label", "found: text, class"]),
        ("a.csv", "", ["no column text", "needed: text, label"]),
        ("a.csv", "text,label\n", "has no rows"),
        ("a.csv", "text,label\n" + "".join(f"film {n},good\n" for n in range(40)), ["only one label", "at least two"]),
        ("a.csv", "text,label\ngood film,1\nbad film,0\n", "at least 10"),
        ("a.csv", "text,label\nonly a text\n", "line 2: the label is missing"),
        ("a.csv", b"\xff\xfe\x00\x01", "UTF-8"),
        ("a.jsonl", '{"text": "a film"\n', "line 1: not JSON"),
        ("a.jsonl", "[" * 100_000 + "\n", "line 1: not JSON"),
        ("a.jsonl", '{"text": ["a film"], "label": 1}\n', "must be texts"),
        ("a.txt", "a film", "takes a .csv, .tsv or .jsonl"),
    ],
)
def test_a_data_file_that_does_not_fit_is_refused_with_its_place(find, refused, tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(*find, "--out", tmp_path / "new", "--data", path, says=says)
    assert not (tmp_path / "new").exists()


def test_the_folder_of_another_task_is_refused_with_the_layout(find, refused, csv, tmp_path):
    for task, says in (("sst2", "train.tsv and dev.tsv"), ("mlm", "train.txt (or valid.txt) and test.txt")):
        refused(*find, "--out", tmp_path / "new", "--task", task, "--data", csv.parent, says=says)
    vision = ["find", "--model", "resnet20-cifar", "--out", tmp_path / "new", "--data", csv.parent, "--task"]
    refused(*vision, "cifar10", says="cifar-10-binary.tar.gz")
    refused(*vision, "image-folder", says="train/<class>/*.jpg")


# ---- models and weights


@pytest.mark.parametrize("content", ["a b c\n1 2 3\n", "\x80\x02}q\x00.", ""])
def test_a_weights_file_that_is_none_is_refused(find, refused, tmp_path, content):
    path = tmp_path / "weights.bin"
    path.write_text(content, encoding="latin-1")
    refused(*find, "--out", tmp_path / "new", "--weights", path, says=str(path))


@pytest.mark.parametrize(
    ("file", "content"), [("config.json", "{}"), ("config.json", "no JSON"), ("tokenizer.json", "{"), ("weights", "")]
)
def test_a_damaged_model_folder_is_refused(find, refused, tiny_bert, tmp_path, file, content):
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    if file == "weights":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
    else:
        (folder / file).write_text(content)
    refused(*find, "--out", tmp_path / "new", "--model", folder, says="the folder of model 'model' could not be loaded")


# ---- tickets


def test_what_is_no_ticket_or_no_longer_one_is_refused(refused, last, tiny_bert, csv, tmp_path):
    whole = last.read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 4
    for content, says in ((whole[:-1], "truncated"), (whole[:200], "truncated"), (b"", "not a ticket")):
        (tmp_path / "a.ticket").write_bytes(content)
        refused("inspect", tmp_path / "a.ticket", says=[says, "Copy it again"])
    (tmp_path / "a.ticket").write_bytes(flipped)
    refused("transfer", tmp_path / "a.ticket", says="is damaged: its content does not give its identity hash")
    refused("inspect", csv, says="is not a ticket")
    refused("inspect", tiny_bert / "model.safetensors", says="not a ticket: it has no sparseticket record")
    refused("transfer", tmp_path / "none.ticket", says=["there is no ticket", "RUN/round-NN/ticket.ticket"])


def forged(ticket, path, change):
    """A ticket whose record was changed by hand, with the identity that then belongs to it."""
    from sparseticket.ticket import _canonical, _identity

    with safetensors.safe_open(ticket, framework="pt") as file:
        record = json.loads(file.metadata()["sparseticket"])
        del record["identity"]
        packed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(record)
    metadata = {"sparseticket": _canonical(record | {"identity": _identity(record, packed)})}
    path.write_bytes(safetensors.torch.save(packed, metadata))
    return path


@pytest.mark.parametrize("field", ["model", "theta", "task", "training", "metrics", "round", "scheduled_sparsity"])
def test_a_forged_ticket_with_a_field_of_another_type_is_refused(refused, last, tmp_path, field):
    forgery = forged(last, tmp_path / "a.ticket", lambda record: record.update({field: ["x"]}))
    refused("inspect", forgery, says=f"its {field} is ['x']")


def test_a_ticket_with_a_wrong_shape_or_an_unknown_setting_is_refused(refused, last, tmp_path):
    def other_shape(record):
        record["shapes"][next(iter(record["shapes"]))] = [3, 5]

    refused("inspect", forged(last, tmp_path / "a.ticket", other_shape), says="bits of shape (3, 5)")
    forgery = forged(last, tmp_path / "a.ticket", lambda record: record["training"].update(speed=9))
    refused("transfer", forgery, says="there is no setting 'speed'")


def test_a_ticket_for_another_model_names_the_tensor_and_writes_nothing(refused, own_run, other_models):
    settings = own_run / "run.toml"
    model = tomllib.loads(settings.read_text())["model"]
    settings.write_text(settings.read_text().replace(model, str(other_models / "size")))
    before = tree(own_run)
    says = ["this ticket is of 'bert'", "(32, 32)", "Use it with 'bert'"]
    refused("transfer", own_run / "round-02" / "ticket.ticket", "--seeds", 1, says=says)
    assert tree(own_run) == before


def test_a_ticket_for_other_weights_is_refused_unless_allowed_and_that_is_written_down(
    cli, refused, last, other_models, tmp_path
):
    weights = other_models / "weights" / "model.safetensors"
    transfer = [
        "transfer",
        last,
        "--seeds",
        1,
        "--weights",
        weights,
        "--out",
        tmp_path / "out",
        "--round-length",
        "1it",
    ]
    says = ["other weights of 'bert'", "differs", "--weights FILE", "--allow-other-weights"]
    refused(*transfer, says=says)
    assert not (tmp_path / "out").exists()
    code, text = cli(*transfer, "--allow-other-weights")
    assert code == 0 and "not checked" in text
    assert json.loads((tmp_path / "out" / "transfer.json").read_text())["allow_other_weights"] is True


def test_a_ticket_that_left_its_run_says_where_its_model_was(refused, last, csv, tmp_path):
    lone = shutil.copy(last, tmp_path / "lone.ticket")
    refused("transfer", lone, "--data", csv, says=["there is no model 'bert'", "RUN/round-NN/ticket.ticket"])


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--control", "random", ["there is no control 'random'", "random-mask"]),
        ("--seeds", "0", "--seeds is how many runs each arm has, from 1"),
        ("--task", "nope", "there is no task 'nope'"),
        ("--task", "digits", "is for vision models"),
        ("--lr", "-1", "lr is a number"),
        ("--data", "/nowhere/data", "there is no file or folder /nowhere/data"),
        ("--weights", "/nowhere/weights", "there is no file /nowhere/weights"),
        ("--checkpoint-every", "nan", "seconds from 0"),
    ],
)
def test_a_wrong_transfer_is_refused_before_anything_is_written(refused, last, tmp_path, option, value, says):
    refused("transfer", last, "--out", tmp_path / "out", option, value, says=says)
    assert not (tmp_path / "out").exists()


# ---- folders


def test_an_out_that_cannot_be_made_or_holds_other_things_is_refused(find, refused, csv, tiny_bert, tmp_path):
    before = tree(tiny_bert)
    refused(*find, "--out", csv, says=["cannot make the folder", "--out"])
    refused(*find, "--out", csv / "below", says=["cannot make the folder", "--out"])
    refused(*find, "--out", tiny_bert, says=["holds other files", "--out"])
    assert tree(tiny_bert) == before and csv.is_file()


def test_other_settings_in_the_same_folder_show_the_difference_and_leave_it_whole(find, cli, refused, own_run):
    before = tree(own_run)
    says = ["seed: 0 there, 1 now", "training.lr: 2e-05 there, 0.001 now", "--out"]
    refused(*find, "--out", own_run, "--seed", 1, "--lr", 1e-3, says=says)
    assert tree(own_run) == before
    code, _ = cli(*find, "--out", own_run)
    assert code == 0 and tree(own_run) == before


def test_a_folder_that_other_settings_were_tried_on_still_continues_with_its_own(find, cli, refused, run, own_run):
    shutil.rmtree(own_run / "round-02")  # a pruning that had not happened: round 1 has to be trained again
    (own_run / "round-01" / "done").unlink()
    (own_run / "summary.json").unlink()
    refused(*find, "--out", own_run, "--sparsity", 0.4, says="protocol.sparsity: 0.5 there, 0.4 now")
    assert cli(*find, "--out", own_run)[0] == 0
    assert ticket(own_run).identity == ticket(run).identity


@pytest.mark.parametrize("content", ["model = ", "", "\x00\x01"])
def test_a_corrupt_run_toml_is_an_error_for_find_and_transfer(find, refused, own_run, content):
    (own_run / "run.toml").write_text(content)
    before = tree(own_run)
    refused(*find, "--out", own_run, says=str(own_run))
    refused("transfer", own_run / "round-02" / "ticket.ticket", says=str(own_run / "run.toml"))
    assert tree(own_run) == before


@pytest.mark.parametrize("content", ["{", "[]", "{}", None])
def test_corrupt_metrics_are_an_error_that_names_the_file(find, refused, own_run, content):
    (own_run / "summary.json").unlink()  # a finished run is not read again
    path = own_run / "round-01" / "metrics.json"
    path.unlink() if content is None else path.write_text(content)
    refused(*find, "--out", own_run, says=[str(path), "damaged"])


@pytest.mark.parametrize("damage", ["truncated", "garbage", "another network"])
def test_a_corrupt_checkpoint_is_an_error_that_says_to_remove_it_and_then_the_run_continues(
    find, cli, refused, run, own_run, damage
):
    (own_run / "summary.json").unlink()
    (own_run / "round-02" / "done").unlink()
    path = own_run / "round-02" / "checkpoint.safetensors"
    model = (own_run / "round-02" / "model" / "model.safetensors").read_bytes()
    path.write_bytes({"truncated": model[:999], "garbage": b"garbage" * 9, "another network": model}[damage])
    refused(*find, "--out", own_run, says=[str(path), "remove it"])
    path.unlink()
    assert cli(*find, "--out", own_run)[0] == 0
    assert ticket(own_run).identity == ticket(run).identity


def ticket(out, k=2):
    return Ticket.load(out / f"round-{k:02d}" / "ticket.ticket")


# ---- θ that is kept in a file of the run


@pytest.fixture(scope="module")
def random_run(tmp_path_factory):
    return found(tmp_path_factory.mktemp("random") / "run", "find", *DIGITS)


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_without_its_kept_theta_a_run_does_not_continue_and_its_ticket_is_not_used(
    refused, random_run, tmp_path, damage
):
    out = Path(shutil.copytree(random_run, tmp_path / "run"))
    theta = out / "theta.safetensors"
    tensors = safetensors.torch.load_file(theta)
    theta.unlink()
    if damage == "changed":
        tensors["conv1.weight"][0] += 1
        safetensors.torch.save_file(tensors, theta)
    refused("transfer", out / "round-01" / "ticket.ticket", "--seeds", 1, says=["theta.safetensors", "--weights FILE"])
    (out / "summary.json").unlink()
    (out / "round-01" / "done").unlink()
    before = tree(out)
    refused("find", *DIGITS, "--out", out, says=[str(theta), "copy it again"])
    assert tree(out) == before


def test_what_a_protocol_keeps_over_a_pruning_is_missed_when_it_is_gone(find, cli, refused, tmp_path):
    out = tmp_path / "run"
    keep = [*find, "--out", out, "--head", "keep", "--schedule", "one-round"]
    assert cli(*keep)[0] == 0
    (out / "summary.json").unlink()
    (out / "round-01" / "done").unlink()  # its carry file went when the round ended
    refused(*keep, says=[str(out / "round-00" / "carry.safetensors"), "missing or damaged"])


# ---- export and bench


def test_a_finished_run_whose_ticket_was_damaged_is_not_reported_as_found(find, refused, own_run):
    ticket = own_run / "round-02" / "ticket.ticket"
    ticket.write_bytes(ticket.read_bytes()[:-100])
    refused(*find, "--out", own_run, says=str(ticket))
    ticket.unlink()
    refused(*find, "--out", own_run, says=str(ticket))


def test_an_unfinished_run_is_not_exported_or_measured(refused, own_run, tmp_path):
    for k in (1, 2):
        shutil.rmtree(own_run / f"round-0{k}")
    (own_run / "round-00" / "done").unlink()
    (own_run / "summary.json").unlink()
    refused("export", own_run, tmp_path / "onnx", says=["no round", "run `sparseticket find` again"])
    refused("bench", own_run, "--out", tmp_path / "bench", says="is finished yet")
    assert not (tmp_path / "onnx").exists()


def test_a_missing_or_foreign_file_is_not_exported_or_measured(refused, csv, run, tmp_path):
    refused("bench", tmp_path / "none.onnx", says=["there is no", "bench takes .onnx files"])
    refused("bench", csv, says="bench takes .onnx files")
    (tmp_path / "empty.onnx").touch()
    refused("bench", tmp_path / "empty.onnx", says=["empty.onnx is empty", "export it again"])
    refused("export", tmp_path / "none", says="A SOURCE is one of")
    refused("export", run, tmp_path / "x", "--format", "tf", says="one of onnx, pt2, safetensors, hf")
    refused("export", run, csv, says="choose another OUT")
    refused("export", run, csv.parent, says="choose another OUT")


# ---- a disk that is full or turns read-only: injected where files are written, because tests run as root


FULL = OSError(errno.ENOSPC, "No space left on device")
READ_ONLY = OSError(errno.EROFS, "Read-only file system")


def fail_in_replace(monkeypatch, part, error):
    real = os.replace

    def replace(source, target):
        if part in str(target):
            raise error
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)


def fail_in_mkstemp(monkeypatch, part, error):
    real = tempfile.mkstemp

    def mkstemp(*arguments, **options):
        if part in str(Path(options["dir"]) / options["prefix"]):
            raise error
        return real(*arguments, **options)

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)


def fail_in_safetensors(monkeypatch, part, error):
    real = safetensors.torch.save_file

    def save_file(tensors, path, *arguments, **options):
        if part in str(path):
            Path(path).write_bytes(b"half")
            raise SafetensorError(f"Error while serializing: I/O error: {error}")
        return real(tensors, path, *arguments, **options)

    monkeypatch.setattr(safetensors.torch, "save_file", save_file)


def fail_in_model(monkeypatch, part, error):
    real = PreTrainedModel.save_pretrained

    def save_pretrained(self, folder, *arguments, **options):
        if part in str(folder):
            Path(folder).mkdir(parents=True)
            (Path(folder) / "model.safetensors").write_bytes(b"half")
            raise error
        return real(self, folder, *arguments, **options)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save_pretrained)


@pytest.mark.parametrize(
    ("fail", "part", "error"),
    [
        (fail_in_replace, "round-01/ticket.ticket", FULL),
        (fail_in_safetensors, "round-01/.checkpoint.safetensors", FULL),
        (fail_in_model, "round-01/", FULL),
        (fail_in_mkstemp, "round-01/.metrics.json", READ_ONLY),
        (fail_in_replace, "round-02/done", READ_ONLY),
    ],
    ids=["ticket", "checkpoint", "model", "metrics", "done"],
)
def test_after_a_full_or_read_only_disk_the_same_command_ends_as_if_nothing_had_happened(
    cli, find, run, tmp_path, fail, part, error
):
    out = tmp_path / "run"
    command = [*find, "--out", out, "--checkpoint-every", 0]
    with pytest.MonkeyPatch.context() as fault:
        fail(fault, part, error)
        code, text = cli(*command)
    assert code == 1, text
    assert error.strerror in text and "run the same command again" in text
    assert not [path for path in out.rglob("*") if path.name.endswith(".part")]
    finished = {path: content for path, content in tree(out).items() if (out / path).with_name("done").exists()}
    finished = {path: content for path, content in finished.items() if path.name != "carry.safetensors"}
    assert cli(*command)[0] == 0
    assert {path: tree(out)[path] for path in finished} == finished
    assert [ticket(out, k).identity for k in range(3)] == [ticket(run, k).identity for k in range(3)]


def test_a_disk_that_is_full_from_the_start_leaves_no_half_run(cli, find, tmp_path, monkeypatch):
    fail_in_mkstemp(monkeypatch, "run.toml", FULL)
    code, text = cli(*find, "--out", tmp_path / "run")
    assert code == 1 and "No space left on device" in text
    assert tree(tmp_path) == {}


def test_a_full_disk_while_logging_or_exporting_is_a_failure_with_a_message(cli, find, run, tmp_path, monkeypatch):
    real = Path.open

    def open_file(self, mode="r", *arguments, **options):
        if self.name == "log.jsonl":
            raise FULL
        return real(self, mode, *arguments, **options)

    with pytest.MonkeyPatch.context() as fault:
        fault.setattr(Path, "open", open_file)
        code, text = cli(*find, "--out", tmp_path / "run")
    assert code == 1 and "log.jsonl" in text and "No space left on device" in text
    fail_in_mkstemp(monkeypatch, "onnx", FULL)
    fail_in_replace(monkeypatch, "onnx", FULL)
    code, text = cli("export", run, tmp_path / "onnx")
    assert code == 1 and "No space left on device" in text
