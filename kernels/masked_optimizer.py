"""What the masked optimizers share: masks beside parameters, clipping, loss scaling, state that knows its masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sparseticket.kernels.launch import FLOATS
from sparseticket.kernels.live_words import flat, is_dense, mask_hash, mask_of, mask_words
from sparseticket.kernels.masked_clip import clip_divisor, masked_norm_unchecked
from sparseticket.kernels.versions import version_of

Params = Iterable[Tensor] | Iterable[dict[str, Any]]


@dataclass
class Held:
    """What an optimizer holds of a parameter beside its state.

    One object for all of it, because a step looks at 200 of them, and to look one up costs more than to read it.
    """

    parameter: Tensor
    mask: tuple[Tensor, ...]  # as a step reads it: words, and what follows from them
    strides: tuple[int, ...]
    version: int | None = None  # of the parameter after its last step


@dataclass
class Part:
    """Parameters of one group, on one device, that have a gradient, which is laid out as its parameter."""

    group: dict[str, Any]
    held: list[Held] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)

    @property
    def parameters(self) -> list[Tensor]:
        """In the order of the gradients."""
        return [each.parameter for each in self.held]

    @property
    def masks(self) -> list[tuple[Tensor, ...]]:
        """As a step reads them."""
        return [each.mask for each in self.held]

    @property
    def words(self) -> list[Tensor]:
        """The masks' words."""
        return [each.mask[0] for each in self.held]


class MaskedOptimizer(torch.optim.Optimizer):
    """A :class:`torch.optim.Optimizer` whose pruned weights and their states are +0.0 from first to last.

    A parameter that was written since the last step (``load_state_dict``, ``copy_``) is taken as it is now, its pruned
    weights zeroed, when the next step begins. What autograd does not count is not noticed: writes through ``.data``,
    and any before a step that was compiled or is replayed in a CUDA graph.

    Subclasses say what the state of a parameter is (``_new_state``) and what a step does (``_update``).
    """

    _step_supports_amp_scaling = True  # GradScaler then sets grad_scale and found_inf, and never waits for the device

    def __init__(self, params: Params, masks: Mapping[Tensor, Tensor], defaults: dict[str, Any]) -> None:
        self._held: dict[Tensor, Held] = {}
        self._divisors: list[Tensor] = []  # that of a clipping which waits for its step
        super().__init__(params, defaults)
        self.set_masks(masks)

    def __getstate__(self) -> dict[str, Any]:
        held = {parameter: replace(each, version=None) for parameter, each in self._held.items()}
        return super().__getstate__() | {"_held": held, "_divisors": list(self._divisors)}

    @torch.no_grad()
    def set_masks(self, masks: Mapping[Tensor, Tensor]) -> None:
        """Take these masks from now on, and write +0.0 into what they prune, in parameters and states.

        A weight that was dead and is alive again begins at 0, with a state of 0. Parameters without a mask are whole.

        Raises:
            ValueError: a mask does not fit its parameter, or belongs to a parameter that is not optimized here.
        """
        known = {parameter for group in self.param_groups for parameter in group["params"]}
        if strangers := [getattr(parameter, "shape", parameter) for parameter in masks if parameter not in known]:
            raise ValueError(f"masks are by parameter, and this optimizer does not have those of: {strangers[:3]}")
        words = {parameter: mask_words(mask, parameter) for parameter, mask in masks.items()}
        hashes = {
            p: mask_hash(mask if mask.dtype == torch.bool else mask_of(words[p], p).as_strided(p.shape, p.stride()))
            for p, mask in masks.items()
        }
        for group in self.param_groups:
            group["mask_sha256"] = [hashes.get(parameter, "") for parameter in group["params"]]
            for parameter in group["params"]:
                self._take(parameter, words.get(parameter, _no_words(parameter)))

    def _take(self, parameter: Tensor, words: Tensor) -> None:
        if not is_dense(parameter):
            raise ValueError(f"the parameter of {tuple(parameter.shape)} has gaps in its storage: make it contiguous")
        if parameter.dtype not in FLOATS:
            raise ValueError(f"the parameter of {tuple(parameter.shape)} is {parameter.dtype}, not fp16, bf16 or fp32")
        if self.state.get(parameter):  # not empty, as it is where somebody looked before the first step
            self._mask_state(parameter, words)
        held = Held(parameter, self._mask_columns(words), parameter.stride())
        if before := self._held.get(parameter):
            held.version = before.version
        self._held[parameter] = held
        if len(words):
            flat(parameter).masked_fill_(~mask_of(words, parameter), 0)

    def _mask_columns(self, words: Tensor) -> tuple[Tensor, ...]:
        """What a step reads of a mask: its words, and more where a subclass derives more from them."""
        return (words,)

    def _words(self, parameter: Tensor) -> Tensor:
        return self._held[parameter].mask[0]

    @torch.no_grad()
    def _take_over(self, parameter: Tensor) -> None:
        """Make the parameter's current values, which others wrote, those that the next step begins from."""
        if len(words := self._words(parameter)):
            flat(parameter).masked_fill_(~mask_of(words, parameter), 0)

    def _mask_state(self, parameter: Tensor, words: Tensor) -> None:
        """Zero the state of what ``words`` prune; ``self._held`` still has the old ones."""
        dead = ~mask_of(words, parameter)
        for value in self.state[parameter].values():
            if value.shape == parameter.shape:
                flat(value).masked_fill_(dead, 0)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; its parameters are whole until :meth:`set_masks` says otherwise."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group["mask_sha256"] = [""] * len(group["params"])
        for parameter in group["params"]:
            self._take(parameter, _no_words(parameter))

    @torch.no_grad()
    def clip_grad_norm(self, max_norm: float) -> Tensor:
        """Clip, in the next step, what is alive in all gradients to this 2-norm; the norm, fp32 ``[]`` on the device.

        Equal to masking gradients and :func:`torch.nn.utils.clip_grad_norm_`, without writing them: the step divides
        as it reads. Scaled gradients must be unscaled before, as for torch's.
        """
        if not max_norm > 0:
            raise ValueError(f"max_norm must be above 0, not {max_norm}")
        norms = [masked_norm_unchecked(part.gradients, part.words) for part in self._with_gradients()]
        if not norms:
            return torch.zeros(())
        norm = torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
        self._divisors[:] = [clip_divisor(norm, max_norm)]
        return norm

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. Parameters whose gradient is None are left alone."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        divisor = self._divisors.pop() if self._divisors else None
        found_inf = getattr(self, "found_inf", None)
        if (scale := getattr(self, "grad_scale", None)) is not None:
            divisor = scale if divisor is None else scale * divisor
        for part in self._with_gradients():
            states = [self._state_before_step(each) for each in part.held]
            device = part.held[0].parameter.device
            self._update(
                part,
                states,
                grad_scale=None if divisor is None else divisor.to(device, non_blocking=True),
                found_inf=None if found_inf is None else found_inf.to(device, non_blocking=True),
            )
            for each in part.held:
                each.version = version_of(each.parameter)
        return loss

    def _state_before_step(self, held: Held) -> dict[str, Tensor]:
        """The state of a parameter whose values, if others wrote them, were taken over."""
        parameter = held.parameter
        if held.version != version_of(parameter):
            self._take_over(parameter)
        state = self.state[parameter]  # empty at first, as torch's own
        if not state:
            state |= self._new_state(parameter)
        return state

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch. Clipping that waited for a step is forgotten with its gradients."""
        self._divisors.clear()
        super().zero_grad(set_to_none)

    def _with_gradients(self) -> list[Part]:
        """Parameters that have a gradient, by group and device; their masks are where they are now."""
        found: dict[tuple[int, torch.device], Part] = {}
        for number, group in enumerate(self.param_groups):
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                held, strides, device = self._held[parameter], parameter.stride(), parameter.device
                if strides != held.strides:
                    raise ValueError("a parameter's memory format changed: make the optimizer after changing it")
                if held.mask[0].device != device:
                    held.mask = tuple(each.to(device) for each in held.mask)
                if gradient.layout != torch.strided or gradient.stride() != strides:
                    gradient = _laid_out_as(parameter, gradient)
                if (number, device) not in found:
                    found[number, device] = Part(group)
                part = found[number, device]
                part.held.append(held)
                part.gradients.append(gradient)
        return list(found.values())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` gave under the same masks; dtypes of states stay as they were saved.

        Raises:
            ValueError: the state belongs to other masks, or to other parameters.
        """
        saved_groups = state_dict["param_groups"]
        pairs = []
        for number, (saved, group) in enumerate(zip(saved_groups, self.param_groups, strict=False)):
            hashes = saved.get("mask_sha256", [""] * len(saved["params"]))
            for place, (theirs, ours) in enumerate(zip(hashes, group["mask_sha256"], strict=False)):
                if theirs != ours:
                    raise ValueError(
                        f"the state of parameter {place} of group {number}, {tuple(group['params'][place].shape)}, was "
                        f"made under another mask ({theirs[:12] or 'none'}, not {ours[:12] or 'none'}): set the masks "
                        "that it was saved with, or begin with a fresh state."
                    )
            pairs += zip(saved["params"], group["params"], strict=False)
        super().load_state_dict(state_dict)
        for index, parameter in pairs:  # torch casts states to the parameter's dtype, which ours need not have
            if saved := state_dict["state"].get(index):
                self.state[parameter] = self._loaded(parameter, saved)
                self._held[parameter].version = None  # what was loaded may be of other weights than these

    def _loaded(self, parameter: Tensor, saved: dict[str, Tensor]) -> dict[str, Tensor]:
        state = self._new_state(parameter)
        shapes = {key: tuple(value.shape) for key, value in state.items()}
        if {key: tuple(value.shape) for key, value in saved.items()} != shapes:
            raise ValueError(f"the state of the parameter of {tuple(parameter.shape)} must be tensors of {shapes}")
        return {key: value.copy_(saved[key]) for key, value in state.items()}

    def _new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError

    def _update(self, part: Part, states: list[dict[str, Tensor]], **scaling: Tensor | None) -> None:
        raise NotImplementedError


def split_lr(lr: float | Tensor, device: torch.device) -> tuple[float, Tensor | None]:
    """The learning rate as an operator takes it: a number, or a tensor on ``device``, which a CUDA graph can change."""
    return (0.0, lr) if isinstance(lr, Tensor) and lr.device == device else (float(lr), None)


def _no_words(parameter: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.int32, device=parameter.device)


def _laid_out_as(parameter: Tensor, gradient: Tensor) -> Tensor:
    if gradient.layout != torch.strided:
        raise ValueError(f"the gradient of the parameter of {tuple(parameter.shape)} is sparse, which is unsupported")
    return torch.empty_like(parameter, dtype=gradient.dtype).copy_(gradient)
