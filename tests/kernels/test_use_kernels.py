"""What changes and what does not when a model runs on kernels; here on their references (`-m gpu`: on the device)."""

import copy

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from sparseticket.kernels import restore, use_kernels
from sparseticket.kernels.bsr import DENSE_PASS
from sparseticket.kernels.dispatch import Case, Choice, Measured, Table

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def bert_and_masks(device="cpu", block=32, density=0.5, layers=2):
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=2, vocab_size=50,
        max_position_embeddings=32, hidden_dropout_prob=0, attention_probs_dropout_prob=0,
        attn_implementation="eager",
    )  # fmt: skip
    model = BertForSequenceClassification(config).to(device).eval()
    masks = {}
    for name, weight in model.named_parameters():
        if ".encoder." in name and weight.ndim == 2:
            alive = torch.rand(weight.shape[0] // block, weight.shape[1] // block) < density
            masks[name] = alive.repeat_interleave(block, 0).repeat_interleave(block, 1)
            weight.data.masked_fill_(~masks[name].to(device), 0.0)
        if name.endswith("bias"):
            nn.init.normal_(weight)
    return model, masks


def batch(device="cpu", rows=3, length=10):
    draw = torch.Generator().manual_seed(rows * length)
    ids = torch.randint(50, (rows, length), generator=draw).to(device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.zeros_like(ids[:, 0])}


def trained(model, steps=5):
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps):
        model(**batch(model.device, length=8 + step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("device", DEVICES)
def test_training_gives_what_dense_training_with_masked_gradients_gives(device):
    model, masks = bert_and_masks(device)
    dense = copy.deepcopy(model)
    for name, weight in dense.named_parameters():
        if name in masks:
            mask = masks[name].to(device)
            weight.register_hook(lambda grad, mask=mask: grad * mask)
    placed = use_kernels(model, masks, everywhere=True)
    assert {p.names[0] for p in placed} == masks.keys() and not any(p.plan.is_dense for p in placed)
    ours, theirs = trained(model), trained(dense)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-5)
    for name, mask in masks.items():
        assert not ours[name][~mask.to(device)].any(), "a dead weight moved"


def test_a_model_in_training_looks_and_is_saved_as_before():
    model, masks = bert_and_masks()
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    keys = list(model.state_dict())
    use_kernels(model, masks, everywhere=True)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert list(model.state_dict()) == keys
    assert all(isinstance(m, nn.Linear) for n, m in model.named_modules() if f"{n}.weight" in masks)


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_restore_gives_back_every_class_and_buffer(mode):
    model, masks = bert_and_masks()
    before = {
        name: (type(module), set(module.__dict__), set(module._buffers)) for name, module in model.named_modules()
    }
    use_kernels(model, masks, mode, everywhere=True)
    assert {type(m) for m in model.modules()} != {kind for kind, _, _ in before.values()}
    restore(model)
    after = {name: (type(module), set(module.__dict__), set(module._buffers)) for name, module in model.named_modules()}
    assert after == before


@pytest.mark.parametrize("free_dense", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_inference_gives_what_the_dense_model_gives(device, free_dense):
    model, masks = bert_and_masks(device)
    inputs = [batch(device), batch(device, rows=1, length=4)]
    with torch.no_grad():
        expected = [model(**one).logits for one in inputs]
        placed = use_kernels(model, masks, "infer", everywhere=True, free_dense=free_dense)
        for one, logits in zip(inputs, expected, strict=True):
            torch.testing.assert_close(model(**one).logits, logits, rtol=1e-4, atol=1e-5)
    assert [len(p.names) for p in placed] == [3, 1, 1, 1] * 2, "query, key and value are fused"


@pytest.mark.parametrize("rows,together", [(40, 1), (128, 3)])
def test_layers_over_one_input_whose_blocks_do_not_line_up_keep_their_own_kernels(rows, together):
    torch.manual_seed(0)
    attention = nn.ModuleDict({name: nn.Linear(48, rows) for name in ("query", "key", "value")}).eval()
    alive = torch.tensor([[True, False, True], [False, True, True], [True, True, False]]).repeat(3, 1)
    mask = alive.repeat_interleave(16, 0).repeat_interleave(16, 1)[:rows]
    for layer in attention.values():
        layer.weight.data.masked_fill_(~mask, 0)
    x = torch.randn(100, 48)
    expected = [layer(x) for layer in attention.values()]
    placed = use_kernels(attention, {f"{name}.weight": mask for name in attention}, "infer", everywhere=True)
    assert [len(one.names) for one in placed] == [together] * (3 // together)
    assert {one.pattern for one in placed} == {"block:16x16"}
    assert [name for one in placed for name in one.names] == [f"{name}.weight" for name in attention]
    for layer, y in zip(attention.values(), expected, strict=True):
        torch.testing.assert_close(layer(x), y)


def test_the_activation_moves_into_the_epilogue_and_back():
    model, masks = bert_and_masks()
    layer = model.bert.encoder.layer[0].intermediate
    function = layer.intermediate_act_fn
    use_kernels(model, masks, "infer", everywhere=True)
    assert isinstance(layer.intermediate_act_fn, nn.Identity)
    restore(model)
    assert layer.intermediate_act_fn is function


def test_a_dropped_weight_is_in_the_state_dict_and_comes_back_bit_equal():
    model, masks = bert_and_masks()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    use_kernels(model, masks, "infer", everywhere=True, free_dense=True)
    assert not masks.keys() & dict(model.named_parameters()).keys()
    for _ in range(2):
        state = model.state_dict()
        assert list(state) == list(before)
        assert all(torch.equal(state[name], value) for name, value in before.items())
        restore(model)
    assert masks.keys() <= dict(model.named_parameters()).keys()


def test_a_weight_changed_under_packed_blocks_is_an_error():
    model, masks = bert_and_masks()
    use_kernels(model, masks, "infer", everywhere=True)
    model(**batch())
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight.mul_(2)
    with pytest.raises(RuntimeError, match="restore"):
        model(**batch())


def test_a_new_weight_in_the_place_of_a_dropped_one_is_an_error():
    model, masks = bert_and_masks()
    use_kernels(model, masks, "infer", everywhere=True, free_dense=True)
    dense = model.bert.encoder.layer[1].output.dense
    dense.weight = torch.nn.Parameter(torch.zeros(dense.out_features, dense.in_features))
    with pytest.raises(RuntimeError, match="restore"):
        model(**batch())


def test_loading_into_packed_layers_is_an_error():
    model, masks = bert_and_masks()
    state = model.state_dict()
    use_kernels(model, masks, "infer", everywhere=True)
    with pytest.raises(RuntimeError, match="restore"):
        model.load_state_dict(state)


def test_copies_of_a_packed_model_run():
    model, masks = bert_and_masks()
    use_kernels(model, masks, "infer", everywhere=True)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(**batch()).logits, model(**batch()).logits)


def test_query_key_and_value_of_different_inputs_are_right():
    attention = nn.Module()
    for name in ("query", "key", "value"):
        setattr(attention, name, nn.Linear(32, 32))
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[:16, 16:] = True
    masks = {f"{name}.weight": mask for name in ("query", "key", "value")}
    for name in masks:
        attention.get_parameter(name).data.masked_fill_(~mask, 0)
    plain = copy.deepcopy(attention)
    attention.eval()
    use_kernels(attention, masks, "infer", everywhere=True)
    a, b = torch.randn(2, 5, 32)
    for inputs in ({"query": a, "key": b, "value": b}, {"value": a, "key": a, "query": a}, {"key": b}, {"query": a}):
        for name, x in inputs.items():
            torch.testing.assert_close(getattr(attention, name)(x), getattr(plain, name)(x))


def test_what_fits_no_kernel_stays_dense():
    model, masks = bert_and_masks()
    name = next(iter(masks))
    masks = {name: masks[name] & (torch.rand(masks[name].shape) < 0.5)}
    model.get_parameter(name).data.masked_fill_(~masks[name], 0)
    (placed,) = use_kernels(model, masks, everywhere=True)
    assert placed.pattern == "unstructured" and placed.plan.is_dense
    assert type(model.get_submodule(name.removesuffix(".weight"))) is nn.Linear


def test_without_a_gpu_nothing_changes_and_it_is_said_once(caplog):
    model, masks = bert_and_masks()
    import sparseticket.kernels.apply as apply

    apply._said.clear()
    for _ in range(2):
        placed = use_kernels(model, masks)
    assert all(p.plan.is_dense for p in placed)
    assert all(type(m) is nn.Linear for n, m in model.named_modules() if f"{n}.weight" in masks)
    assert [record.message for record in caplog.records] == ["no GPU: every layer runs dense, on its reference"]


@pytest.mark.parametrize(
    "spoil,message",
    [
        (lambda model, masks: masks.update(absent=torch.ones(2, 2).bool()), "no parameter 'absent'"),
        (lambda model, masks: masks.update({n: m[:1] for n, m in masks.items()}), "bool of its weight's shape"),
        (lambda model, masks: [model.get_parameter(n).data.fill_(1) for n in masks], r"not \+0.0"),
        (lambda model, masks: use_kernels(model, masks, everywhere=True), "restore"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_changes(spoil, message):
    model, masks = bert_and_masks()
    spoil(model, masks)
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        use_kernels(model, masks, everywhere=True)
    assert [type(module) for module in model.modules()] == kinds


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_compiled_model_gives_the_same_at_changing_lengths(device, mode):
    model, masks = bert_and_masks(device, layers=1)
    expected = [model(**batch(device, length=length)).logits for length in (8, 9, 12)]
    use_kernels(model, masks, mode, everywhere=True)
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend="aot_eager")  # inductor: the next test
    for logits, length in zip(expected, (8, 9, 12), strict=True):
        torch.testing.assert_close(compiled(**batch(device, length=length)).logits, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_inductor_compiles_a_step_and_a_packed_forward(device):
    torch.manual_seed(0)
    layer, x = nn.Sequential(nn.Linear(32, 48), nn.ReLU()).to(device).eval(), torch.randn(5, 32, device=device)
    mask = torch.zeros(48, 32, dtype=torch.bool)
    mask[16:32, :16] = True
    layer[0].weight.data.masked_fill_(~mask.to(device), 0)
    expected = layer(x)
    (dense_gradient,) = torch.autograd.grad(expected.sum(), layer[0].weight)
    use_kernels(layer, {"0.weight": mask}, everywhere=True)
    compiled = torch.compile(layer)(x)
    torch.testing.assert_close(compiled, expected)
    compiled.sum().backward()
    torch.testing.assert_close(layer[0].weight.grad, dense_gradient * mask.to(device))
    restore(layer)
    use_kernels(layer, {"0.weight": mask}, "infer", everywhere=True)
    torch.testing.assert_close(torch.compile(layer)(x), expected)


def test_gradient_checkpointing_sees_a_plain_linear():
    model, masks = bert_and_masks()
    use_kernels(model, masks, everywhere=True)
    model(**batch()).loss.backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model.train()
    model(**batch()).loss.backward()
    for name, parameter in model.named_parameters():
        if name in plain:
            torch.testing.assert_close(parameter.grad, plain[name])


def test_packed_layers_refuse_to_train():
    model, masks = bert_and_masks()
    use_kernels(model, masks, "infer", everywhere=True)
    model.train()
    with pytest.raises(RuntimeError, match="eval"):
        model(**batch())


def test_each_pass_runs_as_the_table_says_for_its_number_of_rows(monkeypatch):
    layer = nn.Linear(32, 32)
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[16:, :16] = True
    layer.weight.data.masked_fill_(~mask, 0)
    table, tiles = Table("some GPU"), (16, 16, 16, 4, 2)
    for which, low in (("forward", 1.2), ("dgrad", 1.0), ("wgrad", 1.3)):
        for m in (64, 1024):
            case = Case(which, 32, 32, "block:16x16", "float32", "bias" if which == "forward" else "none")
            table.add(Measured(case, m, 0.25, Choice("bsr_linear", tiles), low, low, low))
    model = nn.Sequential(layer)
    use_kernels(model, {"0.weight": mask}, table=table)
    seen = []
    import sparseticket.kernels.bsr_module as module

    monkeypatch.setattr(module, "bsr_linear", lambda *a, tiles: seen.append(tiles))
    model(torch.zeros(100, 32))
    model(torch.zeros(5, 32))
    assert seen == [(list(tiles), DENSE_PASS, list(tiles)), (DENSE_PASS,) * 3], "five rows were not measured: dense"
    with torch.no_grad():
        assert model(torch.zeros(5, 32)).shape == (5, 32) and len(seen) == 2


@pytest.mark.parametrize("launched", ["eager", "compiled", "graph"])
def test_the_table_is_asked_for_the_way_in_which_the_model_will_be_launched(launched):
    layer = nn.Linear(32, 32)
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[16:, :16] = True
    layer.weight.data.masked_fill_(~mask, 0)
    table = Table("some GPU")
    case = Case("infer", 32, 32, "block:16x16", "float32", "bias", "graph")
    table.add(Measured(case, 64, 0.25, Choice("bsr_packed"), 1.2, 1.2, 1.2))
    (placed,) = use_kernels(nn.Sequential(layer).eval(), {"0.weight": mask}, "infer", table=table, launched=launched)
    assert placed.plan.is_dense == (launched != "graph")


def test_another_way_to_launch_is_refused():
    with pytest.raises(ValueError, match="launched is one of eager, compiled, graph, not 'graphs'"):
        use_kernels(nn.Sequential(nn.Linear(32, 32)), {}, launched="graphs")


def test_dead_blocks_get_no_gradient_at_rows_that_run_dense_either():
    layer = nn.Linear(32, 32)
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[16:, :16] = True
    layer.weight.data.masked_fill_(~mask, 0)
    table = Table("some GPU")
    for which in ("forward", "dgrad", "wgrad"):
        case = Case(which, 32, 32, "block:16x16", "float32", "bias" if which == "forward" else "none")
        table.add(Measured(case, 64, 0.25, Choice("bsr_linear"), 1.2, 1.2, 1.2))
    model = nn.Sequential(layer)
    use_kernels(model, {"0.weight": mask}, table=table)
    for rows in (64, 5):
        layer.weight.grad = None
        model(torch.randn(rows, 32)).sum().backward()
        assert not layer.weight.grad[~mask].any() and layer.weight.grad[mask].all(), f"{rows} rows"


def test_a_layer_that_no_table_speaks_of_is_measured_when_asked():
    layer = nn.Linear(32, 32)
    mask = torch.eye(2, dtype=torch.bool).repeat_interleave(16, 0).repeat_interleave(16, 1)
    layer.weight.data.masked_fill_(~mask, 0)
    table = Table("this CPU")
    use_kernels(nn.Sequential(layer), {"0.weight": mask}, table=table, measure_rows=[64])
    assert {(cell.case.which, cell.m, cell.density) for cell in table.cells} == {
        ("forward", 64, 0.5), ("dgrad", 64, 0.5), ("wgrad", 64, 0.5),
    }  # fmt: skip
    assert all(0 < cell.low <= cell.ratio <= cell.high for cell in table.cells)


@pytest.mark.parametrize("free_dense", [False, True])
def test_unstructured_layers_run_from_a_bitmap_with_few_rows_and_dense_with_more(free_dense):
    torch.manual_seed(0)
    layer = nn.Linear(70, 50).eval()
    mask = torch.rand(50, 70) < 0.3
    layer.weight.data.masked_fill_(~mask, 0)
    inputs = torch.randn(3, 70), torch.randn(100, 70)
    expected = [layer(x) for x in inputs]
    model = nn.Sequential(layer)
    (placed,) = use_kernels(model, {"0.weight": mask}, "infer", everywhere=True, free_dense=free_dense)
    assert placed.plan.steps[0][0] == 64 and placed.runs == "bitmap, dense"
    assert str(placed) == f"0.weight: unstructured, density {placed.density:.3f}: bitmap, dense"
    for x, y in zip(inputs, expected, strict=True):
        torch.testing.assert_close(model(x), y)
    restore(model)
    torch.testing.assert_close(model(inputs[1]), expected[1], rtol=0, atol=0)


def test_a_two_of_four_mask_runs_on_torchs_own_support():
    torch.manual_seed(0)
    layer = nn.Linear(64, 32).eval()
    mask = torch.tensor([True, False, False, True]).repeat(32, 16)
    layer.weight.data.masked_fill_(~mask, 0)
    x = torch.randn(3, 64)
    expected, model = layer(x), nn.Sequential(layer)
    (placed,) = use_kernels(model, {"0.weight": mask}, "infer", everywhere=True)
    assert placed.pattern == "2:4" and placed.runs == "semi_structured"
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("free_dense", [False, True])
def test_convolutions_run_packed_and_come_back(free_dense):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(32, 48, 3, padding=1, bias=False), nn.BatchNorm2d(48), nn.ReLU(), nn.Conv2d(48, 32, 1, stride=2),
        nn.Conv2d(32, 16, 5),
    ).eval()  # fmt: skip
    masks = {}
    for name, weight in model.named_parameters():
        if weight.ndim == 4:
            o, i, *taps = weight.shape
            alive = torch.rand(o // 16, i // 16, *taps) < 0.5
            masks[name] = alive.repeat_interleave(16, 0).repeat_interleave(16, 1)
            weight.data.masked_fill_(~masks[name], 0)
    x = torch.randn(2, 32, 15, 13)
    expected, state = model(x), {name: value.clone() for name, value in model.state_dict().items()}
    placed = use_kernels(model, masks, "infer", everywhere=True, free_dense=free_dense)
    assert [p.plan.is_dense for p in placed] == [False, False, True], "5x5 is no kernel's"
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    restore(model)
    assert {type(m) for m in model} == {nn.Conv2d, nn.BatchNorm2d, nn.ReLU} and torch.equal(model(x), expected)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_packed_layers_run_under_autocast_in_the_dtype_that_they_were_packed_in(dtype):
    model, masks = bert_and_masks()
    expected = model(**batch()).logits
    use_kernels(model, masks, "infer", everywhere=True, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(**batch()).logits
    torch.testing.assert_close(logits.float(), expected, rtol=0.05, atol=0.05)


def test_a_dtype_that_could_not_give_the_weight_back_is_refused_with_free_dense():
    model, masks = bert_and_masks()
    with pytest.raises(ValueError, match="free_dense"):
        use_kernels(model, masks, "infer", everywhere=True, free_dense=True, dtype=torch.bfloat16)


def test_tied_weights_are_not_dropped():
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)).eval()
    model[1].weight = model[0].weight
    mask = torch.eye(2, dtype=torch.bool).repeat_interleave(16, 0).repeat_interleave(16, 1)
    model[0].weight.data.masked_fill_(~mask, 0)
    with pytest.raises(ValueError, match="tied"):
        use_kernels(model, {"0.weight": mask}, "infer", everywhere=True, free_dense=True)


def test_a_failure_half_way_leaves_the_model_as_it_was(monkeypatch):
    model, masks = bert_and_masks()
    import sparseticket.kernels.apply as apply

    wrap, calls = apply.BsrLinear.wrap, []

    def fail_at_the_third(self, *arguments):
        calls.append(self)
        if len(calls) == 3:
            raise MemoryError("no more")
        wrap(self, *arguments)

    monkeypatch.setattr(apply.BsrLinear, "wrap", fail_at_the_third)
    with pytest.raises(MemoryError):
        use_kernels(model, masks, everywhere=True)
    assert all(type(m) is nn.Linear for n, m in model.named_modules() if f"{n}.weight" in masks)


def test_an_input_that_was_changed_in_place_is_projected_anew():
    attention = nn.Module()
    for name in ("query", "key", "value"):
        setattr(attention, name, nn.Linear(32, 32))
    mask = torch.eye(2, dtype=torch.bool).repeat_interleave(16, 0).repeat_interleave(16, 1)
    masks = {f"{name}.weight": mask for name in ("query", "key", "value")}
    for name in masks:
        attention.get_parameter(name).data.masked_fill_(~mask, 0)
    plain = copy.deepcopy(attention)
    attention.eval()
    use_kernels(attention, masks, "infer", everywhere=True)
    x = torch.randn(3, 32)
    attention.query(x)
    x.add_(1)
    torch.testing.assert_close(attention.key(x), plain.key(x))


def test_a_mask_of_what_no_kernel_runs_is_placed_dense():
    model = nn.Sequential(nn.Embedding(16, 32))
    mask = torch.ones(16, 32, dtype=torch.bool)
    (placed,) = use_kernels(model, {"0.weight": mask}, everywhere=True)
    assert placed.plan.is_dense


def test_only_the_packed_tensors_stay_when_the_model_is_cast():
    model, masks = bert_and_masks()
    use_kernels(model, masks, "infer", everywhere=True, free_dense=True)
    model.half()
    floating = {
        tensor.dtype
        for module in model.modules()
        for value in vars(module).values()
        if hasattr(value, "tensors")
        for tensor in value.tensors().values()
        if tensor.is_floating_point() and tensor.numel()
    }
    assert floating <= {torch.float16}
    assert model.half()(**{k: v for k, v in batch().items() if k != "labels"}).logits.dtype == torch.float16


@pytest.mark.gpu
def test_layers_on_a_device_that_is_not_the_current_one_run():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    model, masks = bert_and_masks("cuda:1")
    expected = model(**batch("cuda:1")).logits
    use_kernels(model, masks, everywhere=True)
    torch.testing.assert_close(model(**batch("cuda:1")).logits, expected, rtol=1e-3, atol=1e-3)
