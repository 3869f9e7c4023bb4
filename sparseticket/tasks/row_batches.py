"""Batches of rows, made when asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from sparseticket.tasks.base import Batch


class RowBatches(Sequence[Batch]):
    """``make(rows)`` for each part of ``order``, int64 [N], in turn; the last part is short.

    With ``drop_single`` a last part of one row is left out, where others are longer: in training BatchNorm has no
    variance to speak of there. ``in_workers``: see :class:`sparseticket.tasks.base.Task`.
    """

    def __init__(
        self,
        make: Callable[[Tensor], Batch],
        order: Tensor,
        size: int,
        *,
        drop_single: bool = False,
        in_workers: bool = False,
    ) -> None:
        self.make, self.rows, self.in_workers = make, order.split(size), in_workers
        if drop_single and len(self.rows) > 1 and len(self.rows[-1]) == 1 < size:
            self.rows = self.rows[:-1]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        return self.make(self.rows[index])
