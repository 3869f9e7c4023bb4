"""A Linear that trains block-sparse. ``use_kernels`` makes it by changing a Linear's class, and ``restore`` ends it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseticket.kernels.blocks import ARRAYS, BlockLayout
from sparseticket.kernels.bsr import DENSE_PASS, bsr_linear
from sparseticket.kernels.dispatch import DENSE
from sparseticket.kernels.plan import Plan, rows_of


class BsrLinear(nn.Linear):
    """A Linear with whole live blocks. Its ``weight`` is the dense parameter that it was, whose dead blocks stay 0."""

    def wrap(self, layout: BlockLayout, plan: Plan) -> None:
        """Hold the layout in non-persistent buffers, and the choices of forward, input and weight gradient."""
        for name in ARRAYS:
            self.register_buffer(name, getattr(layout, name), persistent=False)
        self._block, self._plan = layout.block, plan

    def unwrap(self) -> None:
        """Drop what :meth:`wrap` added."""
        for name in ARRAYS:
            delattr(self, name)
        del self._block, self._plan

    def forward(self, x: Tensor) -> Tensor:
        """``x Wᵀ + b``, each pass as the plan says for this number of rows."""
        choices = self._plan.at(rows_of(x))
        if not torch.is_grad_enabled() and choices[0].kernel == DENSE:
            return F.linear(x, self.weight, self.bias)  # with a gradient not, whose dead blocks it would not zero
        arrays = {name: self._buffers[name] for name in ARRAYS}
        layout = BlockLayout((self.out_features, self.in_features), self._block, whole=True, **arrays)
        tiles = tuple(DENSE_PASS if choice.kernel == DENSE else list(choice.tiles) for choice in choices)
        return bsr_linear(x, self.weight, layout, self.bias, tiles=tiles)
