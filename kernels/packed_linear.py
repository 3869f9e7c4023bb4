"""A Linear that runs from a packed weight, for inference; several over one input (Q, K and V) run as one product."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseticket.kernels.activation import activate_reference
from sparseticket.kernels.dispatch import DENSE
from sparseticket.kernels.frozen import Frozen
from sparseticket.kernels.fuse import Activation
from sparseticket.kernels.packing import PackedWeight
from sparseticket.kernels.plan import Plan, rows_of
from sparseticket.kernels.versions import version_of


class PackedLinear(Frozen, nn.Linear):
    """One Linear, or the member of several that share a packed weight.

    The first of several holds the weight of all. Whichever is called with a new input computes all, and the others'
    results wait in ``_waiting`` until they are called with the same input.
    """

    def wrap(
        self, members: list[PackedLinear], packed: PackedWeight, plan: Plan, behind: Activation | None = None
    ) -> None:
        """Become one of ``members``, the first of which holds ``packed``: their weights, one below the other.

        ``behind`` is an activation that the kernel computes from now on; what computed it until now is taken away.
        """
        self._members, self._place = tuple(members), members.index(self)
        if self._place > 0:
            return
        self._names, self._plan = list(packed.tensors()), plan
        self._form = packed.with_tensors({name: torch.empty(0) for name in self._names})  # the tensors are buffers
        self._activation = behind.kind if behind else "none"
        self._behind = (behind, behind.take()) if behind else None
        self._sizes, self._waiting = [member.out_features for member in members], []
        for name, tensor in packed.tensors().items():
            self.register_buffer(f"packed_{name}", tensor, persistent=False)
        bias = _joined_bias(members)
        self.register_buffer("packed_bias", None if bias is None else bias.to(packed.dtype), persistent=False)

    def unwrap(self) -> None:
        """Drop what :meth:`wrap` added."""
        if self._place == 0:
            for name in (*self._names, "bias"):
                delattr(self, f"packed_{name}")
            if self._behind:
                behind, function = self._behind
                behind.give_back(function)
            del self._names, self._form, self._plan, self._activation, self._behind, self._sizes, self._waiting
        del self._members, self._place

    def forward(self, x: Tensor) -> Tensor:
        """``act(x Wᵀ + b)``, which has no gradient."""
        self.check_inference()
        return self._members[0]._result(x, self._place)

    def rebuild_weight(self) -> Tensor:
        """The rows of the packed weight that are this member's."""
        first = self._members[0]
        return first._weight().to_dense().split(first._sizes)[self._place].clone()

    def _result(self, x: Tensor, place: int) -> Tensor:
        version = version_of(x)
        for at, (of, then, other, result) in enumerate(self._waiting):
            if of is x and (then, other) == (version, place):
                self._waiting.pop(at)  # remove() would compare tensors where dynamo traces it
                return result
        results = self._compute(x.detach())
        if len(results) > 1:
            self._waiting = [(x, version, other, y) for other, y in enumerate(results) if other != place]
        return results[place]

    def _compute(self, x: Tensor) -> tuple[Tensor, ...]:
        (choice,) = self._plan.at(rows_of(x))
        if choice.kernel != DENSE:
            packed = self._weight()
            y = packed.linear(x.to(packed.dtype), self.packed_bias, self._activation, choice.tiles)
            return y.split(self._sizes, -1) if len(self._sizes) > 1 else (y,)
        weights = (m.weight if m.weight is not None else m.rebuild_weight() for m in self._members)
        pairs = zip(weights, self._members, strict=True)
        plain = ((weight.detach(), None if m.bias is None else m.bias.detach()) for weight, m in pairs)
        return tuple(activate_reference(F.linear(x, weight, bias), self._activation) for weight, bias in plain)

    def _weight(self) -> PackedWeight:
        return self._form.with_tensors({name: self._buffers[f"packed_{name}"] for name in self._names})


def _joined_bias(members: list[PackedLinear]) -> Tensor | None:
    biases = [member.bias for member in members]
    if all(bias is None for bias in biases):
        return None
    like = next(bias for bias in biases if bias is not None).detach()
    pieces = [like.new_zeros(m.out_features) if m.bias is None else m.bias.detach() for m in members]
    return torch.cat(pieces)
