"""Change how a model runs, and undo it: ``use_kernels`` and ``restore``. Neither changes what the model is."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sparseticket.kernels.blocks import SIDES, BlockLayout
from sparseticket.kernels.bsr_module import BsrLinear
from sparseticket.kernels.conv2d import PackedConv2d
from sparseticket.kernels.dispatch import (
    DENSE,
    LAUNCHES,
    PASSES,
    Case,
    Choice,
    Table,
    decided_by_one,
    gpu_name,
    save_user_table,
    table_for,
)
from sparseticket.kernels.frozen import Frozen
from sparseticket.kernels.fuse import activation_behind, groups_over_one_input
from sparseticket.kernels.packed_conv import PackedConv, runs_packed
from sparseticket.kernels.packed_linear import PackedLinear
from sparseticket.kernels.packing import packing_for
from sparseticket.kernels.pattern import UNSTRUCTURED, block_of, density_of, pattern_of
from sparseticket.kernels.plan import ANY, Plan
from sparseticket.kernels.tune import measure
from sparseticket.kernels.tune_convolution import convolution_case

DENSE_PLAN = Plan.always(Choice())
WRAPPED = (BsrLinear, PackedLinear, PackedConv)
Layer = tuple[str, nn.Linear | nn.Conv2d, Tensor]
log = logging.getLogger(__name__)
_said: set[str] = set()


@dataclass(frozen=True)
class Placement:
    """What runs one layer (or several that were fused): what the mask looks like, and the choices by rows."""

    names: tuple[str, ...]
    pattern: str
    density: float
    plan: Plan

    @property
    def runs(self) -> str:
        """The kernels that run it at any number of rows, ``dense`` among them."""
        return ", ".join(sorted({choice.kernel for _, choices in self.plan.steps for choice in choices}))

    def __str__(self) -> str:
        return f"{' + '.join(self.names)}: {self.pattern}, density {self.density:.3f}: {self.runs}"


def use_kernels(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    mode: str = "train",
    *,
    dtype: torch.dtype | None = None,
    table: Table | None = None,
    measure_rows: Sequence[int] = (),
    everywhere: bool = False,
    free_dense: bool = False,
    launched: str = "eager",
) -> list[Placement]:
    """Let layers with a mask run on the kernels that were measured to be faster on this GPU; the others stay dense.

    For training only modules' classes change: weights stay the parameters they were, and the gradients of layers that a
    kernel runs are dense and exactly 0 in dead blocks. Layers that stay dense get the gradient of a dense layer, which
    brings dead weights back to life: mask gradients before the step, or take one of the masked optimizers, in any case.
    For inference weights are packed, Q, K and V run as one product, and an activation behind
    a feed-forward layer in its epilogue; then ``state_dict`` stays as it was, no gradient flows through a packed layer,
    and it is an error to change a weight (which compiled code does not notice), or to call the model in training mode.
    In training, a weight that is loaded later must be 0 in dead blocks too: a pass that runs dense would use what is
    there.

    Args:
        model: on the device where it will run, its dead weights exactly 0.
        masks: bool, by the name of the parameter in ``model``.
        mode: ``train`` or ``infer``.
        dtype: in which the layers will run (autocast's), and for inference are packed; by default each weight's own.
        table: what was measured; by default the table of this GPU.
        measure_rows: numbers of rows to measure now, where the table says nothing of a layer. What is measured goes
            into the user's table of this GPU, so that the same is chosen the next time.
        everywhere: every layer that a kernel can run gets it, faster or not.
        free_dense: for inference, drop the dense weights of layers that run packed. They then do so at any number of
            rows that their kernel can (``bitmap_linear``: 64); with more, the weight is rebuilt in each forward.
        launched: how the model will run: ``eager``; ``compiled``, by ``torch.compile``; or in a CUDA ``graph``, which
            pays for no launch, so that more layers gain.

    Returns:
        One placement for each layer with a mask.

    Raises:
        ValueError: a mask fits no weight of ``model``, dead weights are not 0, or kernels are in use already.
    """
    if mode not in ("train", "infer"):
        raise ValueError(f"mode is train or infer, not {mode!r}")
    if launched not in LAUNCHES:
        raise ValueError(f"launched is one of {', '.join(LAUNCHES)}, not {launched!r}")
    layers = _layers(model, masks)
    if not layers:
        return []
    device = next(iter(layers.values()))[2].device
    if device.type != "cuda" and not everywhere and table is None:
        _say_once("no GPU: every layer runs dense, on its reference")
        return [_dense(layer) for layer in layers.values()]
    if free_dense:
        _check_can_be_dropped(model, layers, dtype)
    own_table = table is None
    table = table or table_for(device) or Table(str(gpu_name(device)))
    how = _How(table, dtype, tuple(measure_rows), everywhere, free_dense, launched)
    measured = len(table.cells)
    try:
        placed = _place(model, layers, mode, how)
    except BaseException:
        restore(model)
        raise
    if own_table and len(table.cells) > measured:
        save_user_table(table)  # so that the next round, or this one continued, runs the same
    return placed


def _place(model: nn.Module, layers: dict[str, Layer], mode: str, how: _How) -> list[Placement]:
    if mode == "train":
        return [_train(layer, how) for layer in layers.values()]
    linears = {name: module for name, module, _ in layers.values() if type(module) is nn.Linear}
    together = groups_over_one_input(model, linears) + [(name,) for name in layers if name not in linears]
    groups = (group for names in together for group in _as_one([layers[name] for name in names]))
    return [_infer(model, group, how) for group in groups]


def _as_one(layers: list[Layer]) -> list[list[Layer]]:
    """Layers over one input as one product, or each for itself where their blocks do not line up in the joint mask."""
    masks = [mask for _, _, mask in layers]
    if all(len(mask) % max(SIDES) == 0 for mask in masks[:-1]):  # as of most models: blocks of any size line up
        return [layers]
    line_up = _block_size(torch.cat(masks)) >= min(map(_block_size, masks))
    return [layers] if line_up else [[layer] for layer in layers]


def _block_size(mask: Tensor) -> int:
    block = block_of(pattern_of(mask))
    return block[0] * block[1] if block else 1


def restore(model: nn.Module) -> None:
    """Undo :func:`use_kernels`: every module is of the class that it was, with its dense weight, bit-equal."""
    wrapped = [module for module in model.modules() if isinstance(module, WRAPPED)]
    for module in wrapped:
        if isinstance(module, Frozen):
            module.thaw()
    for module in wrapped:
        module.unwrap()
        module.__class__ = nn.Conv2d if isinstance(module, nn.Conv2d) else nn.Linear


@dataclass(frozen=True)
class _How:
    """What ``use_kernels`` was asked for."""

    table: Table
    dtype: torch.dtype | None
    measure_rows: tuple[int, ...]
    everywhere: bool
    free_dense: bool
    launched: str

    def plan(self, cases: list[Case], density: float, device: torch.device) -> Plan:
        """The choices of these passes, measured first where that was asked for."""

        cases = [replace(case, launched=self.launched) for case in cases]

        def decide() -> Plan:
            for case in cases:
                for m in self.measure_rows:
                    if not self.table.speaks(case, m, density):
                        _say_once(f"measuring layers on {self.table.gpu}; once, what is found is kept")
                        self.table.add(measure(case, m, _measured_density(density), device))
            return Plan.from_table(self.table, cases, density)

        return decided_by_one(decide)

    def skips(self, density: float) -> bool:
        """True for a layer with nothing to skip."""
        return density == 1 and not self.everywhere

    def inference_plan(self, case: Case, density: float, device: torch.device, kernel: Choice, most_rows: int) -> Plan:
        """The choices of one layer, whose kernel can run at most so many rows."""
        if self.everywhere:
            return Plan.up_to(most_rows, kernel)
        plan = self.plan([case], density, device)
        if not self.free_dense or plan.is_dense:
            return plan
        return Plan.up_to(most_rows, next(choice for _, (choice,) in reversed(plan.steps) if choice.kernel != DENSE))


def _check_can_be_dropped(model: nn.Module, layers: Mapping[str, Layer], dtype: torch.dtype | None) -> None:
    holders = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for name, module, _ in layers.values():
        if holders[id(module.weight)] > 1:
            raise ValueError(f"{name} is tied to another weight: leave out free_dense, which would untie them")
        if dtype is not None and module.weight.dtype != dtype:
            raise ValueError(
                f"{name} is {module.weight.dtype}, which {dtype} could not give back: leave out free_dense"
            )


def _dense(layer: Layer) -> Placement:
    name, _, mask = layer
    pattern = pattern_of(mask) if mask.ndim in (2, 4) else UNSTRUCTURED
    return Placement((name,), pattern, density_of(mask, pattern), DENSE_PLAN)


def _train(layer: Layer, how: _How) -> Placement:
    """Training: blocks that are wholly alive or dead; anything else is a dense product over zeros in place."""
    name, module, mask = layer
    if type(module) is not nn.Linear:
        return _dense(layer)
    pattern = pattern_of(mask)
    block, density = block_of(pattern), density_of(mask, pattern)
    if block is None or how.skips(density):
        return Placement((name,), pattern, density, DENSE_PLAN)
    dtype = _name(how.dtype or module.weight.dtype)
    epilogue = "none" if module.bias is None else "bias"
    cases = [Case(which, *mask.shape, pattern, dtype, epilogue if which == "forward" else "none") for which in PASSES]
    plan = Plan.always(*[Choice("bsr_linear")] * 3) if how.everywhere else how.plan(cases, density, mask.device)
    if not plan.is_dense:
        BsrLinear.wrap(module, BlockLayout.from_mask(mask, block), plan)
        module.__class__ = BsrLinear
    return Placement((name,), pattern, density, plan)


def _infer(model: nn.Module, layers: list[Layer], how: _How) -> Placement:
    """Inference: the layers of a group as one product, where a kernel for their joint mask is chosen."""
    if type(layers[0][1]) is nn.Conv2d:
        return _infer_convolution(layers[0], how)
    if type(layers[0][1]) is not nn.Linear:
        return _dense(layers[0])
    names, modules, masks = zip(*layers, strict=True)
    mask = torch.cat(masks)
    pattern = pattern_of(mask)
    density, dtype = density_of(mask, pattern), how.dtype or modules[0].weight.dtype
    if how.skips(density):
        return Placement(names, pattern, density, DENSE_PLAN)
    behind = activation_behind(model, names[0])
    parts = [*["bias"] * any(module.bias is not None for module in modules), *([behind.kind] if behind else [])]
    case = Case("infer", *mask.shape, pattern, _name(dtype), "+".join(parts) or "none")
    packing = packing_for(pattern, tuple(mask.shape), dtype)
    plan = how.inference_plan(case, density, mask.device, Choice(packing.kernel), packing.most_rows)
    if not plan.is_dense:
        try:
            packed = packing.pack(torch.cat([module.weight.detach() for module in modules]).to(dtype), mask)
        except ValueError as error:  # fp32 has no 2:4 on a GPU, say
            log.info("%s stays dense: %s", " + ".join(names), error)
            return Placement(names, pattern, density, DENSE_PLAN)
        for module in modules:
            PackedLinear.wrap(module, list(modules), packed, plan, behind)
        for module in modules:
            module.__class__ = PackedLinear
            module.freeze(free_dense=how.free_dense)
    return Placement(names, pattern, density, plan)


def _infer_convolution(layer: Layer, how: _How) -> Placement:
    name, module, mask = layer
    pattern = pattern_of(mask)
    block, density = block_of(pattern), density_of(mask, pattern)
    if block is None or how.skips(density) or not runs_packed(module):
        return Placement((name,), pattern, density, DENSE_PLAN)
    epilogue = "none" if module.bias is None else "bias"
    case = convolution_case(module, pattern, _name(how.dtype or module.weight.dtype), epilogue)
    plan = how.inference_plan(case, density, mask.device, Choice("bsr_conv2d"), ANY)
    if not plan.is_dense:
        packed = PackedConv2d.from_dense(module.weight.to(how.dtype or module.weight.dtype), mask, block)
        PackedConv.wrap(module, packed, plan)
        module.__class__ = PackedConv
        module.freeze(free_dense=how.free_dense)
    return Placement((name,), pattern, density, plan)


def _layers(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Layer]:
    """The layers whose weights ``masks`` name, with their masks on the weights' devices."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    layers = {}
    for name, mask in masks.items():
        weight = parameters.get(name)
        if weight is None:
            raise ValueError(f"the model has no parameter {name!r}, for which there is a mask")
        if mask.dtype != torch.bool or mask.shape != weight.shape:
            raise ValueError(
                f"the mask of {name} is {mask.dtype} of {tuple(mask.shape)}, not bool of its weight's shape"
            )
        mask = mask.to(weight.device)
        dead = weight.detach()[~mask]
        if dead.count_nonzero() or torch.signbit(dead).any():
            raise ValueError(f"{name} is not +0.0 where its mask is dead: write zeros with masked_fill_ first")
        module = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, WRAPPED):
            raise ValueError(f"{name} runs on a kernel already: call restore(model) first")
        if mask.ndim > 1:  # what dies with a head or a neuron has no kernel of its own
            layers[name] = (name, module, mask)
    return layers


def _measured_density(density: float) -> float:
    """The next higher multiple of 0.05: layers of a ticket differ in density, and one measurement speaks for many."""
    return min(1.0, math.ceil(density * 20 - 1e-9) / 20)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        log.warning(text)
