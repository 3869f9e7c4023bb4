"""Which programs take which blocks of a weight, where programs stay and work through several block rows each.

A program that begins anew for each tile of the result waits for its first loads every time, which takes longer than the
products of two or three blocks. One that stays fetches the next row's blocks while it ends this one; for that it needs
all its blocks in one list. Block rows are dealt to groups, the longest first to the group with the least to do.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

GROUPS = (1, 2, 4, 8, 16)  # for each of these numbers of groups there is a list
RESULT = 0.7  # what storing a row's results costs, in products of a 128 x 128 block: 0.2 µs of 0.3 on an H200
ALIGNED = 16  # entries: every list begins at a multiple, so that Triton compiles one kernel for all


class Groups(NamedTuple):
    """Where the lists of one number of groups begin in a schedule. They are int32.

    Attributes:
        start: ``[groups + 1]``, where each group's entries begin in the other three.
        row: block row of each entry, and -1 behind the last. A row's entries follow each other.
        col: block column of each entry; -1 in a row without blocks, which has one entry all the same.
        place: where the block lies among the packed ones.
    """

    start: int
    row: int
    col: int
    place: int


def make_schedule(start: Tensor, index: Tensor) -> Tensor:
    """All lists in one int32 tensor on the device of ``start``, the compressed rows of ``index``."""
    starts, columns = start.cpu().long(), index.cpu().long()
    counts = starts.diff()
    pieces: list[Tensor] = []
    for groups in GROUPS:
        dealt = _dealt(counts.tolist(), groups)
        rows = torch.tensor([row for group in dealt for row in group])
        entries = counts[rows].clamp(min=1)
        row = rows.repeat_interleave(entries)
        in_row = torch.arange(len(row)) - (entries.cumsum(0) - entries).repeat_interleave(entries)
        place = starts[row] + in_row
        alive = counts[row] > 0
        ends = torch.tensor([len(group) for group in dealt]).cumsum(0)
        begins = F.pad(F.pad(entries.cumsum(0), (1, 0))[ends], (1, 0))
        listed = (row, columns[place].where(alive, -1), place.where(alive, 0))
        pieces += [begins, *(F.pad(of, (0, 1), value=end) for of, end in zip(listed, (-1, 0, 0), strict=True))]
    padded = [F.pad(piece, (0, -len(piece) % ALIGNED)) for piece in pieces]
    return torch.cat(padded).to(start.device, torch.int32)


def groups_of(schedule: Tensor, groups: int) -> Groups:
    """Where the lists of so many groups begin: numbers, for views would take the CPU longer than the launch."""
    heads = [_padded(number + 1) for number in GROUPS]
    length = (schedule.shape[0] - sum(heads)) // (3 * len(GROUPS))
    at = GROUPS.index(groups)
    start = sum(heads[:at]) + 3 * at * length
    row = start + heads[at]
    return Groups(start, row, row + length, row + 2 * length)


def groups_for(row_tiles: int, programs: int) -> int:
    """How many groups of block rows keep about so many programs busy, each with one of ``row_tiles``."""
    return max((groups for groups in GROUPS if groups * row_tiles <= programs), default=GROUPS[0])


def _dealt(counts: list[int], groups: int) -> list[list[int]]:
    """The rows, which have so many blocks, of each group."""
    dealt: list[list[int]] = [[] for _ in range(groups)]
    work = [0.0] * groups
    for row in sorted(range(len(counts)), key=lambda row: -counts[row]):
        least = min(range(groups), key=work.__getitem__)
        work[least] += max(counts[row], 1) + RESULT
        dealt[least].append(row)
    return dealt


def _padded(length: int) -> int:
    return -(-length // ALIGNED) * ALIGNED
