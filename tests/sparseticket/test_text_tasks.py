"""Text classification tasks: data, batches, metric, and what is said about data that does not fit."""

import csv
import hashlib
import json
import os
import shutil
import sys
import types
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy, mse_loss
from torchmetrics.functional.classification import multiclass_matthews_corrcoef
from transformers import AutoTokenizer, RobertaConfig, RobertaForMaskedLM

from sparseticket.errors import UserError
from sparseticket.models import resolve
from sparseticket.tasks import TaskOptions, entries, make_task
from sparseticket.tasks.docstrings import docstrings, order_examples, topic_examples
from sparseticket.tasks.text_batches import TokenRows, shuffled_by_length
from sparseticket.tasks.text_classification import Examples, TextClassification
from sparseticket.tasks.text_files import hold_out

NO_NETWORK_ADVICE = r'pip install "sparseticket\[data\]"(.|\n)*--data'
ROWS = [(f"the film {number} is {'good' if number % 3 else 'bad'}", "yn"[number % 3 == 0]) for number in range(40)]


@pytest.fixture
def spec(tiny_bert):
    return resolve(str(tiny_bert))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "reviews.csv"
    with path.open("w", newline="") as handle:
        csv.writer(handle).writerows([("text", "label"), *ROWS])
    return path


def options(data=None, **changes):
    return TaskOptions(data=data, **{"batch_size": 8, "max_length": 32} | changes)


def decoded(spec, batches):
    tokenizer = spec.tokenizer()
    return [text for batch in batches for text in tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)]


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def write_glue(folder, name):
    lines = [f"the plot is dull {n}\t{n % 2}" for n in range(20)]
    if name == "cola":
        lines = [f'src\t{n % 2}\t*\tthe plot is "dull {n}' for n in range(20)]  # a quote that never closes
    else:
        lines.insert(0, "sentence\tlabel")
    for part in ("train.tsv", "dev.tsv"):
        (folder / part).write_text("\n".join(lines) + "\n")
    return folder


def test_the_text_tasks_are_registered_with_their_recipes():
    recipes = {name: entry.recipe for name, entry in entries().items() if entry.kind == "text"}
    assert recipes == {
        "cola": "neurips20/cola",
        "docstring-mlm": "demo/docstring-mlm",
        "docstring-order": "demo/docstring-order",
        "docstring-topic": "demo/docstring-topic",
        "mlm": "neurips20/mlm",
        "mnli": "neurips20/mnli",
        "mrpc": "neurips20/mrpc",
        "qnli": "neurips20/qnli",
        "qqp": "neurips20/qqp",
        "rte": "neurips20/rte",
        "squad": "neurips20/squad",
        "sst2": "neurips20/sst2",
        "stsb": "neurips20/stsb",
        "text": "neurips20/text",
        "wnli": "neurips20/wnli",
    }


def test_an_epoch_visits_every_row_once_in_an_order_of_seed_round_and_epoch(spec, file):
    task = make_task("text", spec, options(file))
    first = task.batches("train", seed=1, round=0, epoch=0)
    again = make_task("text", spec, options(file)).batches("train", seed=1, round=0, epoch=0)
    assert len(first) == 5 and len(decoded(spec, first)) == len(set(decoded(spec, first))) == 36
    assert all(same(left, right) for left, right in zip(first, again, strict=True))
    for names in (
        {"seed": 2, "round": 0, "epoch": 0},
        {"seed": 1, "round": 1, "epoch": 0},
        {"seed": 1, "round": 0, "epoch": 1},
    ):
        other = decoded(spec, task.batches("train", **names))
        assert other != decoded(spec, first) and sorted(other) == sorted(decoded(spec, first))


@pytest.mark.parametrize("name", ["seed", "round", "epoch"])
def test_what_shares_a_batch_and_the_order_of_batches_are_each_drawn_anew_by_seed_round_and_epoch(name):
    def drawn(lengths):
        """Batches of 8 of 64 rows of these lengths, under two values of the name."""
        rows = TokenRows.of([[5] * length for length in lengths])
        names = {"seed": 0, "round": 0, "epoch": 0}
        orders = (shuffled_by_length(rows, 8, **names | {name: value}) for value in (0, 3))
        return [[frozenset(batch) for batch in order.reshape(-1, 8).tolist()] for order in orders]

    alike, other = drawn([1] * 64)  # whose batches are as the rows were shuffled
    assert set(alike) != set(other)
    rising, other = drawn(range(1, 65))  # whose batches are neighbours, whatever was shuffled before
    assert set(rising) == set(other) and rising != other


def test_batches_are_a_sequence_that_can_be_entered_anywhere(spec, file):
    batches = make_task("text", spec, options(file)).batches("train", seed=0, round=0, epoch=0)
    assert same(batches[3], list(batches)[3]) and same(batches[-1], batches[4])
    assert len(batches[4]["labels"]) == 4  # 36 rows: the last batch is short, not dropped
    with pytest.raises(IndexError):
        batches[5]


@pytest.mark.parametrize(("gpu", "width"), [(False, 12), (True, 16)])
def test_rows_are_padded_to_the_longest_and_for_a_gpu_to_a_multiple_of_eight(spec, monkeypatch, gpu, width):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    texts = ["good", "the film is very good and the plot is fine"]
    examples = Examples(texts, [0, 1])
    batch = TextClassification("x", spec, options(), examples, examples, classes=2).batches(
        "eval", seed=0, round=0, epoch=0
    )[0]
    assert batch["input_ids"].shape == (2, width) and batch["attention_mask"].sum(1).tolist() == [3, 12]
    assert (batch["input_ids"][batch["attention_mask"] == 0] == spec.tokenizer().pad_token_id).all()
    cut = TextClassification("x", spec, options(max_length=10), examples, examples, classes=2)
    assert cut.batches("eval", seed=0, round=0, epoch=0)[0]["input_ids"].shape == (2, 10)


def test_pairs_carry_token_types(spec):
    examples = Examples(["the film", "a plot"], [0, 1], ["is good", "is not it"])
    task = TextClassification("x", spec, options(), examples, examples, classes=2)
    batch = task.batches("eval", seed=0, round=0, epoch=0)[0]
    assert batch["token_type_ids"].sum(1).tolist() == [3, 4]  # the second text with its [SEP]


def test_pairs_carry_no_token_types_where_the_model_has_one_for_all(tiny_folders, tmp_path):
    """As of RoBERTas that came with BERT's tokenizer: the second type would be outside of their table."""
    shutil.copytree(tiny_folders["roberta"], tmp_path / "one-type")
    config = RobertaConfig.from_pretrained(tmp_path / "one-type", type_vocab_size=1)
    RobertaForMaskedLM(config).save_pretrained(tmp_path / "one-type")
    roberta = resolve(str(tmp_path / "one-type"))
    pairs = Examples(["the film"] * 3, [0, 1, 0], ["the plot is dull"] * 3)
    task = TextClassification("pairs", roberta, options(), pairs, pairs, classes=2)
    batch = task.batches("eval", seed=0, round=0, epoch=0)[0]
    assert batch.keys() == {"input_ids", "attention_mask", "labels"}
    network = roberta.build(task.head, seed=0)
    assert task.evaluate(network.module)["accuracy"] > 0
    network.save(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert saved("the film", "the plot is dull").keys() == {"input_ids", "attention_mask"}


def test_sequences_longer_than_the_models_positions_are_refused(spec, file):
    with pytest.raises(UserError, match="65 tokens do not fit bert, which takes 8 to 64"):
        make_task("text", spec, options(file, max_length=65))


def test_the_loss_is_that_of_the_models_logits(spec, file):
    task = make_task("text", spec, options(file))
    model = spec.build(task.head, seed=0).module.eval()
    batch = task.batches("train", seed=0, round=0, epoch=0)[0]
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    assert torch.equal(task.loss(model, batch, step=0), cross_entropy(model(**inputs).logits, batch["labels"]))
    scores = Examples(["good", "bad"], [4.5, 1.0])
    regression = TextClassification("stars", spec, options(), scores, scores, classes=0)
    model = spec.build(regression.head, seed=0).module.eval()
    batch = regression.batches("train", seed=0, round=0, epoch=0)[0]
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    expected = mse_loss(model(**inputs).logits[:, 0], batch["labels"])
    assert regression.head.kind == "regression" and torch.equal(regression.loss(model, batch, step=0), expected)


@pytest.mark.parametrize("mode", [True, False])
def test_evaluation_is_without_dropout_and_leaves_the_mode_as_it_was(spec, file, mode):
    task = make_task("text", spec, options(file))
    model = spec.build(task.head, seed=0).module.train(mode)
    values = {task.evaluate(model)["accuracy"] for _ in range(3)}
    assert len(values) == 1 and model.training is mode and model.bert.training is mode


def test_training_on_a_users_file_learns_its_labels(spec, file):
    task = make_task("text", spec, options(file))
    model = spec.build(task.head, seed=0).module.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for epoch in range(6):
            for batch in task.batches("train", seed=0, round=0, epoch=epoch):
                task.loss(model, batch, step=0).backward()
                optimizer.step()
                optimizer.zero_grad()
    assert task.evaluate(model)["accuracy"] == 1.0


@pytest.mark.parametrize(("name", "metric"), [("sst2", "accuracy"), ("cola", "matthews")])
def test_glue_tasks_read_their_published_folders(spec, tmp_path, name, metric):
    task = make_task(name, spec, options(write_glue(tmp_path, name)))
    assert task.metric == metric and task.head.classes == 2
    batches = task.batches("eval", seed=0, round=0, epoch=0)
    assert len(decoded(spec, batches)) == 20 and "dull" in decoded(spec, batches)[0]
    model = spec.build(task.head, seed=0).module.eval()
    inputs = {name: tensor for name, tensor in batches[0].items() if name != "labels"}
    guesses, labels = model(**inputs).logits.argmax(-1), batches[0]["labels"]
    expected = (guesses == labels).float().mean()
    if metric == "matthews":
        expected = multiclass_matthews_corrcoef(guesses, labels, 2)
    assert task.evaluate(model) == {metric: pytest.approx(float(expected))}


@pytest.mark.parametrize(
    ("name", "folder", "train", "dev", "positive"),
    [("sst2", "SST-2", 6920, 872, 0.509), ("cola", "CoLA", 8551, 527, 0.6926)],
)
def test_the_real_glue_files_are_read_whole(spec, name, folder, train, dev, positive):
    if "SPARSETICKET_DATA" not in os.environ:
        pytest.skip("SPARSETICKET_DATA does not name the folder of real data")
    task = make_task(name, spec, options(Path(os.environ["SPARSETICKET_DATA"]) / "glue" / folder, batch_size=64))
    batches = {split: task.batches(split, seed=0, round=0, epoch=0) for split in ("train", "eval")}
    sizes = {split: sum(len(batch["labels"]) for batch in found) for split, found in batches.items()}
    assert sizes == {"train": train, "eval": dev}
    labels = torch.cat([batch["labels"] for batch in batches["eval"]])
    assert float(labels.float().mean()) == pytest.approx(positive, abs=1e-3)


def damage_column(folder):
    (folder / "train.tsv").write_text("phrase\tlabel\ngood\t1\n")
    return r"no column 'sentence'; its columns are: phrase, label"


def damage_label(folder):
    (folder / "dev.tsv").write_text("sentence\tlabel\ngood\t1\nbad\tnegative\n")
    return r"dev\.tsv, line 3"


def damage_missing_file(folder):
    (folder / "dev.tsv").unlink()
    return r"there is no .*dev\.tsv: --data takes GLUE's own folder for this task, SST-2"


def damage_empty(folder):
    (folder / "train.tsv").write_text("sentence\tlabel\n")
    return "has no examples"


def damage_encoding(folder):
    (folder / "train.tsv").write_bytes("sentence\tlabel\ncafé\t1\n".encode("latin-1"))
    return "UTF-8"


@pytest.mark.parametrize("damage", [damage_column, damage_label, damage_missing_file, damage_empty, damage_encoding])
def test_glue_files_that_do_not_fit_are_named(spec, tmp_path, damage):
    message = damage(write_glue(tmp_path, "sst2"))
    with pytest.raises(UserError, match=message):
        make_task("sst2", spec, options(tmp_path))


def test_without_the_library_for_the_hub_glue_names_the_pip_line_and_the_way_around(spec, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=NO_NETWORK_ADVICE) as error:
        make_task("sst2", spec, options())
    assert "docstring-topic" in str(error.value)


def test_without_a_network_glue_names_the_way_around(spec, monkeypatch):
    def unreachable(*_):
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=unreachable))
    with pytest.raises(UserError, match=NO_NETWORK_ADVICE):
        make_task("cola", spec, options())


def test_glue_from_the_hub_trains_on_train_and_evaluates_on_validation(spec, monkeypatch):
    def load_dataset(name, configuration):
        assert (name, configuration) == ("nyu-mll/glue", "sst2")
        column = {"sentence": ["good", "bad"], "label": [1, 0]}
        return {"train": column, "validation": {"sentence": ["dull film"], "label": [0]}}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    task = make_task("sst2", spec, options())
    assert sorted(decoded(spec, task.batches("train", seed=0, round=0, epoch=0))) == ["bad", "good"]
    assert decoded(spec, task.batches("eval", seed=0, round=0, epoch=0)) == ["dull film"]


def write_rows(folder, suffix, rows, name="reviews"):
    path = folder / f"{name}{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    else:
        with path.open("w", newline="") as handle:
            csv.writer(handle, delimiter="\t" if suffix == ".tsv" else ",").writerows([("text", "label"), *rows])
    return path


def test_csv_tsv_and_json_lines_with_the_same_rows_are_the_same_data(spec, tmp_path):
    tasks = [make_task("text", spec, options(write_rows(tmp_path, s, ROWS))) for s in (".csv", ".tsv", ".jsonl")]
    assert len({task.data_id for task in tasks}) == 1
    moved = write_rows(tmp_path, ".csv", ROWS, name="elsewhere")
    assert make_task("text", spec, options(moved)).data_id == tasks[0].data_id
    other = write_rows(tmp_path, ".csv", [*ROWS, ("one more", "y")])
    assert make_task("text", spec, options(other)).data_id != tasks[0].data_id


def test_one_file_holds_out_a_tenth_whatever_the_order_of_its_rows(spec, tmp_path):
    tasks = [make_task("text", spec, options(write_rows(tmp_path, ".csv", rows))) for rows in (ROWS, ROWS[::-1])]
    held_out = [sorted(decoded(spec, task.batches("eval", seed=0, round=0, epoch=0))) for task in tasks]
    trained = decoded(spec, tasks[0].batches("train", seed=0, round=0, epoch=0))
    assert held_out[0] == held_out[1] and len(held_out[0]) == 4 and not set(held_out[0]) & set(trained)


def test_whichever_text_of_a_file_is_repeated_the_same_texts_are_held_out(tmp_path):
    rows = [(f"film {number}", None, "0") for number in range(30)]
    held_out = [("film 14", None, "0"), ("film 15", None, "0"), ("film 27", None, "0")]
    assert hold_out(rows, tmp_path)[1] == held_out
    for repeated in rows:
        train, evaluation = hold_out([*rows, *[repeated] * 4], tmp_path)
        assert set(evaluation) == set(held_out) and set(train) == set(rows) - set(held_out)


def test_texts_to_evaluate_on_that_are_trained_on_are_counted_and_all_of_them_are_refused(spec, tmp_path):
    write_rows(tmp_path, ".csv", ROWS[:30], name="train")
    write_rows(tmp_path, ".csv", ROWS[28:], name="eval")
    assert make_task("text", spec, options(tmp_path)).notes == (
        "2 of the 12 different texts to evaluate on are trained on, too.",
    )
    write_rows(tmp_path, ".csv", ROWS[10:20], name="eval")
    with pytest.raises(UserError, match=r"every text to evaluate on in .* is one to train on, too"):
        make_task("text", spec, options(tmp_path))


def test_texts_that_end_at_the_greatest_length_are_counted(spec, file):
    assert make_task("text", spec, options(file)).notes == ()
    (note,) = make_task("text", spec, options(file, max_length=8)).notes
    assert note == "30 of 40 texts have 8 tokens (--max-length) or more, and end there."


@pytest.mark.parametrize("name", ["eval", "dev", "valid", "test"])
def test_a_folder_has_its_own_evaluation_file(spec, tmp_path, name):
    write_rows(tmp_path, ".csv", ROWS[:30], name="train")
    write_rows(tmp_path, ".jsonl", ROWS[30:], name=name)
    task = make_task("text", spec, options(tmp_path))
    assert len(decoded(spec, task.batches("train", seed=0, round=0, epoch=0))) == 30
    assert len(decoded(spec, task.batches("eval", seed=0, round=0, epoch=0))) == 10


def test_labels_may_be_words_or_numbers_and_are_numbered_in_their_order(spec, tmp_path):
    words = make_task(
        "text",
        spec,
        options(write_rows(tmp_path, ".csv", [(f"{n}", ["no", "yes", "maybe"][n % 3]) for n in range(30)])),
    )
    numbers = make_task(
        "text", spec, options(write_rows(tmp_path, ".jsonl", [(f"{n}", [10, 9, -1][n % 3]) for n in range(30)]))
    )
    for task, classes in ((words, [1, 2, 0]), (numbers, [2, 1, 0])):
        assert task.head.classes == 3
        for batch in task.batches("train", seed=0, round=0, epoch=0):
            texts = spec.tokenizer().batch_decode(batch["input_ids"], skip_special_tokens=True)
            found = [int(text) for text in texts]
            assert batch["labels"].tolist() == [classes[number % 3] for number in found]


BAD_FILES = {
    "no-label.csv": ("text,sentiment\ngood,1\n", "no column label; found: text, sentiment; needed: text, label"),
    "nothing.csv": ("", "no column text and no column label; found: none"),
    "header-only.csv": ("text,label\n", "has no rows"),
    "short.csv": ("text,label\ngood,1\nbad,0\n", "2 rows: at least 10"),
    "one-label.csv": ("text,label\n" + "".join(f"film {n},1\n" for n in range(20)), "only one label"),
    "same-text.csv": ("text,label\n" + "".join(f"film,{n % 2}\n" for n in range(20)), "repeats the same text"),
    "hole.csv": ("text,label\ngood,1\nbad\n", "line 3: the label is missing"),
    "comma.csv": ("text,label\ngood,1\nbad, all of it,0\n", "line 3: 3 fields, and the header has 2. A comma inside"),
    "tab.tsv": ("text\tlabel\ngood\t1\nbad\tof it\t0\n", "line 3: 3 fields, and the header has 2. A tab inside"),
    "quote.csv": ('text,label\n"never closed,1\n', "could not be read"),
    "broken.jsonl": ('{"text": "good", "label": 1}\n{"text": \n', "line 2: not JSON"),
    "list.jsonl": ("[1, 2]\n", "line 1: each line must be a JSON object"),
    "column.jsonl": ('{"text": "good"}\n', "line 1 has no column label"),
    "number.jsonl": ('{"text": 5, "label": 1}\n', "line 1: text and text_b must be texts"),
    "half.jsonl": ('{"text": "good \\ud83d", "label": 1}\n', r"line 1: half of a surrogate pair \(\\ud800 to"),
    "nan.jsonl": ('{"text": "good", "label": NaN}\n', "line 1: the label is missing"),
    "notes.txt": ("text", "no file of labelled texts"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_users_file_that_does_not_fit_is_told_where_and_what_is_needed(spec, tmp_path, name):
    content, message = BAD_FILES[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        make_task("text", spec, options(tmp_path / name))


def test_labels_that_are_evaluated_on_and_never_trained_on_are_refused_or_said(spec, tmp_path):
    rows = [f"film {n} was {('good', 'bad')[n % 2]}" for n in range(40)]
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"{row},{n % 2}\n" for n, row in enumerate(rows)))
    (tmp_path / "test.csv").write_text("text,label\n" + "".join(f"{row} too,l{n % 2}\n" for n, row in enumerate(rows)))
    with pytest.raises(UserError, match=r"never trains on: l0, l1\. It trains on 0, 1: write"):
        make_task("text", spec, options(tmp_path))
    held_out = hold_out([(row, None, "0") for row in rows], tmp_path)[1][0][0]
    text = "text,label\n" + "".join(f"{row},{'rare' if row == held_out else row[-1]}\n" for row in rows)
    (tmp_path / "one.csv").write_text(text)
    notes = make_task("text", spec, options(tmp_path / "one.csv")).notes
    assert [note for note in notes if "the label rare: it cannot be learned" in note]


def test_a_separator_behind_the_last_field_takes_nothing_away(spec, tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"film {n},{n % 2},\n" for n in range(20)))
    assert make_task("text", spec, options(tmp_path / "a.csv")).head.classes == 2


def test_a_text_may_be_longer_than_csv_takes_by_itself(spec, tmp_path):
    rows = "".join(f"{'very ' * 30_000 * (n == 0)}film {n},{n % 2}\n" for n in range(20))
    (tmp_path / "long.csv").write_text("text,label\n" + rows)
    assert make_task("text", spec, options(tmp_path / "long.csv")).head.classes == 2


def test_missing_data_for_the_text_task_says_what_it_takes(spec, tmp_path):
    with pytest.raises(UserError, match="needs your data"):
        make_task("text", spec, options())
    with pytest.raises(UserError, match="has no train file"):
        make_task("text", spec, options(tmp_path))
    with pytest.raises(UserError, match="no file of labelled texts"):
        make_task("text", spec, options(tmp_path / "absent.csv"))


def test_docstrings_are_real_texts_each_once_in_a_fixed_order():
    texts = [docstring.text for docstring in docstrings()]
    assert len(texts) == len(set(texts)) > 1000
    assert texts == sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())


def test_docstring_topics_are_eight_balanced_packages_with_nothing_in_both_splits():
    train, evaluation = topic_examples()
    counts = torch.bincount(torch.tensor([*train.labels, *evaluation.labels]))
    assert len(counts) == 8 and counts.max() <= 3 * counts.min()
    assert not set(train.texts) & set(evaluation.texts)
    assert set(train.labels) == set(evaluation.labels) == set(range(8))


def test_half_of_the_order_task_is_shuffled_and_only_that_half():
    train, _ = order_examples()
    assert 0.4 < sum(train.labels) / len(train.labels) < 0.6
    originals = {" ".join(docstring.text.split()[:60]) for docstring in docstrings()}
    as_written = [text in originals for text in train.texts]
    assert as_written == [label == 1 for label in train.labels]


@pytest.mark.parametrize("name", ["docstring-topic", "docstring-order", "docstring-mlm"])
def test_docstring_tasks_need_and_take_no_data(spec, tmp_path, name):
    assert len(make_task(name, spec, options()).batches("train", seed=0, round=0, epoch=0)) > 100
    with pytest.raises(UserError, match="makes its own data"):
        make_task(name, spec, options(tmp_path))


def test_a_python_without_sources_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(UserError, match="no sources of its standard library"):
        docstrings.__wrapped__()  # behind its cache
