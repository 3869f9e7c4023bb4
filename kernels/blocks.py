"""Which blocks of a weight are alive, as kernels read it: by block row for the forward, by block column for dgrad."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparseticket.kernels.schedule import make_schedule

SIDES = (16, 32, 64, 128)
ARRAYS = ("crow", "col", "row", "ccol", "row_t", "schedule", "schedule_t")


@dataclass(frozen=True)
class BlockLayout:
    """Live blocks of a weight ``[N, K]``. Index arrays are int32; ``col`` and ``row_t`` end with one entry of padding.

    A kernel that loads its block index at the point of use loses its pipelining (shared memory then holds one or two
    tile pairs at any ``num_stages``); so the next index is loaded ahead, one past the end at the last block.

    Attributes:
        shape: ``(N, K)`` of the weight; blocks at the edges may reach beyond it.
        block: ``(BN, BK)``, rows and columns of a block, each 16, 32, 64 or 128.
        crow: ``[ceil(N / BN) + 1]``, where each block row's blocks begin in ``col``.
        col: ``[nnzb + 1]``, block column of each live block, ascending inside a block row.
        row: ``[nnzb]``, block row of each live block in the order of ``col``.
        ccol: ``[ceil(K / BK) + 1]``, where each block column's blocks begin in ``row_t``.
        row_t: ``[nnzb + 1]``, block row of each live block, ascending inside a block column.
        schedule: lists of blocks by row for programs that stay, see :mod:`sparseticket.kernels.schedule`.
        schedule_t: the same by block column.
        whole: every live block is alive in all its entries, so that the layout is the mask.
    """

    shape: tuple[int, int]
    block: tuple[int, int]
    crow: Tensor
    col: Tensor
    row: Tensor
    ccol: Tensor
    row_t: Tensor
    schedule: Tensor
    schedule_t: Tensor
    whole: bool

    @classmethod
    def from_mask(cls, mask: Tensor, block: tuple[int, int]) -> BlockLayout:
        """The layout of a bool mask ``[N, K]``, on its device: a block is alive where anything in it is.

        Raises:
            ValueError: the mask is not bool or not 2-D or empty, or the block's sides are not of 16, 32, 64, 128.
        """
        check_block(block)
        if mask.dtype != torch.bool or mask.ndim != 2 or 0 in mask.shape:
            raise ValueError(f"a layout is made of a 2-D bool mask, not {mask.dtype} of {tuple(mask.shape)}")
        counts = _count_per_block(mask, block)
        alive = counts > 0
        area = _count_per_block(torch.ones_like(mask), block)
        crow, col = _compressed(alive)
        ccol, row_t = _compressed(alive.T)
        row = alive.nonzero()[:, 0].to(torch.int32)
        n, k = mask.shape
        schedules = make_schedule(crow, col), make_schedule(ccol, row_t)
        return cls((n, k), block, crow, col, row, ccol, row_t, *schedules, bool((counts[alive] == area[alive]).all()))

    @property
    def nnzb(self) -> int:
        """How many blocks are alive."""
        return len(self.row)

    @property
    def density(self) -> float:
        """Share of blocks that are alive, 0 to 1."""
        return self.nnzb / ((len(self.crow) - 1) * (len(self.ccol) - 1))

    def to(self, device: torch.device | str) -> BlockLayout:
        """The same on another device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in ARRAYS})

    def dense_mask(self) -> Tensor:
        """The live blocks as a bool mask ``[N, K]``."""
        return expand_blocks(self.row, self.col, self.block, self.shape)


def expand_blocks(row: Tensor, col: Tensor, block: tuple[int, int] | list[int], shape: tuple[int, int]) -> Tensor:
    """The live blocks at ``row`` and ``col`` (without its padding) as a bool mask of ``shape``; edges are cut."""
    (n, k), (block_n, block_k) = shape, block
    alive = torch.zeros(-(-n // block_n), -(-k // block_k), dtype=torch.bool, device=row.device)
    alive[row.long(), col[: row.shape[0]].long()] = True
    return alive.repeat_interleave(block_n, 0)[:n].repeat_interleave(block_k, 1)[:, :k]


def check_block(block: tuple[int, int] | list[int]) -> None:
    """Raise ValueError unless kernels can run blocks of this shape."""
    if len(block) != 2 or any(side not in SIDES for side in block):
        raise ValueError(f"a block's sides are each one of {SIDES}, not {tuple(block)}")


def _count_per_block(mask: Tensor, block: tuple[int, int]) -> Tensor:
    n, k = mask.shape
    padded = torch.nn.functional.pad(mask, (0, -k % block[1], 0, -n % block[0]))
    return padded.reshape(padded.shape[0] // block[0], block[0], -1, block[1]).sum((1, 3))


def _compressed(alive: Tensor) -> tuple[Tensor, Tensor]:
    starts = torch.nn.functional.pad(alive.sum(1).cumsum(0), (1, 0))
    return starts.to(torch.int32), torch.nn.functional.pad(alive.nonzero()[:, 1], (0, 1)).to(torch.int32)
