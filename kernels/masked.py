"""Linear under a packed mask: ``y = act(x (m ⊙ W)ᵀ + b)``, W stored dense, the mask applied as W is loaded.

For the cases where dead values must survive: several masks over one weight, scores trained straight through. **Where
the mask is fixed, use zeros in place instead**: the forward is then plain cuBLAS, which this does not beat. What it
saves is the product ``m ⊙ W``, which ``torch.nn.utils.prune`` writes, reads and keeps for the backward.

The mask is int32 words ``[N, ceil(K / 32)]`` (:func:`sparseticket.kernels.words.pack_words`). Forward and input
gradient are one kernel, which makes the transposed result: a masked W is then the left operand of the product, which
Hopper's tensor cores take from registers; as the right one it would go through shared memory and stall each of them.
The weight gradient is a plain product, over whose dead entries a second kernel writes zeros without reading them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from sparseticket.kernels.activation import (
    activate,
    activate_and_keep,
    activate_reference,
    check_activation,
    linear_gradients,
)
from sparseticket.kernels.bsr import Tiles
from sparseticket.kernels.launch import as_autocast_would, ceil_div, fp32_precision, runs_kernel, wrap_triton
from sparseticket.kernels.operands import check_linear
from sparseticket.kernels.operators import operator
from sparseticket.kernels.words import BITS, pack_words, unpack_words


@triton.jit
def masked_matmul_kernel(
    A,  # [M, R]
    W,  # the weight [N, K]
    WORDS,  # its mask [N, ceil(K / 32)]
    C,  # [M, O]
    BIAS,
    PRE,  # what went into the activation, [M, O], where a gradient will need it
    m_size,
    o_size,
    r_size,
    words_a_row,
    stride_am,
    stride_ar,
    stride_wo,
    stride_wr,
    TILE_M: tl.constexpr,
    TILE_O: tl.constexpr,
    TILE_R: tl.constexpr,
    K_IS_SUMMED: tl.constexpr,  # forward: O is N and R is K; input gradient: O is K and R is N
    EVEN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    KEEP_PRE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``C[m, o] = act(Σ_r A[m, r] (m ⊙ W)[o, r] + bias[o])`` for one tile of M and O, computed as its transpose."""
    m = tl.program_id(0) * TILE_M + tl.arange(0, TILE_M)
    o = tl.program_id(1) * TILE_O + tl.arange(0, TILE_O)
    r_in_tile = tl.arange(0, TILE_R)
    bit = tl.arange(0, 32)
    a_columns = A + m[None, :].to(tl.int64) * stride_am
    w_rows = W + o[:, None].to(tl.int64) * stride_wo
    acc = tl.zeros((TILE_O, TILE_M), dtype=tl.float32)
    for begin in range(0, r_size, TILE_R):
        r = begin + r_in_tile
        a_live = (m < m_size)[None, :]
        if not EVEN:
            a_live = a_live & (r < r_size)[:, None]
        a = tl.load(a_columns + r[:, None].to(tl.int64) * stride_ar, mask=a_live, other=0.0)
        w_tile = w_rows + r[None, :].to(tl.int64) * stride_wr
        if K_IS_SUMMED:
            row = o
            word = begin // 32 + tl.arange(0, TILE_R // 32)
            word_tile = WORDS + row[:, None].to(tl.int64) * words_a_row + word[None, :]
            word_live = (row < o_size)[:, None] & (word < words_a_row)[None, :]
        else:
            word = tl.program_id(1) * (TILE_O // 32) + tl.arange(0, TILE_O // 32)
            word_tile = WORDS + r[None, :].to(tl.int64) * words_a_row + word[:, None]
            word_live = (r < r_size)[None, :] & (word < words_a_row)[:, None]
        if EVEN:
            w = tl.load(w_tile)
            words = tl.load(word_tile)
        else:
            w = tl.load(w_tile, mask=(o < o_size)[:, None] & (r < r_size)[None, :], other=0.0)
            words = tl.load(word_tile, mask=word_live, other=0)
        if K_IS_SUMMED:
            alive = tl.reshape(words[:, :, None] >> bit[None, None, :] & 1, (TILE_O, TILE_R))
        else:
            alive = tl.reshape(words[:, None, :] >> bit[None, :, None] & 1, (TILE_O, TILE_R))
        acc = tl.dot(tl.where(alive != 0, w, 0.0).to(w.dtype), a, acc, input_precision=PRECISION)
    if HAS_BIAS:
        acc += tl.load(BIAS + o, mask=o < o_size, other=0.0).to(tl.float32)[:, None]
    place = m[None, :].to(tl.int64) * o_size + o[:, None]
    live = (m < m_size)[None, :] & (o < o_size)[:, None]
    if KEEP_PRE:
        tl.store(PRE + place, acc.to(PRE.dtype.element_ty), mask=live)
    tl.store(C + place, activate(acc, ACTIVATION).to(C.dtype.element_ty), mask=live)


@triton.jit
def zero_dead_kernel(
    GRAD,  # [N, K], contiguous
    WORDS,
    n_size,
    k_size,
    words_a_row,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
):
    """Write 0 where the mask is dead, over one tile; nothing of the gradient is read."""
    n = tl.program_id(0) * TILE_N + tl.arange(0, TILE_N)
    k = tl.program_id(1) * TILE_K + tl.arange(0, TILE_K)
    inside = (n < n_size)[:, None] & (k < k_size)[None, :]
    words = tl.load(WORDS + n[:, None].to(tl.int64) * words_a_row + k[None, :] // 32, mask=inside, other=-1)
    dead = inside & ((words >> (k % 32)[None, :] & 1) == 0)
    zero = tl.zeros((TILE_N, TILE_K), dtype=GRAD.dtype.element_ty)
    tl.store(GRAD + n[:, None].to(tl.int64) * k_size + k[None, :], zero, mask=dead)


def default_tiles(m: int, dtype: torch.dtype) -> Tiles:
    """Tiles of forward and input gradient that run on every GPU (at most 99 KB of shared memory).

    Whichever of ``out`` (forward: rows of W; input gradient: its columns) and ``reduce`` runs along K is a multiple of
    32, so that a tile holds whole words.
    """
    rows = 16 if m <= 16 else 32 if m <= 32 else 64 if m <= 512 else 128
    if dtype == torch.float32:
        return Tiles(min(rows, 64), 64, 32, 4, 3)
    return Tiles(rows, 128, 64, 8 if rows >= 64 else 4, 3)


def candidate_tiles(dtype: torch.dtype) -> list[Tiles]:
    """What is worth measuring, for either pass and any M."""
    size = torch.finfo(dtype).bits // 8
    found = []
    for rows, out, reduce in ((16, 64, 128), (16, 128, 64), (64, 64, 64), (64, 128, 64), (128, 128, 64), (128, 64, 64)):
        reduce = reduce * 2 // size
        for stages in (3, 4):
            found.append(Tiles(rows, out, reduce, 8 if rows * out >= 64 * 128 else 4, stages))
    return found


def _launch_product(
    a: Tensor,
    weight: Tensor,
    words: Tensor,
    bias: Tensor | None,
    tiles: list[int],
    *,
    transposed: bool = False,
    activation: str = "none",
    keep_pre: bool = False,
) -> tuple[Tensor, Tensor]:
    """``a (m ⊙ W)ᵀ + b``, or ``a (m ⊙ W)`` where ``transposed``; and what went into the activation."""
    rows, out, reduce, warps, stages = tiles
    if out % BITS or reduce % BITS:
        raise ValueError(
            f"tiles {tiles} do not hold whole words of the mask: make the second and third multiples of 32"
        )
    o, r = weight.shape[::-1] if transposed else weight.shape
    stride_o, stride_r = weight.stride()[::-1] if transposed else weight.stride()
    m = a.shape[0]
    c = a.new_empty(m, o)
    pre = torch.empty_like(c) if keep_pre else a.new_empty(0)
    if c.numel() == 0:
        return c, pre
    bias = None if bias is None else bias.contiguous()
    wrap_triton(masked_matmul_kernel)[(ceil_div(m, rows), ceil_div(o, out))](
        a, weight, words, c, bias if bias is not None else c, pre,
        m, o, r, words.shape[1], a.stride(0), a.stride(1), stride_o, stride_r,
        TILE_M=rows, TILE_O=out, TILE_R=reduce, K_IS_SUMMED=not transposed, EVEN=o % out == 0 and r % reduce == 0,
        HAS_BIAS=bias is not None, KEEP_PRE=keep_pre, ACTIVATION=activation, PRECISION=fp32_precision(),
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return c, pre


def reference_masked_linear(
    x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """What :func:`masked_linear` computes, in plain PyTorch, from a bool mask ``[N, K]``."""
    return activate_reference(F.linear(x, weight.masked_fill(~mask, 0), bias), activation)


def _live(weight: Tensor, words: Tensor) -> Tensor:
    return weight.masked_fill(~unpack_words(words, weight.shape[1]), 0)


@operator("masked_linear")
def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    words: Tensor,
    activation: str,
    keep_pre: bool,
    dense_grad: bool,
    tiles: list[int],
) -> tuple[Tensor, Tensor]:
    if runs_kernel(x):
        return _launch_product(x, weight, words, bias, tiles, activation=activation, keep_pre=keep_pre)
    return activate_and_keep(F.linear(x, _live(weight, words), bias), activation, keep_pre)


@operator("masked_linear_dgrad")
def _dgrad(dy: Tensor, weight: Tensor, words: Tensor, tiles: list[int]) -> Tensor:
    if runs_kernel(dy):
        return _launch_product(dy, weight, words, None, tiles, transposed=True)[0]
    return dy @ _live(weight, words)


@operator("masked_linear_wgrad")
def _wgrad(dy: Tensor, x: Tensor, words: Tensor) -> Tensor:
    grad = dy.T @ x
    if not runs_kernel(dy):
        return _live(grad, words)
    n, k = grad.shape
    if grad.numel():
        wrap_triton(zero_dead_kernel)[(ceil_div(n, 16), ceil_div(k, 128))](
            grad, words, n, k, words.shape[1], TILE_N=16, TILE_K=128, num_warps=4
        )
    return grad


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, words, activation, _, dense_grad, tiles = inputs
    needs_x, needs_weight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None, words, output[1])
    ctx.set_materialize_grads(False)
    ctx.activation, ctx.dense_grad, ctx.tiles = activation, dense_grad, tiles


def _backward(ctx: torch.autograd.function.FunctionCtx, dy: Tensor | None, _: Tensor | None) -> tuple:
    x, weight, words, pre = ctx.saved_tensors
    gradients = linear_gradients(
        dy, pre, ctx.activation, ctx.needs_input_grad[:3],
        lambda dy: _dgrad(dy, weight, words, ctx.tiles),
        lambda dy: dy.T @ x if ctx.dense_grad else _wgrad(dy, x, words),
    )  # fmt: skip
    return *gradients, *[None] * 5


_forward.register_autograd(_backward, setup_context=_setup_context)


def masked_linear(
    x: Tensor,
    weight: Tensor,
    words: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    dense_grad: bool = False,
    tiles: list[int] | None = None,
) -> Tensor:
    """``act(x (m ⊙ W)ᵀ + b)``; differentiable in ``x``, ``weight`` and ``bias``. Under autocast as ``F.linear``.

    Args:
        x: ``[..., K]``, fp16, bf16 or fp32, any strides.
        weight: ``[N, K]``, any strides. Its dead values are kept, and do not count, whatever they are.
        words: the mask, int32 ``[N, ceil(K / 32)]`` of :func:`~sparseticket.kernels.words.pack_words`.
        bias: ``[N]``.
        activation: ``none``, ``relu`` or ``gelu`` (exact, by erf).
        dense_grad: give dead weights the gradient that they would have if they were alive (of the product ``m ⊙ W``,
            straight through the mask), as methods that score or regrow them need; times W it is the gradient of
            scores (Ramanujan et al., "What's Hidden in a Randomly Weighted Neural Network?", section 3). Otherwise the
            gradient of a dead weight is exactly 0.
        tiles: of forward and input gradient, as :meth:`Tiles.as_ints`; without them, :func:`default_tiles`.

    Returns:
        ``[..., N]`` of x's dtype, accumulated in fp32.

    Raises:
        ValueError: shapes, dtypes or devices do not go together.
    """
    check_activation(activation)
    x, weight, bias = as_autocast_would(x, weight, bias)
    _check(x, weight, words, bias)
    rows = x.reshape(-1, x.shape[-1])
    keep_pre = activation != "none" and torch.is_grad_enabled()
    y, _ = _forward(
        rows, weight, bias, words.contiguous(), activation, keep_pre, dense_grad,
        tiles or default_tiles(rows.shape[0], x.dtype).as_ints(),
    )  # fmt: skip
    return y.reshape(*x.shape[:-1], weight.shape[0])


def _check(x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None) -> None:
    if weight.ndim != 2:
        raise ValueError(f"a linear's weight is of two dimensions, and this is {tuple(weight.shape)}")
    n, k = weight.shape
    needed = (n, -(-k // BITS))
    if words.dtype != torch.int32 or words.shape != needed:
        raise ValueError(
            f"the mask of a weight of {(n, k)} is int32 words {needed} (pack_words), not {words.dtype} of "
            f"{tuple(words.shape)}"
        )
    check_linear(x, (n, k), bias, index=words, weight=weight)


class MaskedLinear(torch.nn.Linear):
    """A linear under a mask that can be changed: ``weight`` and ``bias`` as ever, and the buffer ``mask_words``.

    The words are saved with the module, for here the mask cannot be read from the weights. The arguments are those of
    ``nn.Linear`` and :func:`masked_linear`; everything is alive at first.
    """

    mask_words: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "none",
        dense_grad: bool = False,
    ) -> None:
        check_activation(activation)
        super().__init__(in_features, out_features, bias, device, dtype)
        self.activation, self.dense_grad = activation, dense_grad
        alive = torch.ones(out_features, in_features, dtype=torch.bool, device=device)
        self.register_buffer("mask_words", pack_words(alive))

    @classmethod
    def from_linear(
        cls, linear: torch.nn.Linear, mask: Tensor, *, activation: str = "none", dense_grad: bool = False
    ) -> MaskedLinear:
        """``linear`` under a bool mask ``[N, K]``. It shares its parameters, so several can mask one weight.

        Raises:
            ValueError: the mask does not fit.
        """
        made = cls(
            linear.in_features, linear.out_features, linear.bias is not None, "meta",
            activation=activation, dense_grad=dense_grad,
        )  # fmt: skip
        made.weight, made.bias = linear.weight, linear.bias
        made.mask_words = torch.empty_like(made.mask_words, device=linear.weight.device)
        made.set_mask(mask)
        return made

    def set_mask(self, mask: Tensor) -> None:
        """Put a bool mask ``[N, K]`` in the place of the one before; captured CUDA graphs see it.

        Raises:
            ValueError: the mask does not fit.
        """
        if mask.shape != self.weight.shape:
            raise ValueError(f"a mask of {tuple(mask.shape)} does not fit a weight of {tuple(self.weight.shape)}")
        self.mask_words.copy_(pack_words(mask))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., K]`` to ``[..., N]``."""
        return masked_linear(
            x, self.weight, self.mask_words, self.bias, activation=self.activation, dense_grad=self.dense_grad
        )
