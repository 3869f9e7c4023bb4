"""What modules with a packed weight share: it must not change, it can be dropped, and it comes back bit-equal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparseticket.kernels.versions import version_of

TRAINING = "this layer runs packed, for inference: call model.eval(), or restore(model) to train it"
CHANGED = "weight or bias of a layer that runs packed was changed: call restore(model) first, use_kernels again after"


class Frozen:
    """Mixed into a subclass of a dense module, to which ``use_kernels`` changed the module's class.

    The subclass holds packed tensors in non-persistent buffers, and says with :meth:`rebuild_weight` what they stand
    for. ``state_dict`` of the module is the dense one's, also where the dense weight was dropped.
    """

    def freeze(self, *, free_dense: bool) -> None:
        """Watch weight and bias from now on; or drop the weight."""
        weight = self._parameters["weight"]
        self._frozen_requires_grad = weight.requires_grad
        if free_dense:
            self._parameters["weight"] = None
        self._watch()

    def thaw(self) -> None:
        """Give the dense weight back as a parameter, where it was dropped."""
        if self._parameters["weight"] is None:
            with torch.inference_mode(False):
                weight = nn.Parameter(self.rebuild_weight().clone(), requires_grad=self._frozen_requires_grad)
            self._parameters["weight"] = weight
        del self._frozen, self._frozen_requires_grad

    def rebuild_weight(self) -> Tensor:
        """The dense weight from what is packed, bit-equal."""
        raise NotImplementedError

    def check_inference(self) -> None:
        """Raise RuntimeError in training mode, or where weight or bias were changed."""
        if self.training:
            raise RuntimeError(TRAINING)
        self.check_unchanged()

    def check_unchanged(self) -> None:
        """Raise RuntimeError where weight or bias are no longer what was packed.

        Not seen are edits of ``.data``, and any in compiled code.
        """
        if torch.compiler.is_compiling():
            return
        for name, parameter, version in self._frozen:
            if self._parameters[name] is not parameter or (parameter is not None and version_of(parameter) != version):
                raise RuntimeError(CHANGED)

    def _watch(self) -> None:
        self._frozen = [(name, p, None if p is None else version_of(p)) for name, p in self._parameters.items()]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if self._parameters["weight"] is None:
            destination[prefix + "weight"] = self.rebuild_weight()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *_: Any) -> None:
        raise RuntimeError(CHANGED)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._watch()  # a copy's parameters count their changes anew
