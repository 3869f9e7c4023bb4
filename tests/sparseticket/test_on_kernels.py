"""Training on kernels gives what training without gives; on a CPU through their references."""

import pytest
import torch

import sparseticket.kernels as kernels
from sparseticket import on_kernels, training
from sparseticket.errors import RunFailure
from sparseticket.kernels import MaskedAdamW
from sparseticket.kernels.bsr_module import BsrLinear
from sparseticket.kernels.dispatch import Case, Choice, Measured, Table
from sparseticket.models import resolve
from sparseticket.settings import Training
from sparseticket.tasks import TaskOptions, make_task
from sparseticket.training import Round, make_accelerator, train

SETTINGS = Training(round_length="8it", batch_size=8, lr=1e-3, clip=0.5)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "reviews.csv"
    words = ["good", "bad", "fine", "dull"]
    path.write_text("text,label\n" + "".join(f"the plot is {words[i % 4]} {i},{'yn'[i % 2]}\n" for i in range(40)))
    return path


@pytest.fixture
def masks(tiny_bert, data):
    network, _ = build(tiny_bert, data)
    draw = torch.Generator().manual_seed(0)
    made = {}
    for name in network.prunable:
        n, k = network.backbone()[name].shape
        alive = torch.rand(-(-n // 16), -(-k // 16), generator=draw) < 0.5
        made[name] = alive.repeat_interleave(16, 0)[:n].repeat_interleave(16, 1)[:, :k]
    return made


def build(tiny_bert, data):
    spec = resolve(str(tiny_bert))
    task = make_task("text", spec, TaskOptions(data, batch_size=8, max_length=16))
    return spec.build(task.head, seed=0), task


def trained(tiny_bert, data, masks):
    network, task = build(tiny_bert, data)
    train(network, task, masks, SETTINGS, Round(0, 0), accelerator=make_accelerator())
    return network


def a_table(network, masks, *, low):
    table = Table("some GPU")
    weights = sum(parameter.numel() for parameter in network.module.parameters())
    case = Case("optimizer", 1, 1, "unstructured", "float32", "none")
    table.add(Measured(case, weights, 1.0, Choice("masked_adamw", (1,)), low, low, low))
    return table


def train_on_kernels(monkeypatch):
    """Training as on a GPU of which every kernel was measured to be faster; gives the names of layers that take one."""
    monkeypatch.setattr(training, "can_use_kernels", lambda device: True)
    use_kernels, used = kernels.use_kernels, []

    def everywhere(model, named, **_):
        used.extend(use_kernels(model, named, everywhere=True))
        assert any(isinstance(module, BsrLinear) for module in model.modules())

    monkeypatch.setattr(kernels, "use_kernels", everywhere, raising=False)
    return used


def test_block_kernels_and_the_masked_optimizer_train_to_the_same_weights(tiny_bert, data, masks, monkeypatch):
    plain = trained(tiny_bert, data, masks)
    used = train_on_kernels(monkeypatch)
    chosen = on_kernels.masked_optimizer
    made = []
    monkeypatch.setattr(
        training,
        "masked_optimizer",
        lambda network, *rest: made.append(chosen(network, *rest, a_table(network, masks, low=1.5))) or made[-1],
    )
    network = trained(tiny_bert, data, masks)
    assert isinstance(made[0], MaskedAdamW) and len(used) == len(masks)
    assert not any(isinstance(module, BsrLinear) for module in network.module.modules()), "restored afterwards"
    for name, weight in network.backbone().items():
        torch.testing.assert_close(weight, plain.backbone()[name], rtol=1e-3, atol=1e-5)
    for name, mask in masks.items():
        assert not network.backbone()[name][~mask].any()


def test_a_training_that_fails_leaves_no_kernel_in_the_network(tiny_bert, data, masks, monkeypatch):
    used = train_on_kernels(monkeypatch)
    network, task = build(tiny_bert, data)
    with pytest.raises(RunFailure, match="the loss became nan at step"):
        too_fast = Training(round_length="8it", batch_size=8, lr=1e30)
        train(network, task, masks, too_fast, Round(0, 0), accelerator=make_accelerator())
    assert used and not any(isinstance(module, BsrLinear) for module in network.module.modules())


def test_an_optimizer_that_was_not_measured_to_be_faster_is_not_used(tiny_bert, data, masks):
    network, _ = build(tiny_bert, data)
    assert on_kernels.masked_optimizer(network, masks, SETTINGS) is None
    assert on_kernels.masked_optimizer(network, masks, SETTINGS, a_table(network, masks, low=1.0)) is None
    assert isinstance(
        on_kernels.masked_optimizer(network, masks, SETTINGS, a_table(network, masks, low=1.1)), MaskedAdamW
    )


def test_off_uses_no_kernel_even_where_there_is_a_gpu(tiny_bert, data, masks, monkeypatch):
    monkeypatch.setattr(training, "can_use_kernels", lambda device: True)
    monkeypatch.setattr(kernels, "use_kernels", lambda *_, **__: pytest.fail("asked for kernels"), raising=False)
    network, task = build(tiny_bert, data)
    off = Training(round_length="2it", batch_size=8, kernels="off")
    train(network, task, masks, off, Round(0, 0), accelerator=make_accelerator())
