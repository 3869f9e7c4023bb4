"""2:4 linear for inference: at most two of each four weights along K alive, multiplied by a GPU's sparse tensor cores.

The work is PyTorch's: ``torch.sparse.to_sparse_semi_structured`` with cuSPARSELt behind it (or CUTLASS, where torch is
told so). This checks what it asks for, and keeps the weight as it was. Without a GPU the dense product runs. It is for
inference only: the gradient of x multiplies by Wᵀ, which is not 2:4, so that training would gain nothing there; train
with zeros in place. Some shapes are slower than dense (reported for an H100), which the dispatcher's table has to say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.sparse import SparseSemiStructuredTensor

from sparseticket.kernels.activation import activate_reference, check_activation
from sparseticket.kernels.launch import as_autocast_would, without_autocast

DTYPES = (torch.float16, torch.bfloat16)  # and fp32 without a GPU, where nothing is sparse
SIDE_MULTIPLE = 16  # of N and of K, for cuSPARSELt; what CUTLASS asks for (32 and 64) torch says itself
CAPABILITY = (8, 0)  # the first with sparse tensor cores


@dataclass(frozen=True)
class SemiStructuredWeight:
    """A 2:4 weight ``[N, K]``.

    Attributes:
        operand: torch's semi-structured tensor on a GPU, 0.56 of the dense bytes; the dense weight elsewhere.
        kept: the dense weight in the host's memory: torch's own ``to_dense`` multiplies by the identity, after which
            −0.0 is +0.0.
    """

    operand: Tensor
    kept: Tensor

    @classmethod
    def from_dense(cls, weight: Tensor, mask: Tensor) -> SemiStructuredWeight:
        """Pack ``weight [N, K]`` under a bool ``mask`` of its shape that is 2:4 along K.

        Raises:
            ValueError: the mask is not 2:4, or torch cannot run this shape or dtype on the weight's device.
        """
        if weight.ndim != 2 or mask.dtype != torch.bool or mask.shape != weight.shape:
            raise ValueError(
                f"a 2:4 weight is [N, K] with a bool mask, and these are {tuple(weight.shape)} and {mask.dtype} of "
                f"{tuple(mask.shape)}"
            )
        _check_two_of_four(mask)
        return cls._pack(weight.detach().masked_fill(~mask.to(weight.device), 0).contiguous())

    @classmethod
    def _pack(cls, dense: Tensor) -> SemiStructuredWeight:
        _check_runnable(dense)
        if not dense.is_cuda:
            return cls(dense, dense)
        try:
            return cls(torch.sparse.to_sparse_semi_structured(dense), dense.cpu())
        except RuntimeError as error:
            raise ValueError(f"torch cannot run {tuple(dense.shape)} of {dense.dtype} as 2:4: {error}") from error

    def to_dense(self) -> Tensor:
        """The weight ``[N, K]`` on its device, bit-equal where the mask is alive and +0.0 elsewhere."""
        return self.kept.to(self.operand.device) if self.is_sparse else self.operand

    @property
    def is_sparse(self) -> bool:
        """Torch's sparse product runs, and not the dense one."""
        return isinstance(self.operand, SparseSemiStructuredTensor)

    def apply(self, fn: Callable[[Tensor], Tensor]) -> SemiStructuredWeight:
        """The weight after ``fn``, which moves or casts it: packed anew where that changes anything."""
        dense = fn(self.to_dense())
        return self if (dense.device, dense.dtype) == (self.operand.device, self.operand.dtype) else self._pack(dense)

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return self.operand.dtype

    def tensors(self) -> dict[str, Tensor]:
        """What the product reads, by name."""
        return {"operand": self.operand}

    def with_tensors(self, tensors: dict[str, Tensor]) -> SemiStructuredWeight:
        """The same of other tensors."""
        return replace(self, **tensors)

    def linear(self, x: Tensor, bias: Tensor | None, activation: str, tiles: tuple[int, ...]) -> Tensor:
        """:func:`semi_structured_linear`; ``tiles`` are torch's to choose."""
        return semi_structured_linear(x, self, bias, activation=activation)


def semi_structured_linear(
    x: Tensor, weight: SemiStructuredWeight, bias: Tensor | None = None, *, activation: str = "none"
) -> Tensor:
    """``act(x Wᵀ + b)`` of a 2:4 weight; no gradients.

    Under autocast x and bias are cast to the packed weight's dtype.

    Args:
        x: ``[..., K]``, fp16 or bf16 (fp32 too without a GPU), any strides, any number of rows.
        weight: of x's dtype and on its device.
        bias: ``[N]``.
        activation: ``none``, ``relu`` or ``gelu`` (exact, by erf), by a kernel of its own.

    Returns:
        ``[..., N]`` of x's dtype.

    Raises:
        ValueError: shapes, dtypes or devices do not go together, or x requires a gradient.
    """
    check_activation(activation)
    operand = weight.operand
    x, bias = as_autocast_would(x, bias, packed=operand)
    n, k = operand.shape
    if x.ndim == 0 or x.shape[-1] != k:
        raise ValueError(f"x has to end with {k} features for a weight of {(n, k)}, and is {tuple(x.shape)}")
    if bias is not None and bias.shape != (n,):
        raise ValueError(f"the bias has to be of {(n,)} for a weight of {(n, k)}, and is {tuple(bias.shape)}")
    for name, other in (("the 2:4 weight", operand), ("the bias", bias)):
        if other is not None and (other.dtype != x.dtype or other.device != x.device):
            raise ValueError(f"x is {x.dtype} on {x.device} and {name} {other.dtype} on {other.device}")
    if torch.is_grad_enabled() and x.requires_grad:
        raise ValueError("2:4 is for inference, and x requires a gradient: run it under torch.no_grad()")
    rows = x.reshape(-1, k).contiguous()  # torch's sparse linear takes a view of it
    if weight.is_sparse and rows.shape[0] == 0:
        return x.new_empty(*x.shape[:-1], n)
    with without_autocast(x.device):
        y = F.linear(rows, operand, None if bias is None else bias.detach())
    return activate_reference(y, activation).reshape(*x.shape[:-1], n)


def reference_semi_structured_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none"
) -> Tensor:
    """What :func:`semi_structured_linear` computes, in plain PyTorch, of the dense weight ``[N, K]``."""
    return activate_reference(F.linear(x, weight, bias), activation)


class SemiStructuredLinear(nn.Module):
    """What replaces an ``nn.Linear`` for inference. ``state_dict`` is the dense linear's.

    Moved to another device or cast to another dtype, it packs its weight anew.
    """

    def __init__(self, weight: SemiStructuredWeight, bias: Tensor | None = None, *, activation: str = "none") -> None:
        super().__init__()
        check_activation(activation)
        self.packed, self.activation = weight, activation
        self.register_buffer("bias", bias)

    @classmethod
    def from_linear(cls, linear: nn.Linear, mask: Tensor, *, activation: str = "none") -> SemiStructuredLinear:
        """Pack ``linear`` under a bool ``mask`` of its weight's shape; ``linear`` stays as it is."""
        bias = None if linear.bias is None else linear.bias.detach().clone()
        return cls(SemiStructuredWeight.from_dense(linear.weight, mask), bias, activation=activation)

    def to_linear(self) -> nn.Linear:
        """The dense linear, its weight bit-equal to what was packed (the activation is not part of it)."""
        dense = self.packed.to_dense()
        n, k = dense.shape
        linear = nn.Linear(k, n, bias=self.bias is not None, device=dense.device, dtype=dense.dtype)
        linear.load_state_dict(self.state_dict())
        return linear.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """``act(x Wᵀ + b)``."""
        return semi_structured_linear(x, self.packed, self.bias, activation=self.activation)

    def extra_repr(self) -> str:
        """Shape, and whether torch's sparse product runs."""
        n, k = self.packed.operand.shape
        return f"in_features={k}, out_features={n}, sparse={self.packed.is_sparse}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SemiStructuredLinear:
        self.packed = self.packed.apply(fn)
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.packed.to_dense()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *_: Any) -> None:
        raise RuntimeError("a 2:4 linear takes no other weight: load it into to_linear(), and pack that")


def _check_two_of_four(mask: Tensor) -> None:
    k = mask.shape[1]
    if k % 4:
        raise ValueError(f"K = {k} is no multiple of 4: a mask cannot be 2:4 along it")
    alive = mask.unflatten(1, (-1, 4)).sum(2)
    crowded = (alive > 2).nonzero()
    if len(crowded):
        row, four = crowded[0].tolist()
        raise ValueError(
            f"the mask is not 2:4 along the input dimension: {int(alive[row, four])} of four are alive in row {row}, "
            f"columns {4 * four} to {4 * four + 3}, and {len(crowded)} fours in all have more than two"
        )


def _check_runnable(dense: Tensor) -> None:
    n, k = dense.shape
    if n == 0 or k == 0 or n % SIDE_MULTIPLE or k % SIDE_MULTIPLE:
        raise ValueError(f"N and K of a 2:4 weight have to be multiples of {SIDE_MULTIPLE}, and are {n} and {k}")
    if dense.dtype not in DTYPES and (dense.is_cuda or dense.dtype != torch.float32):
        raise ValueError(
            f"a 2:4 weight on {dense.device} is fp16 or bf16, and this one is {dense.dtype}: cast it first"
        )
    if dense.is_cuda and torch.cuda.get_device_capability(dense.device) < CAPABILITY:
        raise ValueError(
            f"{torch.cuda.get_device_name(dense.device)} has no sparse tensor cores: 2:4 needs sm_80 or newer"
        )
