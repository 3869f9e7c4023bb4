"""Encoders that are BERT-like, but not BERT: what their heads and unread layers mean for an export."""

from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file

from sparseticket.errors import RunFailure, UserError
from sparseticket.export import graph, loaded_model, verify
from sparseticket.export.exporter import export_model
from sparseticket.export.to_safetensors import write_safetensors

SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "num_labels": 3,
}


def save(folder, kind, auto=transformers.AutoModelForSequenceClassification, **config):
    torch.manual_seed(0)
    auto.from_config(transformers.AutoConfig.for_model(kind, **SIZES, **config)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["deberta", "deberta-v2"])
def test_a_pooler_that_belongs_to_the_head_answers_as_in_plain_transformers(kind, tmp_path):
    save(tmp_path, kind, relative_attention=True, pos_att_type=["c2p", "p2c"], type_vocab_size=0)
    loaded = loaded_model.load(tmp_path)
    inputs = loaded.example(2, 7, padded=True)
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, attn_implementation="eager")
    with torch.inference_mode():
        torch.testing.assert_close(loaded.answer(inputs)["logits"], plain.eval()(**inputs).logits)


def test_a_plain_encoder_is_exported_without_a_pooler_where_its_class_can_do_without(tmp_path):
    for kind, outputs in (("bert", ("last_hidden_state",)), ("layoutlm", ("last_hidden_state", "pooler_output"))):
        save(tmp_path / kind, kind, auto=transformers.AutoModel)
        assert loaded_model.load(tmp_path / kind).outputs == outputs


def test_of_a_model_that_takes_thousands_of_tokens_a_thousand_are_asked(tmp_path):
    save(tmp_path, "bert")
    loaded = loaded_model.load(tmp_path)
    assert max(length for _, length, _ in verify.shapes(loaded)) == 40
    assert max(length for _, length, _ in verify.shapes(replace(loaded, max_length=8192))) == verify.LONGEST_ASKED


def test_what_a_configuration_asks_for_beside_the_answer_is_no_output(tmp_path):
    save(tmp_path, "bert", output_hidden_states=True)
    assert loaded_model.load(tmp_path).outputs == ("logits",)


def test_an_encoder_that_takes_sequences_of_one_length_is_refused_as_such(tmp_path):
    save(tmp_path, "nystromformer", segment_means_seq_len=32, num_landmarks=8)
    with pytest.raises(UserError, match="only encoders that take sequences of any length are exported"):
        loaded_model.load(tmp_path)


def test_a_layer_that_no_answer_goes_through_is_no_part_of_the_file(tmp_path):
    save(tmp_path / "esm", "esm", pad_token_id=1, mask_token_id=4, position_embedding_type="rotary")
    report = export_model(tmp_path / "esm", tmp_path / "out")
    names = [layer["name"] for layer in report["layers"]]
    assert "esm.contact_head.regression" not in names
    assert "esm.encoder.layer.0.attention.self.query" in names and "classifier.out_proj" in names


class Undecided(torch.nn.Module):
    """Which way it goes is known only once it runs."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_a_model_that_torch_cannot_trace_is_one_error_that_says_why_and_what_can_be_had(awkward, capsys):
    with pytest.raises(RunFailure, match=r"(?s)Undecided to ONNX: Could not .* --format hf or safetensors") as failure:
        graph.trace(replace(awkward, module=Undecided().eval()), 20)
    assert "\033" not in str(failure.value) and "Next steps" not in str(failure.value)
    assert capsys.readouterr().err == ""


def test_weights_that_are_views_of_one_tensor_are_written_like_others(tmp_path):
    """As transformers loads NomicBERT, whose file holds query, key and value in one."""
    loaded = loaded_model.load(save(tmp_path, "bert"))
    attention = loaded.module.bert.encoder.layer[0].attention.self
    fused = torch.randn(48, 16)
    for place, layer in enumerate((attention.query, attention.key, attention.value)):
        layer.weight.data = fused[16 * place : 16 * (place + 1)]
    write_safetensors(loaded, tmp_path, "fp32", {})
    written = load_file(tmp_path / "model.safetensors")
    assert torch.equal(written["bert.encoder.layer.0.attention.self.key.weight"], fused[16:32])
