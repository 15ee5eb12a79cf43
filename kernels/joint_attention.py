"""Joint attention of two token streams: each token attends to all latent and all condition tokens (MMDiT, VI-A).

B batch, L latent tokens, C condition tokens, N tokens of one stream, H heads, D head width. QKV come packed, as their
projections leave them.

The Triton version never concatenates the streams. Every launch holds both: its first programs take the latents, the
others the conditions. A prologue norms and rotates the keys into one buffer, for each head in a row, as the inner loop
wants them (backward the queries as well); values are read where the projection left them; queries are normed and
rotated in registers. Backward, the gradients at rotated queries and keys pass back through rotation and norm in
registers and go straight into the packed gradient. The rotation works on a head's halves, which are joined for the
products. Online softmax and recomputation from the log-sum-exp after Dao (2023, FlashAttention-2).
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention import attention
from .device import capability, on_tensor_device, triton_op, wrap_triton
from .qk_norm_rope import EPS, norm_rotate, qk_norm_rope
from .tiles import AttentionTiles, Tiles, attention_tiles


@dataclass(frozen=True)
class StreamInput:
    """One stream's share of a joint attention."""

    qkv: Tensor  # (B, N, 3, H, D)
    q_norm: Tensor  # (D,)
    k_norm: Tensor  # (D,)
    cos: Tensor  # (N, D/2) float32
    sin: Tensor  # (N, D/2) float32

    def rotated(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys with norm and rotation applied, and values, each (B, N, H, D)."""
        q, k, v = self.qkv.unbind(2)
        return qk_norm_rope(q, self.q_norm, self.cos, self.sin), qk_norm_rope(k, self.k_norm, self.cos, self.sin), v

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.qkv, self.q_norm, self.k_norm, self.cos, self.sin


def joint_attention(
    latent: StreamInput, condition: StreamInput, condition_length: Tensor | None
) -> tuple[Tensor, Tensor]:
    """-> (latent output (B, L, H·D), condition output (B, C, H·D)).

    `condition_length` (B,) counts each sample's condition tokens; those past it are not attended to, and what they
    themselves receive is not defined further. None means that no condition token is padding.
    """
    n_latent = latent.qkv.shape[1]
    if torch.compiler.is_compiling():  # which makes norms and rotations part of the copies
        pairs = zip(latent.rotated(), condition.rotated(), strict=True)
        q, k, v = (torch.cat(pair, dim=1).transpose(1, 2) for pair in pairs)  # (B, H, L+C, D)
    else:
        q, k, v = _rotated_together(latent, condition)
    length = None if condition_length is None else n_latent + condition_length
    out = attention(q, k, v, length)  # (B, H, L+C, D)
    x, c = out.split((n_latent, out.shape[2] - n_latent), dim=2)
    return x.transpose(1, 2).flatten(2).contiguous(), c.transpose(1, 2).flatten(2).contiguous()


def _rotated_together(latent: StreamInput, condition: StreamInput) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, H, L+C, D). Norm and rotation, a dozen operations, are computed once for queries and
    keys of both streams."""
    streams = latent, condition
    qk, v = torch.cat([s.qkv for s in streams], dim=1).permute(2, 0, 3, 1, 4).split((2, 1))  # (·, B, H, L+C, D)
    norms = [torch.stack((s.q_norm, s.k_norm))[:, None].expand(-1, s.qkv.shape[1], -1) for s in streams]  # (2, N, D)
    cos, sin = torch.cat([s.cos for s in streams]), torch.cat([s.sin for s in streams])  # (L+C, D/2)
    q, k = norm_rotate(qk, torch.cat(norms, dim=1)[:, None, None], cos, sin)
    return q, k, v[0]


def joint_attention_triton(
    latent: StreamInput, condition: StreamInput, condition_length: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`joint_attention` without a concatenation or a mask. Condition tokens past their length receive zeros, and tiles
    that hold nothing else are not computed. Raises ValueError for heads that the kernels cannot compute."""
    B, C = condition.qkv.shape[:2]
    if error := head_error(latent.qkv.shape[-1]):
        raise ValueError(f"joint attention with Triton {error}")
    if condition_length is None:
        condition_length = torch.full((B,), C, device=latent.qkv.device)
    x, c, _ = _joint_attention(*latent.tensors(), *condition.tensors(), condition_length.to(torch.int32))
    return x, c


# ---- kernels. Pointers into QKV: token n of sample b has its queries of head h at ((b·N + n)·3·H + h)·D, its keys H·D
# behind them, its values 2·H·D. Rotated queries and keys are (B·H, L + C, D), latents first.


@triton.jit
def _norm_rotate(x1, x2, weight, cos, sin, n, inside, eps, D: tl.constexpr):
    """Halves (tile, D/2) in float32 of raw queries or keys at tokens n -> the rotated halves."""
    half = tl.arange(0, D // 2)
    r = tl.rsqrt((tl.sum(x1 * x1, 1) + tl.sum(x2 * x2, 1)) / D + eps)[:, None]
    y1 = x1 * r * tl.load(weight + half).to(tl.float32)[None, :]
    y2 = x2 * r * tl.load(weight + D // 2 + half).to(tl.float32)[None, :]
    table = n[:, None] * (D // 2) + half[None, :]
    c = tl.load(cos + table, mask=inside[:, None], other=1.0)
    s = tl.load(sin + table, mask=inside[:, None], other=0.0)
    return y1 * c - y2 * s, y1 * s + y2 * c


@triton.jit
def _norm_rotate_backward(x1, x2, d1, d2, weight, cos, sin, n, inside, eps, D: tl.constexpr):
    """Raw halves and the gradients at the rotated ones -> gradients at the raw halves; the weight's, (D/2,) twice."""
    half = tl.arange(0, D // 2)
    table = n[:, None] * (D // 2) + half[None, :]
    c = tl.load(cos + table, mask=inside[:, None], other=1.0)
    s = tl.load(sin + table, mask=inside[:, None], other=0.0)
    e1, e2 = d1 * c + d2 * s, d2 * c - d1 * s  # the rotation by the opposite angle
    r = tl.rsqrt((tl.sum(x1 * x1, 1) + tl.sum(x2 * x2, 1)) / D + eps)[:, None]
    w1, w2 = tl.sum(e1 * x1 * r, 0), tl.sum(e2 * x2 * r, 0)
    h1 = e1 * tl.load(weight + half).to(tl.float32)[None, :]
    h2 = e2 * tl.load(weight + D // 2 + half).to(tl.float32)[None, :]
    along = ((tl.sum(h1 * x1, 1) + tl.sum(h2 * x2, 1)) / D)[:, None] * r * r
    return r * (h1 - x1 * along), r * (h2 - x2 * along), w1, w2


@triton.jit
def _load_halves(pointer, n, stride, inside, D: tl.constexpr):
    """Rows n of a (·, D) array, `stride` apart, as two halves (tile, D/2)."""
    place = n[:, None] * stride + tl.arange(0, D // 2)[None, :]
    x1 = tl.load(pointer + place, mask=inside[:, None], other=0.0)
    x2 = tl.load(pointer + place + D // 2, mask=inside[:, None], other=0.0)
    return x1, x2


@triton.jit
def _store_halves(pointer, x1, x2, n, stride, inside, D: tl.constexpr):
    place = n[:, None] * stride + tl.arange(0, D // 2)[None, :]
    tl.store(pointer + place, x1.to(pointer.dtype.element_ty), mask=inside[:, None])
    tl.store(pointer + place + D // 2, x2.to(pointer.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _dot(a, b, acc, PRECISION: tl.constexpr):
    """a·b (+ acc) in float32. Triton's interpreter has no product of bfloat16: "upcast" is for it."""
    if PRECISION == "upcast":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def _tile(L, C, length, ROWS: tl.constexpr):
    """Of this program: whether its tokens are latents, which they are, how many its stream has, and how many of them
    are no padding."""
    tile, of_latents = tl.program_id(0), tl.cdiv(L, ROWS)
    latent = tile < of_latents
    start = tl.where(latent, tile, tile - of_latents) * ROWS
    return latent, start, tl.where(latent, L, C), tl.where(latent, L, length)


@triton.jit
def _rotate(
    qkv_x, q_norm_x, k_norm_x, cos_x, sin_x, qkv_c, q_norm_c, k_norm_c, cos_c, sin_c, rotated, L, C, H,
    scale: tl.constexpr, eps: tl.constexpr, TILE: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Prologue: rotated (planes, B·H, L + C, D) gets the keys, and in a second plane, if there is one, the queries
    times `scale`."""
    bh = tl.program_id(1).to(tl.int64)
    b, h = bh // H, bh % H
    latent, start, N, _ = _tile(L, C, C, TILE)
    plane = tl.program_id(2)
    keys = plane == 0
    n = start + tl.arange(0, TILE)
    inside = n < N
    raw = ((b * N * 3 + tl.where(keys, 1, 0)) * H + h) * D
    x1, x2 = _load_halves(tl.where(latent, qkv_x, qkv_c) + raw, n, 3 * H * D, inside, D)
    weight = tl.where(keys, tl.where(latent, k_norm_x, k_norm_c), tl.where(latent, q_norm_x, q_norm_c))
    cos, sin = tl.where(latent, cos_x, cos_c), tl.where(latent, sin_x, sin_c)
    y1, y2 = _norm_rotate(x1.to(tl.float32), x2.to(tl.float32), weight, cos, sin, n, inside, eps, D)
    factor = tl.where(keys, 1.0, scale)
    row = (plane * tl.num_programs(1) + bh) * (L + C) + tl.where(latent, 0, L)
    _store_halves(rotated + row * D, y1 * factor, y2 * factor, n, D, inside, D)


@triton.jit
def _join(x1, x2, ROWS: tl.constexpr, D: tl.constexpr):
    """Two halves (ROWS, D/2) -> (ROWS, D)."""
    return tl.reshape(tl.permute(tl.join(x1, x2), (0, 2, 1)), (ROWS, D))


@triton.jit
def _split(x, ROWS: tl.constexpr, D: tl.constexpr):
    """(ROWS, D) -> its two halves (ROWS, D/2)."""
    return tl.split(tl.permute(tl.reshape(x, (ROWS, 2, D // 2)), (0, 2, 1)))


@triton.jit
def _load(pointer, n, stride, inside, MASK: tl.constexpr, D: tl.constexpr):
    """Rows n of a (·, D) array, `stride` apart: (tile, D). Without MASK all of them are there."""
    place = pointer + n[:, None] * stride + tl.arange(0, D)[None, :]
    if MASK:
        rows = tl.load(place, mask=inside[:, None], other=0.0)
    else:
        rows = tl.load(place)
    return rows


@triton.jit
def _softmax_step(
    acc, top, sum_, q, k, v, start, length, stride,
    MASK: tl.constexpr, PRECISION: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    n = start + tl.arange(0, KEYS)
    inside = n < length
    s = _dot(q, tl.trans(_load(k, n, D, inside, MASK, D)), None, PRECISION)
    if MASK:
        s = tl.where(inside[None, :], s, float("-inf"))
    new = tl.maximum(top, tl.max(s, 1))
    p = tl.exp2(s - new[:, None])
    fade = tl.exp2(top - new)
    values = _load(v, n, stride, inside, MASK, D)
    acc = _dot(p.to(values.dtype), values, acc * fade[:, None], PRECISION)
    return acc, new, sum_ * fade + tl.sum(p, 1)


@triton.jit
def _attend(acc, top, sum_, q, k, v, length, stride, PRECISION: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr):
    """Online softmax of a tile of queries over one stream's first `length` keys. k (N, D) rotated, v rows `stride`
    apart; acc (tile, D), top and sum_ (tile,) run on. Queries hold the factor log2(e)/sqrt(D). Only the last tile of
    keys can lack some."""
    full = length // KEYS * KEYS
    for start in range(0, full, KEYS):
        acc, top, sum_ = _softmax_step(acc, top, sum_, q, k, v, start, length, stride, False, PRECISION, KEYS, D)
    if full < length:
        acc, top, sum_ = _softmax_step(acc, top, sum_, q, k, v, full, length, stride, True, PRECISION, KEYS, D)
    return acc, top, sum_


@triton.jit
def _forward(
    qkv_x, weight_x, cos_x, sin_x, out_x, qkv_c, weight_c, cos_c, sin_c, out_c, lengths, k, lse, L, C, H,
    scale: tl.constexpr, eps: tl.constexpr,
    PRECISION: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head. out_x (B, L, H·D), out_c (B, C, H·D), lse (B·H, L + C)."""
    bh = tl.program_id(1).to(tl.int64)
    b, h = bh // H, bh % H
    length = tl.load(lengths + b)
    latent, start, N, limit = _tile(L, C, length, QUERIES)
    n = start + tl.arange(0, QUERIES)
    inside = n < N
    acc = tl.zeros((QUERIES, D), tl.float32)
    top = tl.full((QUERIES,), -1e30, tl.float32)
    sum_ = tl.zeros((QUERIES,), tl.float32)
    row = bh * (L + C)
    if start < limit:
        raw = tl.where(latent, qkv_x, qkv_c) + (b * N * 3 * H + h) * D
        weight = tl.where(latent, weight_x, weight_c)
        cos, sin = tl.where(latent, cos_x, cos_c), tl.where(latent, sin_x, sin_c)
        x1, x2 = _load_halves(raw, n, 3 * H * D, inside, D)
        y1, y2 = _norm_rotate(x1.to(tl.float32), x2.to(tl.float32), weight, cos, sin, n, inside, eps, D)
        q = _join((y1 * scale).to(x1.dtype), (y2 * scale).to(x2.dtype), QUERIES, D)
        keys = k + row * D
        stride = 3 * H * D
        values = qkv_x + ((b * L * 3 + 2) * H + h) * D
        acc, top, sum_ = _attend(acc, top, sum_, q, keys, values, L, stride, PRECISION, KEYS, D)
        values = qkv_c + ((b * C * 3 + 2) * H + h) * D
        acc, top, sum_ = _attend(acc, top, sum_, q, keys + L * D, values, length, stride, PRECISION, KEYS, D)
        acc = tl.where((n < limit)[:, None], acc / sum_[:, None], 0.0)
    out = tl.where(latent, out_x, out_c)
    place = ((b * N + n) * H + h)[:, None] * D + tl.arange(0, D)[None, :]
    tl.store(out + place, acc.to(out.dtype.element_ty), mask=inside[:, None])
    tl.store(lse + row + tl.where(latent, 0, L) + n, top + tl.log2(tl.maximum(sum_, 1e-30)), mask=inside)


@triton.jit
def _inner(out_x, dout_x, out_c, dout_c, delta, L, C, H, TILE: tl.constexpr, D: tl.constexpr):
    """Computes delta (B·H, L + C) = sum over D of out·dout."""
    bh = tl.program_id(1).to(tl.int64)
    latent, start, N, _ = _tile(L, C, C, TILE)
    n = start + tl.arange(0, TILE)
    inside = n < N
    place = ((bh // H * N + n) * H + bh % H)[:, None] * D + tl.arange(0, D)[None, :]
    a = tl.load(tl.where(latent, out_x, out_c) + place, mask=inside[:, None], other=0.0).to(tl.float32)
    b = tl.load(tl.where(latent, dout_x, dout_c) + place, mask=inside[:, None], other=0.0).to(tl.float32)
    tl.store(delta + bh * (L + C) + tl.where(latent, 0, L) + n, tl.sum(a * b, 1), mask=inside)


@triton.jit
def _queries_step(
    dq, q, do, lse, delta, k, v, start, length, stride,
    MASK: tl.constexpr, PRECISION: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    n = start + tl.arange(0, KEYS)
    inside = n < length
    keys = _load(k, n, D, inside, MASK, D)
    p = tl.exp2(_dot(q, tl.trans(keys), None, PRECISION) - lse[:, None])
    if MASK:
        p = tl.where(inside[None, :], p, 0.0)
    dp = _dot(do, tl.trans(_load(v, n, stride, inside, MASK, D)), None, PRECISION)
    return _dot((p * (dp - delta[:, None])).to(keys.dtype), keys, dq, PRECISION)


@triton.jit
def _queries_of(
    dq, q, do, lse, delta, k, v, length, stride,
    PRECISION: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Gradient at a tile of rotated queries from one stream's keys, as in `_attend`; without the factor 1/sqrt(D)."""
    full = length // KEYS * KEYS
    for start in range(0, full, KEYS):
        dq = _queries_step(dq, q, do, lse, delta, k, v, start, length, stride, False, PRECISION, KEYS, D)
    if full < length:
        dq = _queries_step(dq, q, do, lse, delta, k, v, full, length, stride, True, PRECISION, KEYS, D)
    return dq


@triton.jit
def _backward_queries(
    qkv_x, weight_x, cos_x, sin_x, dout_x, dqkv_x, qkv_c, weight_c, cos_c, sin_c, dout_c, dqkv_c, dweight, lengths,
    q, k, lse, delta, L, C, H, root: tl.constexpr, eps: tl.constexpr,
    PRECISION: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Gradient at one tile of raw queries of one head, arguments as in `_forward`; q rotated, with the factor that
    scores have; root is 1/sqrt(D). dweight (tiles, B·H, D): this tile's share of the norm weight's gradient."""
    bh = tl.program_id(1).to(tl.int64)
    b, h = bh // H, bh % H
    length = tl.load(lengths + b)
    latent, start, N, limit = _tile(L, C, length, QUERIES)
    n = start + tl.arange(0, QUERIES)
    inside = n < limit
    dq = tl.zeros((QUERIES, D), tl.float32)
    if start < limit:
        row = bh * (L + C)
        mine = row + tl.where(latent, 0, L)
        queries = _load(q + mine * D, n, D, inside, True, D)
        do = _load(tl.where(latent, dout_x, dout_c) + (b * N * H + h) * D, n, H * D, inside, True, D)
        lse_ = tl.load(lse + mine + n, mask=inside, other=float("inf"))  # so that nothing is attended to
        delta_ = tl.load(delta + mine + n, mask=inside, other=0.0)
        keys = k + row * D
        stride = 3 * H * D
        values = qkv_x + ((b * L * 3 + 2) * H + h) * D
        dq = _queries_of(dq, queries, do, lse_, delta_, keys, values, L, stride, PRECISION, KEYS, D)
        keys += L * D
        values = qkv_c + ((b * C * 3 + 2) * H + h) * D
        dq = _queries_of(dq, queries, do, lse_, delta_, keys, values, length, stride, PRECISION, KEYS, D)
    raw = (b * N * 3 * H + h) * D
    x1, x2 = _load_halves(tl.where(latent, qkv_x, qkv_c) + raw, n, 3 * H * D, inside, D)
    x1, x2 = x1.to(tl.float32), x2.to(tl.float32)
    dq1, dq2 = _split(dq * root, QUERIES, D)
    weight = tl.where(latent, weight_x, weight_c)
    cos, sin = tl.where(latent, cos_x, cos_c), tl.where(latent, sin_x, sin_c)
    g1, g2, w1, w2 = _norm_rotate_backward(x1, x2, dq1, dq2, weight, cos, sin, n, inside, eps, D)
    g1, g2 = tl.where(inside[:, None], g1, 0.0), tl.where(inside[:, None], g2, 0.0)
    _store_halves(tl.where(latent, dqkv_x, dqkv_c) + raw, g1, g2, n, 3 * H * D, n < N, D)
    share = dweight + (tl.program_id(0) * tl.num_programs(1) + bh) * D + tl.arange(0, D // 2)
    tl.store(share, w1)
    tl.store(share + D // 2, w2)


@triton.jit
def _keys_step(
    dk, dv, k, values, q, dout, lse, delta, start, length, stride,
    MASK: tl.constexpr, PRECISION: tl.constexpr, QUERIES: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    n = start + tl.arange(0, QUERIES)
    asked = n < length
    queries = _load(q, n, D, asked, MASK, D)
    do = _load(dout, n, stride, asked, MASK, D)
    if MASK:
        lse_ = tl.load(lse + n, mask=asked, other=float("inf"))
        delta_ = tl.load(delta + n, mask=asked, other=0.0)
    else:
        lse_, delta_ = tl.load(lse + n), tl.load(delta + n)
    p = tl.exp2(_dot(k, tl.trans(queries), None, PRECISION) - lse_[None, :])  # (KEYS, QUERIES)
    dv = _dot(p.to(do.dtype), do, dv, PRECISION)
    dp = _dot(values, tl.trans(do), None, PRECISION)
    dk = _dot((p * (dp - delta_[None, :])).to(queries.dtype), queries, dk, PRECISION)
    return dk, dv


@triton.jit
def _keys_of(
    dk, dv, k, values, q, dout, lse, delta, length, stride,
    PRECISION: tl.constexpr, QUERIES: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Gradients at a tile of rotated keys and of values from one stream's first `length` queries; q (N, D) rotated,
    with the factor log2(e)/sqrt(D), rows of dout `stride` apart. Scores are (keys, queries), so that no product needs
    them transposed. The keys' gradient has a factor log2(e) too much."""
    full = length // QUERIES * QUERIES
    for start in range(0, full, QUERIES):
        dk, dv = _keys_step(dk, dv, k, values, q, dout, lse, delta, start, length, stride, False, PRECISION, QUERIES, D)
    if full < length:
        dk, dv = _keys_step(dk, dv, k, values, q, dout, lse, delta, full, length, stride, True, PRECISION, QUERIES, D)
    return dk, dv


@triton.jit
def _backward_keys(
    qkv_x, weight_x, cos_x, sin_x, dout_x, dqkv_x, qkv_c, weight_c, cos_c, sin_c, dout_c, dqkv_c, dweight, lengths,
    q, k, lse, delta, L, C, H, factor: tl.constexpr, eps: tl.constexpr,
    PRECISION: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Gradients at one tile of raw keys and of values of one head, arguments as in `_backward_queries`; factor is
    1/log2(e)."""
    bh = tl.program_id(1).to(tl.int64)
    b, h = bh // H, bh % H
    length = tl.load(lengths + b)
    latent, start, N, limit = _tile(L, C, length, KEYS)
    n = start + tl.arange(0, KEYS)
    inside = n < limit
    qkv = tl.where(latent, qkv_x, qkv_c) + ((b * N * 3 + 1) * H + h) * D
    dk = tl.zeros((KEYS, D), tl.float32)
    dv = tl.zeros((KEYS, D), tl.float32)
    if start < limit:
        row = bh * (L + C)
        keys = _load(k + (row + tl.where(latent, 0, L)) * D, n, D, inside, True, D)
        values = _load(qkv + H * D, n, 3 * H * D, inside, True, D)
        rows = H * D
        dout = dout_x + (b * L * H + h) * D
        dk, dv = _keys_of(
            dk, dv, keys, values, q + row * D, dout, lse + row, delta + row, L, rows, PRECISION, QUERIES, D
        )
        row += L
        dout = dout_c + (b * C * H + h) * D
        dk, dv = _keys_of(
            dk, dv, keys, values, q + row * D, dout, lse + row, delta + row, length, rows, PRECISION, QUERIES, D
        )
    # Rows that are padding had scores of 0, and gradients from them.
    dk, dv = tl.where(inside[:, None], dk * factor, 0.0), tl.where(inside[:, None], dv, 0.0)
    dqkv = tl.where(latent, dqkv_x, dqkv_c) + ((b * N * 3 + 1) * H + h) * D
    place = n[:, None] * (3 * H * D) + H * D + tl.arange(0, D)[None, :]
    tl.store(dqkv + place, dv.to(dqkv.dtype.element_ty), mask=(n < N)[:, None])
    x1, x2 = _load_halves(qkv, n, 3 * H * D, inside, D)
    x1, x2 = x1.to(tl.float32), x2.to(tl.float32)
    dk1, dk2 = _split(dk, KEYS, D)
    weight = tl.where(latent, weight_x, weight_c)
    cos, sin = tl.where(latent, cos_x, cos_c), tl.where(latent, sin_x, sin_c)
    g1, g2, w1, w2 = _norm_rotate_backward(x1, x2, dk1, dk2, weight, cos, sin, n, inside, eps, D)
    g1, g2 = tl.where(inside[:, None], g1, 0.0), tl.where(inside[:, None], g2, 0.0)
    _store_halves(dqkv, g1, g2, n, 3 * H * D, n < N, D)
    share = dweight + (tl.program_id(0) * tl.num_programs(1) + bh) * D + tl.arange(0, D // 2)
    tl.store(share, w1)
    tl.store(share + D // 2, w2)


# ---- host. torch finds the kernels of an operator in functions that stand above it.


LOG2_E = 1.4426950408889634
MIN_HEAD = 32  # tests compile no narrower ones
ROTATED = 64  # tokens of a program that rotates


def head_error(head: int) -> str:
    """The reason why the Triton kernels cannot have heads of this width; empty if they can."""
    if head < MIN_HEAD or head & (head - 1):
        return f"needs heads whose width is a power of two, at least {MIN_HEAD}, not {head}"
    return ""


@dataclass(frozen=True)
class _Shapes:
    """The sizes of the two streams that every launch needs."""

    B: int
    L: int
    C: int
    H: int
    D: int
    dtype: torch.dtype

    @classmethod
    def from_tensors(cls, qkv_x: Tensor, qkv_c: Tensor) -> "_Shapes":
        B, L, _, H, D = qkv_x.shape
        return cls(B, L, qkv_c.shape[1], H, D, qkv_x.dtype)

    @property
    def common(self) -> tuple[int, int, int]:
        return self.L, self.C, self.H

    @property
    def root(self) -> float:
        return self.D**-0.5

    @property
    def scale(self) -> float:
        return self.D**-0.5 * LOG2_E  # powers of two are what the hardware computes

    @property
    def precision(self) -> str:
        if triton.knobs.runtime.interpret and self.dtype == torch.bfloat16:
            return "upcast"
        return "ieee" if self.dtype == torch.float32 else "tf32"

    def grid(self, rows: int) -> tuple[int, int]:
        """Programs of `rows` tokens each: the latents', then the conditions'; for each head."""
        return triton.cdiv(self.L, rows) + triton.cdiv(self.C, rows), self.B * self.H

    def tiles(self, device: torch.device) -> AttentionTiles:
        return attention_tiles(self.D, self.dtype, capability(device))

    def rotated(self, like: Tensor, planes: int) -> Tensor:
        return like.new_empty((planes, self.B * self.H, self.L + self.C, self.D))

    def constants(self, tiles: Tiles) -> dict[str, Any]:
        return {
            "PRECISION": self.precision, "QUERIES": tiles.queries, "KEYS": tiles.keys, "D": self.D,
            "num_warps": tiles.num_warps, "num_stages": tiles.num_stages,
        }  # fmt: skip


def launch_forward(
    qkv_x: Tensor, q_norm_x: Tensor, k_norm_x: Tensor, cos_x: Tensor, sin_x: Tensor,
    qkv_c: Tensor, q_norm_c: Tensor, k_norm_c: Tensor, cos_c: Tensor, sin_c: Tensor, lengths: Tensor, tiles: Tiles,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    qkv_x, qkv_c = qkv_x.contiguous(), qkv_c.contiguous()
    shapes = _Shapes.from_tensors(qkv_x, qkv_c)
    (k,) = rotated = shapes.rotated(qkv_x, 1)
    wrap_triton(_rotate)[(*shapes.grid(ROTATED), 1)](
        qkv_x, q_norm_x, k_norm_x, cos_x, sin_x, qkv_c, q_norm_c, k_norm_c, cos_c, sin_c, rotated, *shapes.common,
        shapes.scale, EPS, TILE=ROTATED, D=shapes.D,
    )  # fmt: skip
    out_x, out_c = (qkv_x.new_empty((shapes.B, N, shapes.H * shapes.D)) for N in (shapes.L, shapes.C))
    lse = qkv_x.new_empty(k.shape[:2], dtype=torch.float32)
    wrap_triton(_forward)[shapes.grid(tiles.queries)](
        qkv_x, q_norm_x, cos_x, sin_x, out_x, qkv_c, q_norm_c, cos_c, sin_c, out_c, lengths, k, lse, *shapes.common,
        shapes.scale, EPS, **shapes.constants(tiles),
    )  # fmt: skip
    return out_x, out_c, lse


@triton_op("audiox_trainer::joint_attention")
@on_tensor_device
def _joint_attention(
    qkv_x: Tensor, q_norm_x: Tensor, k_norm_x: Tensor, cos_x: Tensor, sin_x: Tensor,
    qkv_c: Tensor, q_norm_c: Tensor, k_norm_c: Tensor, cos_c: Tensor, sin_c: Tensor, lengths: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """-> the two outputs, and the base 2 log-sum-exp (B·H, L + C) of each query's scores for the backward pass."""
    tiles = _Shapes.from_tensors(qkv_x, qkv_c).tiles(qkv_x.device)
    return launch_forward(
        qkv_x, q_norm_x, k_norm_x, cos_x, sin_x, qkv_c, q_norm_c, k_norm_c, cos_c, sin_c, lengths, tiles.forward
    )


@_joint_attention.register_fake
def _(
    qkv_x: Tensor, q_norm_x: Tensor, k_norm_x: Tensor, cos_x: Tensor, sin_x: Tensor,
    qkv_c: Tensor, q_norm_c: Tensor, k_norm_c: Tensor, cos_c: Tensor, sin_c: Tensor, lengths: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    shapes = _Shapes.from_tensors(qkv_x, qkv_c)
    x, c = (qkv_x.new_empty((shapes.B, N, shapes.H * shapes.D)) for N in (shapes.L, shapes.C))
    return x, c, qkv_x.new_empty((shapes.B * shapes.H, shapes.L + shapes.C), dtype=torch.float32)


def launch_backward(
    qkv_x: Tensor, q_norm_x: Tensor, k_norm_x: Tensor, cos_x: Tensor, sin_x: Tensor,
    qkv_c: Tensor, q_norm_c: Tensor, k_norm_c: Tensor, cos_c: Tensor, sin_c: Tensor, lengths: Tensor,
    out_x: Tensor, out_c: Tensor, lse: Tensor, dout_x: Tensor, dout_c: Tensor, tiles: AttentionTiles,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    qkv_x, qkv_c, dout_x, dout_c = (t.contiguous() for t in (qkv_x, qkv_c, dout_x, dout_c))
    shapes = _Shapes.from_tensors(qkv_x, qkv_c)
    of_queries, of_keys = tiles.queries, tiles.keys
    k, q = rotated = shapes.rotated(qkv_x, 2)
    wrap_triton(_rotate)[(*shapes.grid(ROTATED), 2)](
        qkv_x, q_norm_x, k_norm_x, cos_x, sin_x, qkv_c, q_norm_c, k_norm_c, cos_c, sin_c, rotated, *shapes.common,
        shapes.scale, EPS, TILE=ROTATED, D=shapes.D,
    )  # fmt: skip
    delta = torch.empty_like(lse)
    wrap_triton(_inner)[shapes.grid(ROTATED)](
        out_x, dout_x, out_c, dout_c, delta, *shapes.common, TILE=ROTATED, D=shapes.D
    )
    dqkv_x, dqkv_c = torch.empty_like(qkv_x), torch.empty_like(qkv_c)
    grid_q, grid_k = shapes.grid(of_queries.queries), shapes.grid(of_keys.keys)
    dq_norm, dk_norm = (qkv_x.new_empty((*grid, shapes.D), dtype=torch.float32) for grid in (grid_q, grid_k))
    wrap_triton(_backward_queries)[grid_q](
        qkv_x, q_norm_x, cos_x, sin_x, dout_x, dqkv_x, qkv_c, q_norm_c, cos_c, sin_c, dout_c, dqkv_c, dq_norm, lengths,
        q, k, lse, delta, *shapes.common, shapes.root, EPS, **shapes.constants(of_queries),
    )  # fmt: skip
    wrap_triton(_backward_keys)[grid_k](
        qkv_x, k_norm_x, cos_x, sin_x, dout_x, dqkv_x, qkv_c, k_norm_c, cos_c, sin_c, dout_c, dqkv_c, dk_norm, lengths,
        q, k, lse, delta, *shapes.common, 1 / LOG2_E, EPS, **shapes.constants(of_keys),
    )  # fmt: skip
    norms = []
    for shares, rows in ((dq_norm, of_queries.queries), (dk_norm, of_keys.keys)):
        counts = [triton.cdiv(N, rows) for N in (shapes.L, shapes.C)]
        norms += [share.sum((0, 1)).to(q_norm_x.dtype) for share in shares.split(counts)]
    return dqkv_x, norms[0], norms[2], dqkv_c, norms[1], norms[3]


@triton_op("audiox_trainer::joint_attention_backward")
@on_tensor_device
def _joint_attention_backward(
    qkv_x: Tensor, q_norm_x: Tensor, k_norm_x: Tensor, cos_x: Tensor, sin_x: Tensor,
    qkv_c: Tensor, q_norm_c: Tensor, k_norm_c: Tensor, cos_c: Tensor, sin_c: Tensor, lengths: Tensor,
    out_x: Tensor, out_c: Tensor, lse: Tensor, dout_x: Tensor, dout_c: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """-> the gradients at qkv, q_norm and k_norm of the latent, then of the condition stream."""
    tiles = _Shapes.from_tensors(qkv_x, qkv_c).tiles(qkv_x.device)
    return launch_backward(
        qkv_x, q_norm_x, k_norm_x, cos_x, sin_x, qkv_c, q_norm_c, k_norm_c, cos_c, sin_c, lengths,
        out_x, out_c, lse, dout_x, dout_c, tiles,
    )  # fmt: skip


@_joint_attention_backward.register_fake
def _(
    qkv_x: Tensor, q_norm_x: Tensor, k_norm_x: Tensor, cos_x: Tensor, sin_x: Tensor,
    qkv_c: Tensor, q_norm_c: Tensor, k_norm_c: Tensor, cos_c: Tensor, sin_c: Tensor, lengths: Tensor,
    out_x: Tensor, out_c: Tensor, lse: Tensor, dout_x: Tensor, dout_c: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    x, q_x, k_x, c, q_c, k_c = (t.new_empty(t.shape) for t in (qkv_x, q_norm_x, k_norm_x, qkv_c, q_norm_c, k_norm_c))
    return x, q_x, k_x, c, q_c, k_c


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _gradients(ctx: Any, dout_x: Tensor, dout_c: Tensor, _lse: Tensor) -> tuple[Tensor | None, ...]:
    x, q_x, k_x, c, q_c, k_c = _joint_attention_backward(*ctx.saved_tensors, dout_x, dout_c)
    return x, q_x, k_x, None, None, c, q_c, k_c, None, None, None


_joint_attention.register_autograd(_gradients, setup_context=_save)
