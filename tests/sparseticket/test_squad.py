"""SQuAD v1.1: scores by hand, windows and targets, the best span, its files, and what is said of others."""

import copy
import json
import sys
import types
from itertools import pairwise

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from torchmetrics.functional.text import squad as score_of_torchmetrics
from transformers import PreTrainedTokenizerFast

from sparseticket.errors import UserError
from sparseticket.models import resolve
from sparseticket.tasks import TaskOptions, make_task
from sparseticket.tasks.squad_data import Answer, Passages, Question, read
from sparseticket.tasks.squad_score import exact_match, f1
from sparseticket.tasks.squad_windows import best_spans, cut, encode, locate

# prediction, answers, exact match, F1
CASES = {
    "equal": ("Denver Broncos", ["Denver Broncos"], 1, 1),
    "case": ("denver BRONCOS", ["Denver Broncos"], 1, 1),
    "articles": ("the Denver Broncos", ["A Denver Broncos"], 1, 1),
    "article inside a word": ("theatre", ["atre"], 0, 0),
    "article between hyphens": ("state-of-the-art", ["state of the art"], 0, 0),  # "stateoftheart"
    "punctuation": ("U.S.A., (1976)!", ["USA 1976"], 1, 1),
    "spaces": ("  two \t words\n", ["two words"], 1, 1),
    "half of the words": ("Denver", ["Denver Broncos"], 0, 2 * 1 * 0.5 / 1.5),
    "too many words": ("the Denver Broncos of 2016", ["Denver Broncos"], 0, 2 * 0.5 * 1 / 1.5),
    "repeated words count as often as both have them": ("very very good", ["very good good"], 0, 2 / 3),
    "order does not matter to F1": ("Broncos Denver", ["Denver Broncos"], 0, 1),
    "the best of several answers": ("Santa Clara", ["California", "Levi's Stadium in Santa Clara", "Clara"], 0, 2 / 3),
    "any of several answers": ("1976", ["seventy-six", "in 1976", "1976"], 1, 1),
    "no overlap": ("Carolina Panthers", ["Denver Broncos"], 0, 0),
    "nothing": ("", ["Denver Broncos"], 0, 0),
    "unicode": ("BEYONCÉ Knowles", ["Beyoncé"], 0, 2 * 0.5 * 1 / 1.5),
    "an accent is another letter": ("Beyonce", ["Beyoncé"], 0, 0),
    "unicode punctuation stays": ("“1976”", ["1976"], 0, 0),
    "other scripts": ("東京 タワー", ["東京 タワー"], 1, 1),
    "a dash of its own": ("1999–2000", ["1999-2000"], 0, 0),
    "only articles are equal, and have no word in common": ("the", ["a"], 1, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_an_answer_is_scored_as_the_official_script_of_v1_1_does(case):
    prediction, answers, exact, overlap = CASES[case]
    assert exact_match(prediction, answers) == exact
    assert f1(prediction, answers) == pytest.approx(overlap, abs=1e-12)


def test_torchmetrics_agrees_wherever_a_word_is_left():
    for case, (prediction, answers, *_) in CASES.items():
        if not case.startswith("only articles"):
            target = {"id": "1", "answers": {"text": answers, "answer_start": [0] * len(answers)}}
            theirs = score_of_torchmetrics({"id": "1", "prediction_text": prediction}, target)
            ours = {"exact_match": exact_match(prediction, answers), "f1": f1(prediction, answers)}
            assert ours == {name: pytest.approx(float(value) / 100, abs=1e-6) for name, value in theirs.items()}, case


@pytest.fixture
def spec(tiny_bert):
    return resolve(str(tiny_bert))


def options(data=None, **changes):
    return TaskOptions(data=data, **{"batch_size": 4, "max_length": 32} | changes)


PASSAGES = ["the film is good and the plot was fine.", "a plot is not it,   the film was very dull of it"]
ASKED = [(0, "what is the film", "good"), (0, "was the plot bad", "fine"), (1, "is it a film", "very dull")]


def question_on(passage, text, answer):
    return Question(text, passage, (Answer(PASSAGES[passage].index(answer), answer),))


def passages():
    return Passages(list(PASSAGES), [question_on(*asked) for asked in ASKED])


def as_published(found):
    """The JSON of SQuAD's own files."""
    paragraphs = []
    for number, text in enumerate(found.texts):
        asked = [
            {
                "id": f"{number}-{place}",
                "question": question.text,
                "answers": [{"answer_start": answer.start, "text": answer.text} for answer in question.answers],
            }
            for place, question in enumerate(found.questions)
            if question.passage == number
        ]
        paragraphs.append({"context": text, "qas": asked})
    return {"version": "1.1", "data": [{"title": "films", "paragraphs": paragraphs}]}


def write(folder, train=None, dev=None):
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in (("train", train or passages()), ("dev", dev or passages())):
        (folder / f"{name}-v1.1.json").write_text(json.dumps(as_published(found), ensure_ascii=False), "utf-8")
    return folder


def text_under(spec, row, span):
    return spec.tokenizer().decode(row[span[0] : span[1] + 1])


def windows_of(spec, found, limit, *, train=True):
    tokenizer = spec.tokenizer()
    return cut(tokenizer, found, encode(tokenizer, found.texts), limit, train=train)


def rows_of(windows):
    starts = windows.rows.starts.tolist()
    return [windows.rows.ids[begin:end] for begin, end in pairwise(starts)]


def test_targets_are_the_answers_tokens_between_question_and_end(spec):
    windows = windows_of(spec, passages(), 64)
    assert windows.question.tolist() == [0, 1, 2]
    for row, span, (passage, question, answer) in zip(rows_of(windows), windows.targets.tolist(), ASKED, strict=True):
        assert text_under(spec, row, span) == answer
        assert row.tolist() == spec.tokenizer()(question, PASSAGES[passage])["input_ids"]


@pytest.mark.parametrize("style", ["bert", "roberta"])
def test_a_window_over_a_short_passage_is_what_the_tokenizer_makes_of_the_pair(style):
    words = {word: at for at, word in enumerate(["<s>", "</s>", "[PAD]", "[UNK]", "a", "b", "c", "d"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = (("</s>", 1), ("<s>", 0))
    backend.post_processor = (
        processors.BertProcessing(*ends) if style == "bert" else processors.RobertaProcessing(*ends)
    )
    inputs = ["input_ids", "token_type_ids", "attention_mask"][:: 1 if style == "bert" else 2]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", model_input_names=inputs)
    found = Passages(["c d b c"], [Question("a b", 0, (Answer(2, "d b"),))])
    windows = cut(tokenizer, found, encode(tokenizer, found.texts), 32, train=True)
    pair = tokenizer("a b", "c d b c")
    assert windows.rows.ids.tolist() == pair["input_ids"]
    assert len(pair["input_ids"]) == (9 if style == "bert" else 10)
    assert (windows.rows.types is None) == (style == "roberta")
    assert style == "roberta" or windows.rows.types.tolist() == pair["token_type_ids"]
    first = int(windows.first[0])
    assert windows.rows.ids[first : first + 4].tolist() == [6, 7, 5, 6]
    assert windows.targets.tolist() == [[first + 1, first + 2]]


def long_passage(words=700):
    return " ".join(["film", "plot", "good", "bad"][at % 4] for at in range(words))


def test_windows_begin_128_tokens_apart_and_show_every_token(spec):
    passage = long_passage()
    found = Passages([passage], [Question("is it good", 0, (Answer(0, "film"),))])
    windows = windows_of(spec, found, 384)
    room = 384 - 3 - 3
    assert windows.token.tolist() == [0, 128, 256, 384]
    assert windows.length.tolist() == [room, room, room, 700 - 384]
    assert windows.rows.lengths.tolist() == [384, 384, 384, 384 - room + 316]
    ids = spec.tokenizer()(passage, add_special_tokens=False)["input_ids"]
    for row, begin, length, first in zip(
        rows_of(windows), windows.token.tolist(), windows.length.tolist(), windows.first.tolist(), strict=True
    ):
        assert row[first : first + length].tolist() == ids[begin : begin + length]
    assert windows_of(spec, Passages([long_passage(room)], found.questions), 384).token.tolist() == [0]
    assert windows_of(spec, Passages([long_passage(room + 1)], found.questions), 384).token.tolist() == [0, 128]


def test_a_window_without_the_whole_answer_targets_the_first_token(spec):
    passage = long_passage(377) + " dull fine " + long_passage(321)
    found = Passages([passage], [Question("is it good", 0, (Answer(passage.index("dull"), "dull fine"),))])
    windows = windows_of(spec, found, 384)
    assert windows.targets[0].tolist() == [0, 0]  # "fine" is just outside
    assert [text_under(spec, row, span) for row, span in zip(rows_of(windows), windows.targets.tolist(), strict=True)][
        1:3
    ] == ["dull fine", "dull fine"]


def test_long_questions_leave_room_for_the_passage(spec):
    found = Passages([long_passage(100)], [Question(long_passage(200), 0, (Answer(0, "film"),))])
    windows = windows_of(spec, found, 384)
    assert windows.first.tolist() == [66] and windows.length.tolist() == [100]
    assert windows_of(spec, found, 32).first.tolist()[0] == 12


@pytest.mark.parametrize(
    ("passage", "answer", "under"),
    [
        ("the café is très good", "café", "café"),  # a character each: é has two bytes
        ("🎬 the film 🎬 good", "good", "good"),
        ("Åse's  plot, (fine)!", "(fine)", "(fine)"),
        ("the film is good", " is ", "is"),
        ("the film is good", "il", "film"),  # the tokens that hold it
    ],
)
def test_an_answers_place_counts_characters(spec, passage, answer, under):
    characters = encode(spec.tokenizer(), [passage]).characters_of(0)
    first, last = locate(Answer(passage.index(answer), answer), passage, characters)
    assert passage[characters[first, 0] : characters[last, 1]] == under


def test_the_best_span_has_the_highest_sum_inside_the_passage():
    start = torch.tensor([[9.0, 1.0, 4.0, 0.0, 3.0, 9.0], [0.0, 0.0, 1.0, 5.0, 0.0, 0.0]])
    end = torch.tensor([[9.0, 5.0, 0.0, 3.0, 2.0, 9.0], [0.0, 9.0, 3.0, 2.0, 0.0, 0.0]])
    # row 0: tokens 1 to 4, where the end may not come before the start; row 1: tokens 2 and 3
    best, first, last = best_spans(start, end, torch.tensor([1, 2]), torch.tensor([4, 2]))
    assert best.tolist() == [7.0, 7.0]
    assert (first.tolist(), last.tolist()) == ([2, 3], [3, 3])


def test_a_span_has_at_most_thirty_tokens():
    start, end = torch.zeros(1, 50), torch.zeros(1, 50)
    start[0, 3], end[0, 33], end[0, 32] = 5.0, 5.0, 1.0
    best, first, last = best_spans(start, end, torch.tensor([1]), torch.tensor([48]))
    assert (best.item(), first.item(), last.item()) == (6.0, 3, 32)


class Pointer(nn.Module):
    """Points at a word wherever it stands, with a strength of its own for each word."""

    def __init__(self, spec, strengths):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))
        self.strengths = {spec.tokenizer().convert_tokens_to_ids(word): value for word, value in strengths.items()}

    def forward(self, input_ids, **_):
        logits = sum((input_ids == word).float() * strength for word, strength in self.strengths.items())
        return types.SimpleNamespace(start_logits=logits, end_logits=logits)


def test_evaluation_scores_the_passages_own_text_by_the_best_of_its_answers(spec, tmp_path):
    dev = passages()
    dev.questions[0] = Question("what is the film", 0, (Answer(0, "the film"), Answer(12, "Good!")))
    task = make_task("squad", spec, options(write(tmp_path, dev=dev)))
    assert (task.metric, task.head.kind) == ("f1", "question-answering")
    scores = task.evaluate(Pointer(spec, {"good": 3.0, "dull": 3.0}))
    # "good" is right; "good" instead of "fine" is wrong; "dull" of "very dull" is 2·1·½/1½
    assert scores == {"f1": pytest.approx((1 + 0 + 2 / 3) / 3), "exact_match": pytest.approx(1 / 3)}


def test_the_best_span_of_all_windows_answers(spec, tmp_path):
    passage = "the film " * 20 + "dull " + "the film " * 20 + "fine"
    dev = Passages([passage], [Question("is it", 0, (Answer(passage.index("fine"), "fine"),))])
    task = make_task("squad", spec, options(write(tmp_path, dev=dev)))
    assert sum(len(batch["window"]) for batch in task.batches("eval", seed=0, round=0, epoch=0)) > 2
    assert task.evaluate(Pointer(spec, {"dull": 2.0, "fine": 3.0}))["exact_match"] == 1.0
    assert task.evaluate(Pointer(spec, {"dull": 3.0, "fine": 2.0}))["exact_match"] == 0.0


def test_the_loss_is_transformers_own(spec, tmp_path):
    task = make_task("squad", spec, options(write(tmp_path)))
    model = spec.build(task.head, seed=0).module.eval()
    (batch,) = task.batches("train", seed=0, round=0, epoch=0)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    first, last = batch["targets"].unbind(1)
    theirs = model(**inputs, start_positions=first, end_positions=last).loss
    assert torch.allclose(task.loss(model, batch, step=0), theirs) and model.config.num_labels == 2


def test_training_learns_the_answers(spec, tmp_path):
    task = make_task("squad", spec, options(write(tmp_path)))
    model = spec.build(task.head, seed=0).module.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for epoch in range(40):
            for batch in task.batches("train", seed=0, round=0, epoch=epoch):
                task.loss(model, batch, step=0).backward()
                optimizer.step()
                optimizer.zero_grad()
    assert task.evaluate(model) == {"f1": 1.0, "exact_match": 1.0} and model.training


def test_a_ticket_is_found_on_its_published_files(cli, tiny_bert, tmp_path):
    write(tmp_path / "all" / "SQuAD")
    settings = ["--sparsity", 0.1, "--round-length", "1it", "--max-length", 32, "--out", tmp_path / "run"]
    code, said = cli("find", "--model", tiny_bert, "--task", "squad", "--data", tmp_path / "all", *settings)
    assert code == 0, said
    metrics = json.loads((tmp_path / "run" / "round-01" / "metrics.json").read_text())
    assert metrics["metrics"].keys() == {"f1", "exact_match"} and metrics["value"] == metrics["metrics"]["f1"]


def test_the_hub_and_the_files_with_the_same_questions_are_the_same_data(spec, tmp_path, monkeypatch):
    found = passages()
    rows = {
        "context": [found.texts[question.passage] for question in found.questions],
        "question": [question.text for question in found.questions],
        "answers": [
            {"text": [answer.text for answer in q.answers], "answer_start": [answer.start for answer in q.answers]}
            for q in found.questions
        ],
    }

    def load_dataset(dataset, configuration):
        assert (dataset, configuration) == ("rajpurkar/squad", "plain_text")
        return {"train": rows, "validation": rows}

    from_files = make_task("squad", spec, options(write(tmp_path)))
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert read(None) == read(tmp_path)
    assert make_task("squad", spec, options()).data_id == from_files.data_id


def test_without_a_network_the_files_are_named(spec, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"train-v1\.1\.json and dev-v1\.1\.json"):
        make_task("squad", spec, options())


def no_dev(content, folder):
    (folder / "dev-v1.1.json").unlink()
    return r"there is no .*dev-v1\.1\.json"


def no_json(content, folder):
    (folder / "train-v1.1.json").write_text("{")
    return "not laid out as SQuAD v1.1 is"


def other_layout(content, folder):
    del content["data"][0]["paragraphs"][0]["context"]
    return r"not laid out as SQuAD v1.1 is \(KeyError: 'context'\)"


def no_answer(content, folder):
    content["data"][0]["paragraphs"][0]["qas"][0]["answers"] = []
    return "SQuAD v2.0 has such, and v1.1 is needed"


def no_question(content, folder):
    content["data"] = []
    return "has no questions"


def misplaced(content, folder):
    content["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"] += 1
    return "1 of 3 training questions have an answer that is not in its passage at answer_start"


@pytest.mark.parametrize("damage", [no_dev, no_json, other_layout, no_answer, no_question, misplaced])
def test_files_that_do_not_fit_say_what_is_wrong(spec, tmp_path, damage):
    write(tmp_path)
    whole = as_published(passages())
    content = copy.deepcopy(whole)
    message = damage(content, tmp_path)
    if content != whole:
        (tmp_path / "train-v1.1.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        make_task("squad", spec, options(tmp_path))


def test_of_many_questions_a_misplaced_answer_is_left_out(spec):
    found = passages()
    found.questions[:] = [found.questions[0]] * 150
    found.questions[7] = Question("what is it", 0, (Answer(3, "good"),))
    windows = windows_of(spec, found, 64)
    assert len(windows.question) == 149 and 7 not in windows.question.tolist()
    assert len(windows_of(spec, found, 64, train=False).question) == 150
