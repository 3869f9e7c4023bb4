"""The optimizers' kernels against torch's optimizers in float64 on masked gradients, and what the compiler made."""

import pytest
import torch
import triton.language as tl

from sparseticket.kernels import LiveAdamW, MaskedAdamW, MaskedSGD, masked_clip_grad_norm_, masked_grad_norm
from sparseticket.kernels.live_words import mask_words
from sparseticket.kernels.optimizers_aot import compile_optimizer
from sparseticket.kernels.tensor_table import Chunking

SHAPES = [(40, 33), (64, 48), (3, 7), (5,), (1,)]  # odd ones, one of whole chunks, two without a mask
MASKED = 3
ADAMW = {"lr": 0.01, "betas": (0.8, 0.99), "weight_decay": 0.1}
HOW = {
    "adamw": (MaskedAdamW, torch.optim.AdamW, ADAMW),
    "live": (LiveAdamW, torch.optim.AdamW, ADAMW),
    "sgd": (MaskedSGD, torch.optim.SGD, {"lr": 0.05, "weight_decay": 0.1}),
    "momentum": (MaskedSGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}),
    "nesterov": (MaskedSGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
}


class Pair:
    """The same parameters under one of ours, and under torch's in float64 with gradients masked first."""

    def __init__(self, how, device, density=0.3, dtype=torch.float32):
        make, make_torch, settings = HOW[how]
        draw = self.draw = torch.Generator().manual_seed(1)
        self.ours = [torch.nn.Parameter(torch.randn(s, generator=draw).to(device, dtype)) for s in SHAPES]
        masks = [torch.rand(s, generator=draw) < density for s in SHAPES[:MASKED]]
        self.masks = [mask.to(device) for mask in masks]
        self.alive = masks + [torch.ones(s, dtype=torch.bool) for s in SHAPES[MASKED:]]
        exact = [p.detach().cpu().double() * m for p, m in zip(self.ours, self.alive, strict=True)]
        self.exact = [torch.nn.Parameter(p) for p in exact]
        self.optimizer = make(self.ours, self.by_parameter(), **settings)
        self.torch = make_torch(self.exact, **settings)

    def by_parameter(self):
        return dict(zip(self.ours, self.masks, strict=False))

    def gradients(self, scale=1.0, spoil=False):
        for ours, exact, alive in zip(self.ours, self.exact, self.alive, strict=True):
            gradient = torch.randn(ours.shape, generator=self.draw).to(ours.dtype)
            exact.grad = gradient.double() * alive
            given = gradient * scale
            ours.grad = (given.masked_fill(~alive, float("nan")) if spoil else given).to(ours.device)

    def step(self, **kwargs):
        self.gradients(**kwargs)
        self.optimizer.step()
        self.torch.step()

    def check(self, close):
        for ours, exact, alive in zip(self.ours, self.exact, self.alive, strict=True):
            close(ours.detach(), exact.detach())
            dead = ours.detach().cpu()[~alive]
            assert not dead.any() and not torch.signbit(dead).any()


def dtypes(how):
    """Adam's moments in fp16 underflow, in torch too: halves are for live-only states, whose moments are fp32."""
    return [torch.float32] if how == "adamw" else [torch.float32, torch.float16]


@pytest.mark.parametrize(("how", "dtype"), [(how, dtype) for how in HOW for dtype in dtypes(how)])
def test_steps_equal_torchs_on_masked_gradients_whatever_dead_gradients_are(device, close, how, dtype):
    pair = Pair(how, device, dtype=dtype)
    for _ in range(3):
        pair.step(spoil=True)
    pair.check(close)


@pytest.mark.parametrize("density", [0, 1])
@pytest.mark.parametrize("how", ["adamw", "live", "momentum"])
def test_masks_may_be_all_dead_or_all_alive(device, close, how, density):
    pair = Pair(how, device, density)
    for _ in range(2):
        pair.step()
    pair.check(close)


@pytest.mark.parametrize("how", ["adamw", "live", "momentum"])
def test_clipping_and_the_loss_scale_divide_gradients_as_they_are_read(device, close, how):
    pair = Pair(how, device)
    pair.gradients()
    norm = pair.optimizer.clip_grad_norm(2.0)
    close(norm.cpu(), torch.nn.utils.clip_grad_norm_(pair.exact, 2.0).double())
    for parameter in pair.ours:
        parameter.grad *= 1024
    pair.optimizer.grad_scale = torch.tensor([1024.0], device=device)
    pair.optimizer.step()
    pair.torch.step()
    pair.check(close)


@pytest.mark.parametrize("how", ["adamw", "live", "momentum"])
def test_a_step_with_infinities_changes_nothing_and_is_not_counted(device, close, how):
    pair = Pair(how, device)
    pair.step()
    before = [p.detach().clone() for p in pair.ours]
    pair.gradients(scale=float("inf"))
    pair.optimizer.found_inf = torch.ones(1, device=device)
    pair.optimizer.step()
    assert all(torch.equal(was, now.detach()) for was, now in zip(before, pair.ours, strict=True))
    pair.optimizer.found_inf = torch.zeros(1, device=device)
    pair.step()
    pair.check(close)


@pytest.mark.parametrize("how", ["adamw", "live"])
def test_gradients_may_be_views_of_a_bucket_at_odd_addresses_and_are_only_read(device, close, how):
    pair = Pair(how, device)
    pair.gradients()
    bucket = torch.empty(1 + sum(p.numel() for p in pair.ours), device=device)
    begin = 1
    for parameter in pair.ours:
        view = bucket[begin : begin + parameter.numel()].view(parameter.shape)
        parameter.grad = view.copy_(parameter.grad)
        begin += parameter.numel()
    before = bucket.clone()
    pair.optimizer.step()
    pair.torch.step()
    pair.check(close)
    assert torch.equal(bucket[1:], before[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("density", [0, 0.3, 1])
def test_the_norm_is_of_live_gradients_alone(device, close, density, dtype):
    pair = Pair("sgd", device, density, dtype)
    pair.gradients(spoil=True)
    exact = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in pair.exact]))
    gradients = [p.grad for p in pair.ours]
    none = torch.empty(0, dtype=torch.int32, device=device)
    words = [mask_words(m, g) for m, g in zip(pair.masks, gradients, strict=False)] + [none, none]
    close(masked_grad_norm(gradients, words).cpu(), exact)


def test_clipping_in_place_leaves_masked_gradients_of_the_wanted_norm(device, close):
    pair = Pair("sgd", device)
    pair.gradients(spoil=True)
    norm = masked_clip_grad_norm_(pair.ours, pair.by_parameter(), 0.5)
    close(norm.cpu(), torch.nn.utils.clip_grad_norm_(pair.exact, 0.5))
    for ours, exact in zip(pair.ours, pair.exact, strict=True):
        close(ours.grad, exact.grad)


def test_groups_without_a_live_entry_are_not_touched(device):
    weight = torch.nn.Parameter(torch.ones(64, device=device))
    mask = torch.zeros(64, dtype=torch.bool, device=device)
    mask[9] = True
    optimizer = MaskedSGD([weight], {weight: mask}, lr=1.0)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    weight.data.fill_(5)  # against the contract and behind the optimizer's back, to see what is written
    optimizer.step()
    assert weight[8:16].tolist() == [0, 4, 0, 0, 0, 0, 0, 0]
    assert (weight[:8] == 5).all() and (weight[16:] == 5).all()
    with torch.no_grad():
        weight.fill_(5)  # as load_state_dict does, which it has to notice
    optimizer.step()
    assert weight[9] == 4 and not weight[~mask].any()


def test_the_first_step_is_as_long_as_the_learning_rate_though_beta_is_nearly_one(device):
    weight = torch.nn.Parameter(torch.zeros(32, device=device))
    optimizer = MaskedAdamW([weight], {}, lr=1.0, betas=(0.9, 0.9999), weight_decay=0)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert (weight + 1).abs().max() < 1e-5  # 1 - 0.9999 in fp32 is off by 2e-4


def test_weights_loaded_between_steps_are_trained_on_and_what_was_not_changed_keeps_its_masters_bits(device):
    pair = Pair("live", device, dtype=torch.float16)
    pair.step()
    weight, mask, optimizer = pair.ours[0], pair.masks[0], pair.optimizer
    before = optimizer.state[weight]["master"].clone()
    loaded = weight.detach().clone()
    loaded[:20] = 3
    with torch.no_grad():
        weight.copy_(loaded)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    pair.step()
    changed = mask[:20].sum()
    master = optimizer.state[weight]["master"]
    assert torch.equal(master[changed:], before[changed:]) and (master[:changed] == 3).all()
    assert torch.equal(weight.detach(), loaded * mask)


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["live", "momentum"])
def test_bf16_agrees_on_a_gpu(close, how):
    pair = Pair(how, "cuda", dtype=torch.bfloat16)
    for _ in range(2):
        pair.step()
    pair.check(close)


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["adamw", "live", "momentum"])
def test_steps_replay_in_a_cuda_graph_with_another_learning_rate(close, how):
    pair = Pair(how, "cuda")
    group = pair.optimizer.param_groups[0]
    group["lr"] = torch.tensor(float(group["lr"]), device="cuda")
    pair.step()
    pair.optimizer.clip_grad_norm(1.0)  # loads its kernels; the next one takes its place
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # captured, not run
        pair.optimizer.clip_grad_norm(1.0)
        pair.optimizer.step()
    group["lr"].fill_(0.02)
    pair.torch.param_groups[0]["lr"] = 0.02
    static = [p.grad for p in pair.ours]
    for _ in range(2):
        pair.gradients()
        for parameter, held in zip(pair.ours, static, strict=True):
            held.copy_(parameter.grad)
        torch.nn.utils.clip_grad_norm_(pair.exact, 1.0)
        graph.replay()
        pair.torch.step()
    pair.check(close)


@pytest.mark.parametrize("arch", [80, 90, 120])
def test_adamw_reads_and_writes_16_bytes_at_a_time_under_its_masks(arch):
    made = compile_optimizer("masked_adamw", Chunking(), arch)
    assert made.spilled == 0
    assert made.ptx.count("ld.global.v4.b32") == 8  # 4 arrays, 8 entries a thread
    assert made.ptx.count("st.global.v4.b32") == 6


def test_sgd_and_the_norm_read_16_bytes_at_a_time():
    step, norm = (compile_optimizer(name, Chunking(), 90) for name in ("masked_sgd", "masked_norm"))
    assert step.spilled == norm.spilled == 0
    assert (step.ptx.count("ld.global.v4.b32"), norm.ptx.count("ld.global.v4.b32")) == (6, 2)


def test_live_adamw_is_the_same_program_in_bf16_and_fp16():
    dtypes = (tl.float16, tl.bfloat16)
    half, brain = (compile_optimizer("live_adamw", Chunking(), 90, WEIGHT=t, GRADIENT=t) for t in dtypes)
    assert brain.spilled == 0
    assert _operations(brain.ttir.replace("bf16", "f16")) == _operations(half.ttir)


def _operations(ttir):
    """Without source locations."""
    return [line.split(" loc(")[0] for line in ttir.splitlines() if not line.startswith("#loc")]
