"""The masked optimizers as training uses them, through their references on the CPU."""

import copy
import io

import pytest
import torch

from sparseticket.kernels import LiveAdamW, MaskedAdamW, MaskedSGD, live_adamw, masked_adamw, masked_clip_grad_norm_
from sparseticket.kernels.adamw_live import prefix_counts
from sparseticket.kernels.live_words import mask_hash, mask_words
from sparseticket.kernels.masked_optimizer import split_lr

MAKE = {
    "adamw": lambda params, masks: MaskedAdamW(params, masks, lr=0.01),
    "live": lambda params, masks: LiveAdamW(params, masks, lr=0.01),
    "sgd": lambda params, masks: MaskedSGD(params, masks, lr=0.05, momentum=0.9),
}
TORCH = {
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01),
    "live": lambda params: torch.optim.AdamW(params, lr=0.01),
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
}
every = pytest.mark.parametrize("how", MAKE)


def network(seed=0):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(12, 20), torch.nn.Tanh(), torch.nn.Linear(20, 3))
    masks = {layer.weight: torch.rand(layer.weight.shape) < 0.3 for layer in (model[0], model[2])}
    return model, masks


def loss_of(model, step):
    draw = torch.Generator().manual_seed(step)
    x = torch.randn(16, 12, generator=draw)
    return (model(x) - x[:, :3].sin()).square().mean()


def train(model, optimizer, steps, start=0):
    for step in range(start, start + steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()


def dead_are_zero(model, masks):
    return all(not weight[~mask].any() and not torch.signbit(weight[~mask]).any() for weight, mask in masks.items())


@every
def test_a_hundred_steps_equal_masking_by_hook_and_clipping_and_torchs_optimizer(how):
    model, masks = network()
    twin, twin_masks = network()
    optimizer = MAKE[how](model.parameters(), masks)
    for weight, mask in twin_masks.items():
        weight.data.mul_(mask)
        weight.register_hook(lambda gradient, mask=mask: gradient * mask)
    other = TORCH[how](twin.parameters())
    for step in range(100):
        for net, opt in ((model, optimizer), (twin, other)):
            opt.zero_grad()
            loss_of(net, step).backward()
        norm = optimizer.clip_grad_norm(0.3)
        assert torch.allclose(norm, torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.3), rtol=1e-4)
        optimizer.step()
        other.step()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert (ours - theirs).abs().max() <= 1e-5
    assert dead_are_zero(model, masks)


def test_a_bf16_weight_is_its_fp32_master_rounded_and_states_are_of_live_weights_only():
    model, masks = network()
    model.to(torch.bfloat16)
    optimizer = LiveAdamW(model.parameters(), masks, lr=0.01)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    for weight, mask in masks.items():
        state = optimizer.state[weight]
        assert {state[key].shape for key in ("exp_avg", "exp_avg_sq", "master")} == {(int(mask.sum()),)}
        assert {state[key].dtype for key in ("exp_avg", "exp_avg_sq", "master")} == {torch.float32}
        assert torch.equal(weight[mask], state["master"].bfloat16())
    assert dead_are_zero(model, masks)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_state_continues_bit_for_bit(how, dtype):
    model, masks = network()
    model.to(dtype)
    optimizer = MAKE[how](model.parameters(), masks)

    def steps(model, optimizer, start):
        for step in range(start, start + 3):
            for place, parameter in enumerate(model.parameters()):
                draw = torch.Generator().manual_seed(10 * step + place)
                parameter.grad = torch.randn(parameter.shape, generator=draw).to(dtype)
            optimizer.step()

    steps(model, optimizer, 0)
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    steps(model, optimizer, 3)
    again, same = network()
    again.to(dtype)
    later = MAKE[how](again.parameters(), same)
    weights, state = torch.load(file, weights_only=True)
    again.load_state_dict(weights)
    later.load_state_dict(state)
    steps(again, later, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@every
def test_a_state_made_under_another_mask_is_refused(how):
    model, masks = network()
    optimizer = MAKE[how](model.parameters(), masks)
    train(model, optimizer, 1)
    state = optimizer.state_dict()
    assert state["param_groups"][0]["mask_sha256"] == [
        mask_hash(masks[model[0].weight]),
        "",
        mask_hash(masks[model[2].weight]),
        "",
    ]
    changed = dict(masks)
    changed[model[2].weight] = masks[model[2].weight].clone().logical_not_()
    with pytest.raises(ValueError, match=r"parameter 2 of group 0.*another mask"):
        MAKE[how](model.parameters(), changed).load_state_dict(state)
    with pytest.raises(ValueError, match="another mask"):
        optimizer.load_state_dict(TORCH[how](model.parameters()).state_dict())


@every
def test_masks_that_shrink_zero_parameters_and_states_and_keep_what_lives(how):
    model, masks = network()
    optimizer = MAKE[how](model.parameters(), masks)
    train(model, optimizer, 3)
    key = "momentum_buffer" if how == "sgd" else "exp_avg"
    weight, mask = next(iter(masks.items()))
    state = optimizer.state[weight][key]
    before = torch.zeros(weight.shape).masked_scatter_(mask, state) if how == "live" else state.clone()
    kept = weight.detach().clone()
    smaller = {weight: mask & (torch.rand(mask.shape) < 0.5) for weight, mask in masks.items()}
    optimizer.set_masks(smaller)
    now = optimizer.state[weight][key]
    assert torch.equal(now, before[smaller[weight]] if how == "live" else before * smaller[weight])
    assert torch.equal(weight[smaller[weight]], kept[smaller[weight]])
    train(model, optimizer, 3, start=3)
    assert dead_are_zero(model, smaller)


@every
def test_a_parameter_without_a_gradient_is_left_alone_and_has_no_state(how):
    model, masks = network()
    optimizer = MAKE[how](model.parameters(), masks)
    before = model[2].weight.detach().clone()
    loss_of(model, 0).backward()
    model[2].weight.grad = None
    optimizer.step()
    assert torch.equal(model[2].weight, before) and model[2].weight not in optimizer.state
    assert model[0].weight in optimizer.state


@every
def test_the_loss_scaler_of_torch_skips_what_overflowed_and_scales_the_rest(how):
    model, masks = network()
    plain, plain_masks = network()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = MAKE[how](model.parameters(), masks)
    for step in range(4):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, step) * (float("inf") if step == 0 else 1)).backward()
        if step == 2:
            scaler.unscale_(optimizer)
            optimizer.clip_grad_norm(1e6)
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 512
    train(plain, MAKE[how](plain.parameters(), plain_masks), 3, start=1)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


@every
def test_accelerate_and_a_schedule_of_learning_rates_drive_it(how):
    from accelerate import Accelerator

    model, masks = network()
    twin, twin_masks = network()
    raw = MAKE[how](model.parameters(), masks)
    accelerator = Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(model, raw)
    schedule = torch.optim.lr_scheduler.LambdaLR(raw, lambda step: 0.5**step)
    other = MAKE[how](twin.parameters(), twin_masks)
    base = other.param_groups[0]["lr"]
    for step in range(3):
        accelerator.backward(loss_of(prepared, step))
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        other.param_groups[0]["lr"] = base * 0.5**step
        train(twin, other, 1, start=step)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_channels_last_weights_and_gradients_laid_out_otherwise_are_right():
    torch.manual_seed(0)
    plain = torch.nn.Parameter(torch.randn(4, 3, 3, 3))
    last = torch.nn.Parameter(plain.detach().clone(memory_format=torch.channels_last))
    mask = torch.rand(plain.shape) < 0.4
    for make in MAKE.values():
        ours, theirs = make([last], {last: mask}), make([plain], {plain: mask})
        plain.grad = torch.randn_like(plain)
        last.grad = plain.grad.contiguous()
        ours.step()
        theirs.step()
        assert torch.equal(plain, last.contiguous())


def test_clipping_in_place_masks_gradients_by_bool_masks_or_their_words():
    model, masks = network()
    loss_of(model, 0).backward()
    exact = [p.grad * masks.get(p, torch.tensor(True)) for p in model.parameters()]
    norm = torch.linalg.vector_norm(torch.cat([gradient.flatten() for gradient in exact]))
    words = {weight: mask_words(mask, weight) for weight, mask in masks.items()}
    assert torch.allclose(masked_clip_grad_norm_(model.parameters(), masks, 1e9), norm)
    assert torch.allclose(masked_clip_grad_norm_(model.parameters(), words, 0.01), norm)
    for parameter, gradient in zip(model.parameters(), exact, strict=True):
        assert torch.allclose(parameter.grad, gradient * 0.01 / norm, atol=1e-7)


def test_clipping_takes_one_tensor_and_none_with_a_gradient():
    weight = torch.nn.Parameter(torch.ones(4))
    assert masked_clip_grad_norm_(weight, {}, 1.0) == 0
    weight.grad = torch.full((4,), 2.0)
    assert masked_clip_grad_norm_(weight, {}, 1.0) == 4
    assert torch.allclose(weight.grad, torch.full((4,), 0.5))


def test_a_learning_rate_on_another_device_than_the_weights_is_read_before_the_kernel():
    rate = torch.tensor(0.5)
    assert split_lr(rate, torch.device("cuda:0")) == (0.5, None) == split_lr(0.5, torch.device("cpu"))
    assert split_lr(rate, torch.device("cpu"))[1] is rate


def masked(**changed):
    one = lambda: [torch.ones(64)]  # noqa: E731
    usual = dict(
        exp_avgs=one(), exp_avg_sqs=one(), words=[torch.full((2,), -1, dtype=torch.int32)], steps=[torch.ones(())]
    )
    masked_adamw(one(), one(), **usual | changed, lr=0.1)


def live(**changed):
    one = lambda: [torch.ones(64)]  # noqa: E731
    none = [torch.empty(0, dtype=torch.int32)]
    usual = dict(exp_avgs=one(), exp_avg_sqs=one(), masters=[torch.empty(0)], words=none, prefixes=none)
    live_adamw(one(), one(), **usual | changed, steps=[torch.ones(())], lr=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: masked(words=[torch.ones(4, dtype=torch.int32)[::2]]), "contiguous int32 words"),
        (lambda: masked(words=[torch.tensor(-1, dtype=torch.int32)]), "contiguous int32 words"),
        (lambda: masked(steps=[]), "number of its steps"),
        (lambda: live(exp_avgs=[torch.ones(128)[::2]]), "contiguous"),
        (lambda: live(exp_avgs=[torch.ones(64, device="meta")]), "one is on meta"),
        (lambda: live(exp_avgs=[torch.ones(63)], exp_avg_sqs=[torch.ones(63)]), "entry for each live weight"),
    ],
)
def test_the_functions_refuse_what_a_kernel_would_read_wrongly(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_prefixes_count_live_entries_before_each_word():
    mask = torch.rand(1000, generator=torch.Generator().manual_seed(0)) < 0.4
    prefix = prefix_counts(mask_words(mask, torch.empty(1000)))
    assert prefix.tolist() == [int(mask[: 32 * place].sum()) for place in range(32)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, m: MaskedAdamW([p], {p: m[:2]}), "bool mask of its shape"),
        (lambda p, m: MaskedAdamW([p], {p: m.float()}), "bool mask of its shape"),
        (lambda p, m: MaskedAdamW([p], {torch.nn.Parameter(p.clone()): m}), "does not have"),
        (lambda p, m: MaskedAdamW([p], {"weight": m}), "by parameter.*weight"),
        (lambda p, m: MaskedAdamW([torch.nn.Parameter(p.double())], {}), "float64, not fp16"),
        (lambda p, m: MaskedAdamW([p], {p: m}, lr=-1), "lr"),
        (lambda p, m: MaskedAdamW([p], {p: m}, betas=(0.9, 1.0)), "betas"),
        (lambda p, m: LiveAdamW([p], {p: m}, eps=-1), "eps"),
        (lambda p, m: MaskedSGD([p], {p: m}, nesterov=True), "momentum"),
        (lambda p, m: MaskedSGD([p], {p: m}).clip_grad_norm(0), "max_norm"),
        (lambda p, m: MaskedSGD([torch.nn.Parameter(torch.rand(8, 8)[:, ::2])], {}), "contiguous"),
    ],
)
def test_what_cannot_be_is_refused_with_what_is_wrong(change, message):
    parameter = torch.nn.Parameter(torch.ones(4, 5))
    with pytest.raises(ValueError, match=message):
        change(parameter, torch.ones(4, 5, dtype=torch.bool))


def operands(device):
    weights = [torch.randn(8, 12, device=device), torch.randn(5, device=device)]
    mask = torch.rand(8, 12, device=device) < 0.5
    weights[0].mul_(mask)
    words = [mask_words(mask, weights[0]), torch.empty(0, dtype=torch.int32, device=device)]
    zeros = lambda: [torch.zeros_like(weight) for weight in weights]  # noqa: E731
    ones = [torch.ones((), device=device) for _ in weights]
    live = [torch.zeros(int(mask.sum()), device=device), torch.zeros(5, device=device)]
    none = [torch.empty(0, device=device) for _ in weights]
    numbers = (0.1, None, 0.9, 0.99, 1e-8, 0.01, None, None)
    gradients = [torch.randn_like(weight) for weight in weights]
    copies = lambda: [tensor.clone() for tensor in live]  # noqa: E731
    return {
        "masked_norm": (gradients, words),
        "masked_adamw": (weights, gradients, zeros(), zeros(), words, ones, *numbers),
        "masked_sgd": (weights, gradients, zeros(), words, 0.1, None, 0.9, 0.01, False, None, None),
        "live_adamw": (
            *(weights, gradients, copies(), copies(), none, words),
            *([prefix_counts(word) for word in words], ones, *numbers),
        ),
    }


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", ["masked_norm", "masked_adamw", "masked_sgd", "live_adamw"])
def test_operators_pass_opcheck(name, device):
    arguments = operands(device)[name]
    torch.library.opcheck(getattr(torch.ops.sparseticket, name), arguments)


def test_a_compiled_step_gives_the_same_numbers():
    how = "adamw"
    model, masks = network()
    twin, twin_masks = network()
    optimizer, other = MAKE[how](model.parameters(), masks), MAKE[how](twin.parameters(), twin_masks)
    compiled = torch.compile(lambda: optimizer.step(), backend="aot_eager")
    for step in range(2):
        for net, opt, act in ((model, optimizer, compiled), (twin, other, other.step)):
            opt.zero_grad()
            loss_of(net, step).backward()
            act()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_loaded_after_a_step_are_what_the_next_one_starts_from(how, dtype):
    model, masks = network()
    model.to(dtype)
    optimizer = MAKE[how](model.parameters(), masks)
    train_with_random_gradients(model, optimizer)
    other, _ = network(seed=1)
    model.load_state_dict(other.to(dtype).state_dict())  # a dense one: dead weights come along
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train_with_random_gradients(model, optimizer)
    for name, parameter in model.named_parameters():
        loaded = other.get_parameter(name) * masks.get(parameter, torch.tensor(True))
        assert torch.equal(parameter, loaded), name


@pytest.mark.parametrize("first", ["weights", "optimizer"])
def test_weights_and_the_live_state_may_be_loaded_in_either_order(first):
    model, masks = network()
    model.to(torch.bfloat16)
    optimizer = MAKE["live"](model.parameters(), masks)
    train_with_random_gradients(model, optimizer)
    again, same = network(seed=0)
    later = MAKE["live"](again.to(torch.bfloat16).parameters(), same)
    train_with_random_gradients(again, later, seed=5)
    state, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())
    for load in sorted(("weights", "optimizer"), key=lambda each: each != first):
        again.load_state_dict(weights) if load == "weights" else later.load_state_dict(state)
    for net, opt in ((model, optimizer), (again, later)):
        train_with_random_gradients(net, opt, seed=6)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(optimizer.state[ours]["master"], later.state[theirs]["master"])


def test_a_step_after_a_step_takes_nothing_over(monkeypatch):
    model, masks = network()
    optimizer = MAKE["live"](model.to(torch.bfloat16).parameters(), masks)
    train_with_random_gradients(model, optimizer)
    monkeypatch.setattr(optimizer, "_take_over", lambda parameter: pytest.fail("nobody wrote it"))
    train_with_random_gradients(model, optimizer)


def test_a_ticket_of_other_masks_is_taken_as_it_was_loaded():
    model, masks = network()
    optimizer = MAKE["live"](model.to(torch.bfloat16).parameters(), masks)
    train_with_random_gradients(model, optimizer)
    weight = model[0].weight
    loaded, mask = torch.randn_like(weight), torch.rand(weight.shape) < 0.5
    with torch.no_grad():
        weight.copy_(loaded)
    optimizer.set_masks({weight: mask})
    optimizer.param_groups[0]["lr"] = 0.0
    train_with_random_gradients(model, optimizer)
    assert torch.equal(weight, loaded * mask)


def train_with_random_gradients(model, optimizer, seed=0):
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=draw).to(parameter.dtype)
    optimizer.step()


@every
def test_a_deep_copy_goes_on_as_its_original(how):
    weight = torch.nn.Parameter(torch.randn(8, 8))
    mask = torch.rand(8, 8) < 0.5
    optimizer = MAKE[how]([weight], {weight: mask})
    weight.grad = torch.ones(8, 8)
    optimizer.step()
    twin = copy.deepcopy(optimizer)
    copied = twin.param_groups[0]["params"][0]
    copied.grad = weight.grad.clone()
    optimizer.step()
    twin.step()
    assert copied is not weight and torch.equal(copied, weight) and not copied[~mask].any()


@every
def test_clipping_of_a_shallow_copy_is_not_the_originals(how):
    weight = torch.nn.Parameter(torch.zeros(64))
    optimizer = MAKE[how]([weight], {})
    weight.grad = torch.ones(64)
    copy.copy(optimizer).clip_grad_norm(1e-9)
    optimizer.step()
    assert weight.abs().min() > 1e-3


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_state_may_be_looked_at_before_the_first_step(how, dtype):
    weight = torch.nn.Parameter(torch.ones(64, dtype=dtype))
    optimizer = MAKE[how]([weight], {})
    assert not optimizer.state[weight]
    optimizer.set_masks({weight: torch.arange(64) < 32})
    weight.grad = torch.ones(64, dtype=dtype)
    optimizer.step()
    assert (weight[:32] < 1).all() and not weight[32:].any()
