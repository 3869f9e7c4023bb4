import json

import pytest

from sparseticket.bench.inputs import Needs, make_feeds, needs_of_onnx
from sparseticket.errors import UserError

TOKENS = {"input_ids": "input_ids", "attention_mask": "attention_mask"}
INT64 = dict.fromkeys(TOKENS, "int64")


def test_tokens_lie_within_the_smallest_vocabulary_and_are_not_zeros():
    needs = {"a": Needs(TOKENS, INT64, vocabulary=30000), "b": Needs(TOKENS, INT64, vocabulary=50)}
    ids = make_feeds(needs, batch=4, length=64).arrays["input_ids"]
    assert ids.shape == (4, 64)
    assert ids.min() >= 1
    assert 40 <= ids.max() < 50


def test_images_are_random_and_of_the_models_size():
    needs = {"a": Needs({"pixel_values": "x"}, {"pixel_values": "float32"}, image=(3, 32, 32))}
    feeds = make_feeds(needs, batch=2, length=None)
    array = feeds.for_model(needs["a"])["x"]
    assert array.shape == (2, 3, 32, 32)
    assert array.std() == pytest.approx(1, abs=0.1)


def test_each_gets_only_what_it_takes_in_its_own_types():
    one = Needs({"input_ids": "input_ids"}, {"input_ids": "int32"}, vocabulary=50)
    feeds = make_feeds({"a": one}, batch=1, length=8).for_model(one)
    assert {name: str(array.dtype) for name, array in feeds.items()} == {"input_ids": "int32"}


def test_the_length_is_128_or_what_the_models_can_take():
    def length(**limits):
        needs = {"a": Needs(TOKENS, INT64, vocabulary=50), "b": Needs(TOKENS, INT64, vocabulary=50, **limits)}
        return make_feeds(needs, batch=1, length=None).arrays["input_ids"].shape[1]

    assert length() == length(max_length=512) == 128
    assert length(max_length=40) == 40
    assert length(length=16) == 16


@pytest.mark.parametrize(
    ("limits", "words"),
    [({"max_length": 40}, "at most 40"), ({"length": 16}, "16 tokens only"), ({"batch": 8}, "--batch 8")],
)
def test_what_a_model_cannot_take_is_an_error_that_says_what_it_can(limits, words):
    with pytest.raises(UserError, match=words):
        make_feeds({"a": Needs(TOKENS, INT64, vocabulary=50, **limits)}, batch=1, length=41)


def test_images_and_tokens_are_not_compared():
    image = Needs({"pixel_values": "x"}, {"pixel_values": "float32"}, image=(3, 32, 32))
    with pytest.raises(UserError, match=r"tokens.*3x32x32 images"):
        make_feeds({"a": Needs(TOKENS, INT64, vocabulary=50), "b": image}, batch=1, length=None)


def test_an_exported_file_says_what_it_takes(bert_onnx, tmp_path):
    needs = needs_of_onnx(bert_onnx / "model.onnx")
    assert (needs.vocabulary, needs.max_length, needs.batch, needs.length) == (50, 40, None, None)
    alone = tmp_path / "alone.onnx"
    alone.write_bytes((bert_onnx / "model.onnx").read_bytes())
    assert needs_of_onnx(alone).vocabulary == 50


def test_positions_that_roberta_reserves_are_not_offered_to_an_onnx_file(bert_onnx, tmp_path):
    (tmp_path / "model.onnx").write_bytes((bert_onnx / "model.onnx").read_bytes())
    config = {"model_type": "roberta", "vocab_size": 50, "max_position_embeddings": 40, "pad_token_id": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert needs_of_onnx(tmp_path / "model.onnx").max_length == 38


def test_a_fixed_batch_and_an_own_input_name_are_read_from_the_file(make_image_file):
    needs = needs_of_onnx(make_image_file("fixed", 1, batch=8))
    assert (needs.names, needs.batch, needs.image) == ({"pixel_values": "pixels"}, 8, (1, 8, 8))
