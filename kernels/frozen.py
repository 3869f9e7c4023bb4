"""What modules with a packed weight share: it must not change, it can be dropped, and it comes back bit-equal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

CHANGED = "the weight of a layer that runs packed was changed: call restore(model) first, and use_kernels again after"


class Frozen:
    """Mixed into a subclass of a dense module, to which ``use_kernels`` changed the module's class.

    The subclass holds packed tensors in non-persistent buffers, and says with :meth:`rebuild_weight` what they stand
    for. ``state_dict`` of the module is the dense one's, also where the dense weight was dropped.
    """

    def freeze(self, *, free_dense: bool) -> None:
        """Watch the weight from now on, or drop it."""
        weight = self._parameters["weight"]
        self._frozen_requires_grad = weight.requires_grad
        if free_dense:
            self._parameters["weight"] = None
        else:
            self._frozen_weight = (weight, weight._version)

    def thaw(self) -> None:
        """Give the dense weight back as a parameter, where it was dropped."""
        if self._parameters["weight"] is None:
            weight = nn.Parameter(self.rebuild_weight(), requires_grad=self._frozen_requires_grad)
            self._parameters["weight"] = weight
        for name in ("_frozen_weight", "_frozen_requires_grad"):
            self.__dict__.pop(name, None)

    def rebuild_weight(self) -> Tensor:
        """The dense weight from what is packed, bit-equal."""
        raise NotImplementedError

    def check_unchanged(self) -> None:
        """Raise RuntimeError where the dense weight is no longer what was packed."""
        if torch.compiler.is_compiling() or "_frozen_weight" not in self.__dict__:
            return
        weight, version = self._frozen_weight
        if self._parameters["weight"] is not weight or weight._version != version:
            raise RuntimeError(CHANGED)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if self._parameters["weight"] is None:
            destination[prefix + "weight"] = self.rebuild_weight()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *_: Any) -> None:
        raise RuntimeError(CHANGED)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_frozen_weight" in self.__dict__:  # a copy's weight counts its changes anew
            weight = self._parameters["weight"]
            self._frozen_weight = (weight, weight._version)
