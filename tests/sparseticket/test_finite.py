"""A network that answers with NaN is never scored, whatever the task."""

import json

import pytest
import torch
from miniatures import write_camvid, write_class_folders, write_voc

from sparseticket.errors import RunFailure
from sparseticket.finite import finite_answers
from sparseticket.progress import Screen
from sparseticket.tasks import TaskOptions
from sparseticket.training import make_accelerator
from sparseticket.workbench import Workbench

WRITERS = {
    "image-folder": write_class_folders,
    "simclr": write_class_folders,
    "detection": write_voc,
    "segmentation": write_camvid,
}


def bench_of(model, task, data):
    options = TaskOptions(data, batch_size=4, max_length=16)
    return Workbench.build(
        model, task, options, seed=0, weights=None, accelerator=make_accelerator(), screen=Screen(quiet=True)
    )


@pytest.mark.parametrize("task", WRITERS)
def test_a_vision_network_that_answers_with_nan_is_not_scored(task, tmp_path):
    WRITERS[task](tmp_path)
    work = bench_of("resnet20-cifar", task, tmp_path)
    work.evaluate()
    work.network.backbone()["bn1.running_var"].fill_(-1)
    with pytest.raises(RunFailure, match="infinite or NaN values, which have no score"):
        work.evaluate()


@pytest.mark.parametrize("task", ["text", "mlm"])
def test_a_text_network_that_answers_with_nan_is_not_scored(task, tmp_path, tiny_bert):
    if task == "text":
        (tmp_path / "data.csv").write_text(
            "text,label\n" + "".join(f"film {n},{'yes' if n % 2 else 'no'}\n" for n in range(40))
        )
    else:
        for split in ("train", "test"):
            (tmp_path / f"{split}.txt").write_text("the film is good and the plot is fine\n" * 40)
    work = bench_of(str(tiny_bert), task, tmp_path / "data.csv" if task == "text" else tmp_path)
    work.evaluate()
    with torch.no_grad():
        work.network.module.get_input_embeddings().weight.fill_(float("inf"))
    with pytest.raises(RunFailure, match="infinite or NaN values, which have no score"):
        work.evaluate()


@pytest.mark.parametrize(
    "wrap", [lambda t: t, lambda t: {"logits": t}, lambda t: (torch.ones(1), [t]), lambda t: {"a": None, "b": (t,)}]
)
def test_answers_of_every_form_are_watched_and_only_inside_the_block(wrap):
    network = torch.nn.Identity()
    with finite_answers(network):
        network(wrap(torch.zeros(2)))
    with pytest.raises(RunFailure, match="infinite or NaN"), finite_answers(network):
        network(wrap(torch.tensor([0.0, float("inf")])))
        raise ValueError("what a metric says of NaN")
    network(wrap(torch.tensor([float("nan")])))
    with pytest.raises(KeyboardInterrupt), finite_answers(network):
        network(wrap(torch.tensor([float("nan")])))
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="another"), finite_answers(network):
        raise ValueError("another reason")


def test_a_training_that_diverges_in_its_last_step_leaves_no_verdict(cli, tmp_path):
    write_class_folders(tmp_path / "data")
    arguments = ("--data", tmp_path / "data", "--batch-size", 4, "--round-length", "1it")
    code, said = cli(
        "find", "--model", "resnet20-cifar", "--task", "image-folder", "--sparsity", 0.2, *arguments, "--out",
        tmp_path / "run",
    )  # fmt: skip
    assert code == 0, said
    ticket = tmp_path / "run" / json.loads((tmp_path / "run" / "summary.json").read_text())["ticket"]
    code, said = cli("transfer", ticket, *arguments, "--lr", "1e30", "--out", tmp_path / "transfer")
    assert code == 1 and "have no score" in said and "winning" not in said
    assert not list((tmp_path / "transfer").rglob("metrics.json"))
