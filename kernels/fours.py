"""A sparse weight by fours: the first live value of each four and its place, and what is left over row by row.

What few rows multiply has to be unpacked at a few instructions a weight, dead or alive: with a bit for each weight and
a count of the bits before it, that took 12 on an H200, and was slower than dense. Here a lane moves one value to its
place among four with a single shift of 64 bits.

Which four: of each 16 columns, a lane of a tensor core's product holds 2 t, 2 t + 1, 2 t + 8 and 2 t + 9 of a row, for
one t of 0 to 3. Those are a four, and fours lie in memory as four warps hold them, so that on sm_90 a tile is made in
the registers it is multiplied from: Triton finds that nothing has to move (elsewhere it goes through shared memory).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from sparseticket.kernels.launch import ceil_div
from sparseticket.kernels.words import NATIVE

ROWS = tl.constexpr(64)  # of a tile
DEPTH = tl.constexpr(128)  # columns of a tile
UNITS = tl.constexpr(8)  # of a tile's row; each is four fours, whose 16-bit values a lane reads as one int64
PACKED_AT_ONCE = 2**24  # weights, for several times their bytes are in use meanwhile
INTEGERS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}  # of as many bits
WARPS = 4  # for whose registers a tile is ordered; with others the result is the same
_SHIFT = tl.constexpr("{ .reg .b64 four; cvt.u64.u16 four, $4; shl.b64 four, four, $5; mov.b64 {$0,$1,$2,$3}, four; }")


class Fours(NamedTuple):
    """A weight ``[N, K]``, filled up with dead entries to tiles of 64 x 128.

    Attributes:
        leading: the first live value of each four or 0, ``[blocks of rows, tiles of K, 64 * 8 * 4]``; aligned to
            8 bytes, as what torch allocates is.
        positions: uint8 ``[blocks of rows, tiles of K, 64 * 8]``, where they are, 2 bits each from the lowest on.
        rest: all other live values by row and column, and one entry of padding, for an empty tensor has no address.
        columns: int32, theirs.
        starts: int64 ``[N + 1]``, where a row begins in these two.
    """

    leading: Tensor
    positions: Tensor
    rest: Tensor
    columns: Tensor
    starts: Tensor


def pack_fours(weight: Tensor, mask: Tensor) -> Fours:
    """What a bool mask leaves of a weight, both ``[N, K]``."""
    at_once = max(1, PACKED_AT_ONCE // (mask.shape[1] * ROWS.value)) * ROWS.value
    pieces = zip(*map(_pack, weight.split(at_once), mask.split(at_once)), strict=True)
    leading, positions, rest, columns, per_row = map(torch.cat, pieces)
    return Fours(leading, positions, F.pad(rest, (0, 1)), F.pad(columns, (0, 1)), F.pad(per_row.cumsum(0), (1, 0)))


def _pack(weight: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """The same of some blocks of rows, without padding, and with the number that is left over in each row."""
    live = _by_four(mask)
    leads = live & (live.cumsum(-1, dtype=torch.uint8) == 1)
    bits = _by_four(weight.view(INTEGERS[weight.dtype]))
    leading = bits.where(leads, 0).sum(-1, dtype=bits.dtype).view(weight.dtype)  # one term each: as bits, -0.0 stays
    position = (leads * _counting(leads)).sum(-1, dtype=torch.uint8)
    positions = (position << 2 * _counting(position)).sum(-1, dtype=torch.uint8)
    left = mask & ~_by_column(leads, *mask.shape)
    columns = left.nonzero()[:, 1].to(torch.int32)
    return leading.flatten(2), positions.flatten(2), weight[left], columns, left.sum(1)


def unpack_fours(fours: Fours, n: int, k: int) -> Tensor:
    """The weight ``[n, k]``, +0.0 where it is dead."""
    leading, positions, rest, columns, starts = fours
    positions = positions.unsqueeze(-1)
    position = positions >> 2 * _counting(positions) & 3
    spread = leading.unflatten(2, (-1, 4)).unsqueeze(-1)
    spread = spread.where(position.unsqueeze(-1) == _counting(position), 0)
    row = torch.arange(n, device=starts.device).repeat_interleave(starts.diff(), output_size=len(rest) - 1)
    return _by_column(spread, n, k).index_put((row, columns[:-1].long()), rest[:-1])


def check_fours(fours: Fours, n: int, k: int) -> None:
    """Raise ValueError unless these could have been packed from a weight of ``[n, k]``; waits for their device."""
    leading, positions, rest, columns, starts = fours
    blocks, tiles, units = ceil_div(n, ROWS.value), ceil_div(k, DEPTH.value), ROWS.value * UNITS.value
    shapes = (leading.shape, positions.shape, starts.shape)
    if shapes != ((blocks, tiles, 4 * units), (blocks, tiles, units), (n + 1,)) or not len(rest) == len(columns) > 0:
        raise ValueError(f"these arrays are of no weight of {(n, k)}: they are {[tuple(one.shape) for one in fours]}")
    rises = starts[0] == 0 and starts[-1] == len(rest) - 1 and bool((starts.diff() >= 0).all())
    if not rises or int(columns.min()) < 0 or int(columns.max()) >= k:
        raise ValueError(f"these arrays point beyond a weight of {(n, k)}")


def _counting(like: Tensor) -> Tensor:
    """0, 1, 2, 3 along the last dimension."""
    return torch.arange(4, dtype=torch.uint8, device=like.device)


def _by_four(matrix: Tensor) -> Tensor:
    """``[N, K]`` as ``[blocks of rows, tiles of K, 64 * 8, 4, 4]``, filled up with 0; the last dimension is a four."""
    padded = F.pad(matrix, (0, -matrix.shape[1] % DEPTH.value, 0, -matrix.shape[0] % ROWS.value))
    # a block's rows: warp, half, lane; a tile's columns: two units of a lane, four, half, lane, pair
    blocks, tiles = padded.shape[0] // ROWS.value, padded.shape[1] // DEPTH.value
    split = padded.reshape(blocks, 4, 2, 8, tiles, 2, 4, 2, 4, 2).permute(0, 4, 2, 1, 3, 8, 5, 6, 7, 9)
    return split.reshape(blocks, tiles, -1, 4, 4)


def _by_column(fours: Tensor, n: int, k: int) -> Tensor:
    """The other way round, without what was filled up."""
    blocks, tiles = fours.shape[:2]
    split = fours.reshape(blocks, tiles, 2, 4, 8, 4, 2, 4, 2, 2).permute(0, 3, 2, 4, 1, 6, 7, 8, 5, 9)
    return split.reshape(blocks * ROWS.value, tiles * DEPTH.value)[:n, :k]


@triton.jit
def dense_tile(LEADING, POSITIONS, number):
    """The tile ``[64, 128]`` of this number (int64), without what is left over."""
    unit = number * (ROWS * UNITS) + tl.arange(0, ROWS)[:, None] * UNITS + tl.arange(0, UNITS)[None, :]
    positions = tl.load(POSITIONS + unit).to(tl.int32)
    if LEADING.dtype.element_ty.primitive_bitwidth == 16:
        four_values = tl.load(LEADING.to(tl.pointer_type(tl.int64)) + unit)
        a = _shifted(four_values, positions, 0, LEADING.dtype.element_ty)
        b = _shifted(four_values, positions, 1, LEADING.dtype.element_ty)
        c = _shifted(four_values, positions, 2, LEADING.dtype.element_ty)
        d = _shifted(four_values, positions, 3, LEADING.dtype.element_ty)
    else:
        a = _picked(LEADING, unit, positions, 0)
        b = _picked(LEADING, unit, positions, 1)
        c = _picked(LEADING, unit, positions, 2)
        d = _picked(LEADING, unit, positions, 3)
    tile = _joined(
        _joined(a[0], b[0], c[0], d[0]),
        _joined(a[1], b[1], c[1], d[1]),
        _joined(a[2], b[2], c[2], d[2]),
        _joined(a[3], b[3], c[3], d[3]),
    )
    split = tl.reshape(tile, (2, 4, 8, 4, 2, 4, 2, 2))  # half, warp, lane; lane, its units, four, half, pair
    return tl.reshape(tl.permute(split, (1, 0, 2, 4, 5, 6, 3, 7)), (ROWS, DEPTH))


@triton.jit
def _shifted(four_values, positions, WHICH: tl.constexpr, dtype: tl.constexpr):
    """A four of 16-bit values: one of a unit's, at its position."""
    value = (four_values >> (16 * WHICH)).to(tl.int16)
    shift = ((positions >> (2 * WHICH)) & 3) * 16
    if NATIVE:  # Triton's own shifts take every register of two values apart and put it together again
        four = tl.inline_asm_elementwise(
            _SHIFT, "=h,=h,=h,=h,h,r", [value, shift], (tl.int16, tl.int16, tl.int16, tl.int16), is_pure=True, pack=1
        )
    else:
        bits = (value.to(tl.int64) & 0xFFFF) << shift.to(tl.int64)
        four = bits.to(tl.int16), (bits >> 16).to(tl.int16), (bits >> 32).to(tl.int16), (bits >> 48).to(tl.int16)
    return (
        four[0].to(dtype, bitcast=True),
        four[1].to(dtype, bitcast=True),
        four[2].to(dtype, bitcast=True),
        four[3].to(dtype, bitcast=True),
    )


@triton.jit
def _picked(LEADING, unit, positions, WHICH: tl.constexpr):
    """The same of fp32."""
    value = tl.load(LEADING + unit * 4 + WHICH)
    position = (positions >> (2 * WHICH)) & 3
    return (
        tl.where(position == 0, value, 0.0),
        tl.where(position == 1, value, 0.0),
        tl.where(position == 2, value, 0.0),
        tl.where(position == 3, value, 0.0),
    )


@triton.jit
def _joined(a, b, c, d):
    """Four tensors as ``[..., 2, 2]``, the first two at ``[..., 0, :]``."""
    return tl.join(tl.join(a, c), tl.join(b, d))
