"""One launch over many tensors: a table of their int64 addresses on the device, a program for each chunk of each.

BERT-base has about 200 parameters, most of them small. Triton's dispatch costs about 11 µs, so a launch for each would
take 2.2 ms of the CPU a step, twice what the GPU needs for the bytes; and in a CUDA graph the gaps between 200 nodes
still cost about a third of it. With a table a step is one launch for each group of settings and dtypes. It is uploaded
anew only where an address changed (gradients, after ``zero_grad``), from pinned memory, so the CPU never waits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparseticket.kernels.launch import on_device_of
from sparseticket.kernels.words import BITS

ALIGNMENT = 16  # bytes of the widest load
TABLES_KEPT = 16
OWNERS_KEPT = 64


@dataclass(frozen=True)
class Chunking:
    """Entries that a program handles (a multiple of 32), and its warps."""

    chunk: int = 1024
    num_warps: int = 4


def candidates() -> list[Chunking]:
    """Configurations worth timing."""
    chunks = (512, 1024, 2048, 4096)  # with over 512 a warp, live-only AdamW spills on sm_90
    return [Chunking(chunk, warps) for chunk in chunks for warps in (4, 8) if 128 <= chunk // warps <= 512]


@dataclass(frozen=True)
class TensorTable:
    """What a launch is given: ``rows`` int64 ``[tensors, 2 + columns]``, ``owners`` int32, a row for each program.

    A row holds the number of entries, the number of its first program, and an address for each column (0 for none).
    """

    rows: Tensor
    owners: Tensor
    hosts: tuple[Tensor, Tensor]  # what they were copied from: a captured CUDA graph copies it again at every replay


@dataclass(frozen=True)
class Launch:
    """Tensors that one launch takes together.

    Attributes:
        dtypes: Triton's dtype of each column.
        even: every address is aligned to 16 bytes and every size a multiple of 32, so that loads may be wide.
    """

    table: TensorTable
    dtypes: tuple[tl.dtype, ...]
    even: bool

    @property
    def programs(self) -> int:
        """Size of the grid."""
        return len(self.table.owners)

    def run(self, kernel: Any, *arguments: object, chunking: Chunking) -> None:
        """Launch: the table, ``arguments``, and the constants that end every such kernel's list, CHUNK and EVEN."""
        with on_device_of(self.table.rows):
            kernel[(self.programs,)](
                self.table.rows, self.table.owners, *arguments, chunking.chunk, self.even, num_warps=chunking.num_warps
            )


_kept: OrderedDict[tuple, list[Launch]] = OrderedDict()
_owners: OrderedDict[tuple, tuple[Tensor, Tensor]] = OrderedDict()  # by sizes alone, and by far the larger upload
_captured: list[list[Launch]] = []  # a CUDA graph reads their tables for as long as it lives


def launches(columns: Sequence[Sequence[Tensor]], chunk: int) -> list[Launch]:
    """The launches over ``columns``, lists of equally many tensors on one device; one without entries stands for none.

    The first column says how many entries each has; those without any are left out.
    """
    device = columns[0][0].device
    sizes = tuple(tensor.numel() for tensor in columns[0])
    addresses = tuple(tensor.data_ptr() for column in columns for tensor in column)  # 0 for no entries
    dtypes = tuple(tensor.dtype for column in columns for tensor in column)
    key = (chunk, device, sizes, addresses, dtypes)
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if key in _kept:  # what is in a table follows from its key, so that a graph may read it too
        _kept.move_to_end(key)
        found = _kept[key]
    else:
        found = _launches(sizes, torch.tensor(addresses).reshape(len(columns), -1), dtypes, chunk, device, capturing)
    if capturing:
        _captured.append(found)
    elif key not in _kept:
        _kept[key] = found
        if len(_kept) > TABLES_KEPT:
            _kept.popitem(last=False)
    return found


def _launches(
    sizes: tuple[int, ...],
    addresses: Tensor,
    dtypes: tuple[torch.dtype, ...],
    chunk: int,
    device: torch.device,
    capturing: bool,
) -> list[Launch]:
    """``addresses`` are int64 ``[columns, tensors]``, and ``dtypes`` theirs in that order."""
    odd = (addresses % ALIGNMENT != 0).any(0).tolist()
    together: dict[tuple, list[int]] = {}
    for place, size in enumerate(sizes):
        if size:
            kind = (not odd[place] and size % BITS == 0, dtypes[place :: len(sizes)])
            together.setdefault(kind, []).append(place)
    made = []
    for (even, kinds), members in together.items():
        names = tuple(getattr(tl, str(dtype).removeprefix("torch.")) for dtype in kinds)
        table = _table(
            tuple(sizes[place] for place in members), addresses[:, members].T, chunk, device, capturing=capturing
        )
        made.append(Launch(table, names, even))
    return made


def _table(
    sizes: tuple[int, ...], addresses: Tensor, chunk: int, device: torch.device, *, capturing: bool
) -> TensorTable:
    counts = torch.tensor([-(-size // chunk) for size in sizes])
    starts = counts.cumsum(0) - counts
    rows, host = _uploaded(torch.cat([torch.tensor(sizes)[:, None], starts[:, None], addresses], 1), device)
    key = (sizes, chunk, device)
    owners = _owners.get(key) or _uploaded(_owners_of(counts), device)
    if not capturing:  # nothing is in what a capture uploads until its graph is replayed
        _owners[key] = owners
        _owners.move_to_end(key)
        if len(_owners) > OWNERS_KEPT:
            _owners.popitem(last=False)
    return TensorTable(rows, owners[0], (host, owners[1]))


def _owners_of(counts: Tensor) -> Tensor:
    """The row of each program."""
    return torch.arange(len(counts), dtype=torch.int32).repeat_interleave(counts)


def _uploaded(host: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """On the device, and what it is copied from: pinned, so that the CPU need not wait and a CUDA graph can hold it."""
    if device.type == "cuda":
        host = host.pin_memory()
    return host.to(device, non_blocking=True), host


@triton.jit
def find_chunk(rows, owners, COLUMNS: tl.constexpr, CHUNK: tl.constexpr):
    """Row of the table that the program reads, size of the tensor, and where the chunk begins in it (int64)."""
    program = tl.program_id(0)
    row = rows + tl.load(owners + program).to(tl.int64) * (COLUMNS + 2)
    return row, tl.load(row), (program - tl.load(row + 1)) * CHUNK


@triton.jit
def column(row, PLACE: tl.constexpr, DTYPE: tl.constexpr, EVEN: tl.constexpr):
    """Address in a column of the row, as a pointer; a hint lets its loads be wide."""
    pointer = tl.load(row + 2 + PLACE).to(tl.pointer_type(DTYPE), bitcast=True)
    return tl.multiple_of(pointer, 16) if EVEN else pointer


@triton.jit
def step_scaling(size, lr, lr_tensor, grad_scale, found_inf):
    """Learning rate, what gradients are multiplied by, and the size of the tensor, 0 where there is no step."""
    if lr_tensor is not None:
        lr = tl.load(lr_tensor).to(tl.float32)
    unscale = 1.0
    if grad_scale is not None:
        unscale = 1.0 / tl.load(grad_scale).to(tl.float32)
    if found_inf is not None:
        size = tl.where(tl.load(found_inf) == 0, size, 0)
    return lr, unscale, size


@triton.jit
def words_of(row, PLACE: tl.constexpr, size):
    """How many entries have bits in the column of the words: ``size``, or 0 where the column is empty."""
    return tl.where(tl.load(row + 2 + PLACE) != 0, size, 0)


@triton.jit
def live_entries(row, WORDS: tl.constexpr, start, size, CHUNK: tl.constexpr, EVEN: tl.constexpr):
    """Offsets ``[CHUNK / 8, 8]``, which of them are alive, and which to touch. ``WORDS`` is the column of the words.

    Touched are whole groups of eight with a live entry: 32 bytes of fp32, the least that memory moves. Where sizes are
    even that is one predicate for eight entries, which leaves their loads 16 bytes wide.
    """
    group = start // 8 + tl.arange(0, CHUNK // 8)
    bits = tl.arange(0, 8)
    offsets = group[:, None] * 8 + bits[None, :]
    inside = group * 8 < size
    words = column(row, WORDS, tl.uint8, False)
    byte = tl.load(words + group, mask=group * 8 < words_of(row, WORDS, size), other=255).to(tl.int32)
    alive = (byte[:, None] >> bits[None, :]) & 1 != 0
    touched = tl.broadcast_to(((byte != 0) & inside)[:, None], alive.shape)
    return offsets, alive, touched if EVEN else touched & (offsets < size)
