"""Which programs take which blocks of a weight, where programs stay and work through several block rows each.

A program that begins anew for each tile of the result waits for its first loads every time, which takes longer than the
products of two or three blocks. One that stays fetches the next row's blocks while it ends this one; for that it needs
all its blocks in one list. Block rows are dealt to groups, the longest first to the group with the least to do.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

GROUPS = (1, 2, 4, 8, 16)  # for each of these numbers of groups there is a list
RESULT = 0.7  # what storing a row's results costs, in products of a 128 x 128 block: 0.2 µs of 0.3 on an H200
ALIGNED = 4  # int32 entries in 16 bytes


class Groups(NamedTuple):
    """The lists of one number of groups, int32.

    Attributes:
        start: ``[groups + 1]``, where each group's entries begin.
        row: block row of each entry, and -1 behind the last. A row's entries follow each other.
        col: block column of each entry; -1 in a row without blocks, which has one entry all the same.
        place: where the block lies among the packed ones.
    """

    start: Tensor
    row: Tensor
    col: Tensor
    place: Tensor


def make_schedule(start: Tensor, index: Tensor) -> Tensor:
    """All lists in one int32 tensor on the device of ``start``, the compressed rows of ``index``."""
    starts, columns = start.tolist(), index.tolist()
    rows = list(zip(range(len(starts) - 1), starts, starts[1:], strict=False))
    pieces: list[list[int]] = []
    for groups in GROUPS:
        entries: list[tuple[int, int, int]] = []
        begins = [0]
        for group in _dealt(rows, groups):
            for row, begin, end in group:
                entries += [(row, columns[at], at) for at in range(begin, end)] or [(row, -1, 0)]
            begins.append(len(entries))
        pieces += [begins, *map(list, zip(*entries, (-1, 0, 0), strict=True))]
    flat = [number for piece in pieces for number in piece + [0] * (-len(piece) % ALIGNED)]
    return torch.tensor(flat, dtype=torch.int32, device=start.device)


def groups_of(schedule: Tensor, groups: int) -> Groups:
    """The lists of so many groups, as views that begin at 16 bytes."""
    heads = [_padded(number + 1) for number in GROUPS]
    length = (len(schedule) - sum(heads)) // (3 * len(GROUPS))
    at = GROUPS.index(groups)
    begin = sum(heads[:at]) + 3 * at * length
    return Groups(*schedule[begin : begin + heads[at] + 3 * length].split([heads[at], *[length] * 3]))


def groups_for(row_tiles: int, programs: int) -> int:
    """How many groups of block rows keep about so many programs busy, each with one of ``row_tiles``."""
    return max((groups for groups in GROUPS if groups * row_tiles <= programs), default=GROUPS[0])


def _dealt(rows: list[tuple[int, int, int]], groups: int) -> list[list[tuple[int, int, int]]]:
    dealt: list[list[tuple[int, int, int]]] = [[] for _ in range(groups)]
    work = [0.0] * groups
    for row, begin, end in sorted(rows, key=lambda row: row[1] - row[2]):
        least = min(range(groups), key=work.__getitem__)
        work[least] += max(end - begin, 1) + RESULT
        dealt[least].append((row, begin, end))
    return dealt


def _padded(length: int) -> int:
    return -(-length // ALIGNED) * ALIGNED
