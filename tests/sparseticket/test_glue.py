"""Each GLUE task on a miniature of its published files: the columns, headers and oddities that the real ones have."""

import sys
import types

import pytest
import torch
from torch import nn

from sparseticket.errors import UserError
from sparseticket.models import resolve
from sparseticket.tasks import TaskOptions, make_task
from sparseticket.tasks.glue import GLUE, read_tsv
from sparseticket.tasks.text_classification import Examples, TextClassification

LEFT, RIGHT = 'the "film is good', "a plot was 'dull'"  # a quote that never closes
MNLI = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse"
)
# by task: header, row, labels as written, what they are read as
FILES = {
    "cola": ("", "gj04\t{label}\t*\t{left}", ["0", "1"], [0, 1]),
    "sst2": ("sentence\tlabel", "{left}\t{label}", ["0", "1"], [0, 1]),
    "mrpc": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        "{label}\t70\t71\t{left}\t{right}",
        ["0", "1"],
        [0, 1],
    ),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "133273\t21385\t22389\t{left}\t{right}\t{label}",
        ["0", "1"],
        [0, 1],
    ),
    "stsb": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "0\tmain-captions\tMSRvid\t2012test\t0001\tnone\tnone\t{left}\t{right}\t{label}",
        ["5.000", "0.25"],
        [5.0, 0.25],
    ),
    "mnli": (
        f"{MNLI}\tsentence1\tsentence2\tlabel1\tgold_label",
        "0\t31193\t31193n\tgovernment\t( a )\t( b )\t(ROOT)\t(ROOT)\t{left}\t{right}\tneutral\t{label}",
        ["entailment", "neutral", "contradiction"],
        [0, 1, 2],
    ),
    "qnli": (
        "index\tquestion\tsentence\tlabel",
        "0\t{left}\t{right}\t{label}",
        ["entailment", "not_entailment"],
        [0, 1],
    ),
    "rte": (
        "index\tsentence1\tsentence2\tlabel",
        "0\t{left}\t{right}\t{label}",
        ["entailment", "not_entailment"],
        [0, 1],
    ),
    "wnli": ("index\tsentence1\tsentence2\tlabel", "0\t{left}\t{right}\t{label}", ["0", "1"], [0, 1]),
}
MNLI_DEV = (
    f"{MNLI}\tsentence1\tsentence2\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label",
    "0\t1\t1n\tslate\t( a )\t( b )\t(ROOT)\t(ROOT)\t{left}\t{right}" + "\tneutral" * 5 + "\t{label}",
)


@pytest.fixture
def spec(tiny_bert):
    return resolve(str(tiny_bert))


def options(data=None):
    return TaskOptions(data=data, batch_size=8, max_length=60)


def lines(name, header, row, copies=1):
    rows = [row.format(label=label, left=LEFT, right=RIGHT) for label in FILES[name][2] * copies]
    return "\n".join([header, *rows] if header else rows) + "\n"


def write(folder, name, copies=1):
    """GLUE's folder of a task, with the test file that has no labels."""
    folder.mkdir(parents=True, exist_ok=True)
    header, row, *_ = FILES[name]
    (folder / "train.tsv").write_text(lines(name, header, row, copies))
    for file in ["dev_matched", "dev_mismatched"] if name == "mnli" else ["dev"]:
        dev = MNLI_DEV if name == "mnli" else (header, row)
        (folder / f"{file}.tsv").write_text(lines(name, *dev))
    (folder / "test.tsv").write_text(f"index\tsentence1\tsentence2\n0\t{LEFT}\t{RIGHT}\n")
    return folder


def test_the_table_has_all_nine_tasks_and_this_file_a_miniature_of_each():
    assert FILES.keys() == GLUE.keys() and len(GLUE) == 9


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("parent", [False, True])
def test_a_miniature_of_its_published_files_is_read_whole(spec, tmp_path, name, parent):
    folder = write(tmp_path / GLUE[name].folder, name)
    task = make_task(name, spec, options(tmp_path if parent else folder))
    expected = FILES[name][3]
    for split in ["train", "eval"]:
        (batch,) = task.batches(split, seed=0, round=0, epoch=0)
        assert sorted(batch["labels"].tolist()) == sorted(expected)
        words = [LEFT] if name in ("cola", "sst2") else [LEFT, RIGHT]
        ids = spec.tokenizer()(*words)["input_ids"]
        assert all(row[: len(ids)].tolist() == ids for row in batch["input_ids"])
    if name == "stsb":
        assert task.head.kind == "regression" and task.metric == "pearson"
    else:
        assert (task.head.kind, task.head.classes) == ("sequence-classification", len(expected))
        assert task.metric == ("matthews" if name == "cola" else "accuracy")


@pytest.mark.parametrize("name", FILES)
def test_the_hub_and_the_files_with_the_same_rows_are_the_same_data(spec, tmp_path, name, monkeypatch):
    task, (*_, labels) = GLUE[name], FILES[name]
    names = {"train": "train.tsv"} | {f"validation{end}": f"dev{end}.tsv" for end in task.evaluations}
    columns = dict(zip(task.hub, (LEFT, RIGHT), strict=False))
    splits = {split: {c: [text] * len(labels) for c, text in columns.items()} | {"label": labels} for split in names}

    def load_dataset(dataset, configuration):
        assert (dataset, configuration) == ("nyu-mll/glue", name)
        return splits

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    from_files = make_task(name, spec, options(write(tmp_path, name)))
    assert make_task(name, spec, options()).data_id == from_files.data_id


@pytest.mark.parametrize("name", FILES)
def test_a_test_file_without_labels_is_refused_in_place_of_a_dev_file(spec, tmp_path, name):
    write(tmp_path, name)
    dev = "dev_matched.tsv" if name == "mnli" else "dev.tsv"
    (tmp_path / "test.tsv").rename(tmp_path / dev)
    with pytest.raises(UserError, match=rf"{dev}(.|\n)*GLUE's test files have no labels"):
        make_task(name, spec, options(tmp_path))
    (tmp_path / dev).unlink()
    with pytest.raises(UserError, match=rf"there is no .*{dev}(.|\n)*test.tsv has no labels"):
        make_task(name, spec, options(tmp_path))


def test_mrpc_is_read_from_microsofts_files_where_glues_are_not_there(spec, tmp_path):
    header, row, *_ = FILES["mrpc"]
    (tmp_path / "msr_paraphrase_train.txt").write_text(lines("mrpc", header, row, 3))
    (tmp_path / "msr_paraphrase_test.txt").write_text(lines("mrpc", header, row))
    task = make_task("mrpc", spec, options(tmp_path))
    sizes = [len(b["labels"]) for split in ("train", "eval") for b in task.batches(split, seed=0, round=0, epoch=0)]
    assert sizes == [6, 2]
    write(tmp_path, "mrpc", copies=2)  # GLUE's own split goes first
    (batch,) = make_task("mrpc", spec, options(tmp_path)).batches("train", seed=0, round=0, epoch=0)
    assert len(batch["labels"]) == 4


def test_rows_torn_by_a_line_break_are_skipped_while_they_are_few(tmp_path):
    folder = write(tmp_path, "qqp", copies=150)
    whole = read_tsv(GLUE["qqp"], folder / "train.tsv")
    torn = "7\t8\t9\twhat is\na film\tthe plot\t1\n"
    with (folder / "train.tsv").open("a") as file:
        file.write(torn)
    assert read_tsv(GLUE["qqp"], folder / "train.tsv") == whole and len(whole.labels) == 300
    with (folder / "train.tsv").open("a") as file:
        file.write(torn)
    with pytest.raises(
        UserError, match=r"4 of 304 lines \(the first is line 302\) have no text with a label out of 0, 1"
    ):
        read_tsv(GLUE["qqp"], folder / "train.tsv")


def test_a_pair_on_which_people_did_not_agree_is_skipped(tmp_path):
    folder = write(tmp_path, "mnli", copies=50)
    whole = read_tsv(GLUE["mnli"], folder / "train.tsv")
    with (folder / "train.tsv").open("a") as file:
        file.write(FILES["mnli"][1].format(left=LEFT, right=RIGHT, label="-") + "\n\n")
    assert read_tsv(GLUE["mnli"], folder / "train.tsv") == whole


@pytest.mark.parametrize(("name", "label"), [("qqp", "2"), ("rte", "Entailment"), ("stsb", "nan"), ("stsb", "high")])
def test_a_label_that_is_none_of_the_tasks_is_an_error_with_its_line(tmp_path, name, label):
    folder = write(tmp_path, name, copies=100)
    with (folder / "train.tsv").open("a") as file:
        file.write(FILES[name][1].format(left=LEFT, right=RIGHT, label=label) + "\n")
    with pytest.raises(UserError, match=f"line 202: '{label}' is not a (label out of|score)"):
        read_tsv(GLUE[name], folder / "train.tsv")


class Scripted(nn.Module):
    """Answers by the second token of a text: what the test wrote down for that word."""

    def __init__(self, spec, answers):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))
        self.answers = {spec.tokenizer().convert_tokens_to_ids(word): answer for word, answer in answers.items()}

    def forward(self, input_ids, **_):
        return types.SimpleNamespace(logits=torch.tensor([self.answers[word] for word in input_ids[:, 1].tolist()]))


def scored(spec, words, predictions, labels, *, classes, **settings):
    examples = Examples(words, labels)
    task = TextClassification("x", spec, options(), examples, examples, classes=classes, **settings)
    logits = predictions if classes == 0 else nn.functional.one_hot(torch.tensor(predictions), classes).float().tolist()
    answers = {word: [logit] if classes == 0 else logit for word, logit in zip(words, logits, strict=True)}
    return task.evaluate(Scripted(spec, answers))


WORDS = ["film", "good", "bad", "plot", "dull"]


def test_accuracy_matthews_and_pearson_are_those_of_the_hand(spec):
    predicted, true = [1, 1, 0, 0, 1], [1, 0, 0, 1, 1]
    assert scored(spec, WORDS, predicted, true, classes=2) == {"accuracy": pytest.approx(3 / 5)}
    # 2 true positives, 1 false positive, 1 true negative, 1 false negative: (2·1 - 1·1) / √(3·3·2·2)
    assert scored(spec, WORDS, predicted, true, classes=2, metric="matthews") == {"matthews": pytest.approx(1 / 6)}
    # deviations (-1.5, -.5, .5, 1.5) and (-2, 0, 1, 1): 5 / √(5·6)
    found = scored(spec, WORDS[:4], [1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 5.0, 5.0], classes=0, metric="pearson")
    assert found == {"pearson": pytest.approx(5 / 30**0.5)}


def test_a_model_that_says_the_same_everywhere_correlates_with_nothing(spec, recwarn):
    found = scored(spec, WORDS[:3], [2.5, 2.5, 2.5], [1.0, 2.0, 3.0], classes=0, metric="pearson")
    assert found == {"pearson": 0.0} and not recwarn.list
    assert scored(spec, WORDS, [1] * 5, [0, 1, 0, 1, 1], classes=2, metric="matthews") == {"matthews": 0.0}


def test_mnli_reports_both_sets_and_counts_the_matched_one(spec, tmp_path):
    write(tmp_path, "mnli")
    row = MNLI_DEV[1].format(left=LEFT, right=RIGHT, label="neutral")
    (tmp_path / "dev_mismatched.tsv").write_text(f"{MNLI_DEV[0]}\n{row}\n{row}\n")
    task = make_task("mnli", spec, options(tmp_path))
    always_neutral = Scripted(spec, {"the": [0.0, 1.0, 0.0]})
    assert task.metric == "accuracy"
    assert task.evaluate(always_neutral) == {"accuracy": pytest.approx(1 / 3), "accuracy_mismatched": 1.0}
    assert spec.build(task.head, seed=0).module.config.id2label[2] == "contradiction"


def test_stsb_trains_on_scores(spec, tmp_path):
    task = make_task("stsb", spec, options(write(tmp_path, "stsb", copies=4)))
    model = spec.build(task.head, seed=0).module.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for epoch in range(12):
        for batch in task.batches("train", seed=0, round=0, epoch=epoch):
            loss = task.loss(model, batch, step=0)
            losses.append(loss.item())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert losses[-1] < losses[0]  # towards the mean: both rows have the same words
