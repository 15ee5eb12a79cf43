"""Joint attention of two token streams: each token attends to all latent and all condition tokens (MMDiT, VI-A).

B batch, L latent tokens, C condition tokens, N tokens of one stream, H heads, D head width. QKV come packed, as their
projections leave them.

The Triton version never concatenates the streams. A prologue norms and rotates the keys of both into one buffer, for
each head in a row, as the inner loop wants them (backward the queries as well); values are read where the projection
left them; queries are normed and rotated in registers. Backward, the gradients at rotated queries and keys pass back
through rotation and norm in registers and go straight into the packed gradient. Online softmax and recomputation from
the log-sum-exp after Dao (2023, FlashAttention-2).
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention import attention
from .device import on_tensor_device
from .qk_norm_rope import EPS, qk_norm_rope


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
    streams = [s.rotated() for s in (latent, condition)]
    q, k, v = (torch.cat([s[i] for s in streams], dim=1).transpose(1, 2) for i in range(3))  # (B, H, L+C, D)
    n_latent = latent.qkv.shape[1]
    length = None if condition_length is None else n_latent + condition_length
    out = attention(q, k, v, length)
    out = out.transpose(1, 2).flatten(2)  # (B, L+C, H·D)
    return out[:, :n_latent].contiguous(), out[:, n_latent:].contiguous()


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
# behind them, its values 2·H·D. Rotated queries and keys are (B·H, L + C, D), latents first. A head's two halves are
# kept apart throughout, since the rotation pairs them.


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
def _rotate(qkv, which, weight, cos, sin, rotated, N, first, total, H, eps, TILE: tl.constexpr, D: tl.constexpr):
    """Prologue of one stream: its queries (which 0) or keys (1) to rows first.. of rotated (B·H, total, D)."""
    bh = tl.program_id(1).to(tl.int64)
    b, h = bh // H, bh % H
    n = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = n < N
    x1, x2 = _load_halves(qkv + ((b * N * 3 + which) * H + h) * D, n, 3 * H * D, inside, D)
    y1, y2 = _norm_rotate(x1.to(tl.float32), x2.to(tl.float32), weight, cos, sin, n, inside, eps, D)
    _store_halves(rotated + (bh * total + first) * D, y1, y2, n, D, inside, D)


@triton.jit
def _attend(acc, top, sum_, q1, q2, k, v, length, stride, PRECISION: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr):
    """Online softmax of a tile of queries over one stream's first `length` keys. k (N, D) rotated, v rows `stride`
    apart; acc (tile, D), top and sum_ (tile,) run on. Queries hold the factor log2(e)/sqrt(D)."""
    for start in range(0, length, KEYS):
        n = start + tl.arange(0, KEYS)
        inside = n < length
        k1, k2 = _load_halves(k, n, D, inside, D)
        s = _dot(q1, tl.trans(k1), None, PRECISION)
        s = _dot(q2, tl.trans(k2), s, PRECISION)
        s = tl.where(inside[None, :], s, float("-inf"))
        new = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - new[:, None])
        fade = tl.exp2(top - new)
        values = tl.load(v + n[:, None] * stride + tl.arange(0, D)[None, :], mask=inside[:, None], other=0.0)
        acc = _dot(p.to(values.dtype), values, acc * fade[:, None], PRECISION)
        sum_ = sum_ * fade + tl.sum(p, 1)
        top = new
    return acc, top, sum_


@triton.jit
def _forward(
    qkv, weight, cos, sin, out, N, first, lengths, CUT: tl.constexpr,
    k, qkv_x, qkv_c, lse, L, C, H, scale, eps,
    PRECISION: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head. The first line is the queries' stream (CUT: its tokens past `lengths` are
    padding), whose rows of lse (B·H, L + C) begin at `first`; out (B, N, H·D)."""
    bh = tl.program_id(1).to(tl.int64)
    b, h = bh // H, bh % H
    length = tl.load(lengths + b)
    n = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    inside = n < N
    acc = tl.zeros((QUERIES, D), tl.float32)
    top = tl.full((QUERIES,), -1e30, tl.float32)
    sum_ = tl.zeros((QUERIES,), tl.float32)
    limit = N
    if CUT:
        limit = length
    if tl.program_id(0) * QUERIES < limit:
        x1, x2 = _load_halves(qkv + (b * N * 3 * H + h) * D, n, 3 * H * D, inside, D)
        y1, y2 = _norm_rotate(x1.to(tl.float32), x2.to(tl.float32), weight, cos, sin, n, inside, eps, D)
        q1, q2 = (y1 * scale).to(x1.dtype), (y2 * scale).to(x2.dtype)
        keys = k + bh * (L + C) * D
        stride = 3 * H * D
        values = qkv_x + ((b * L * 3 + 2) * H + h) * D
        acc, top, sum_ = _attend(acc, top, sum_, q1, q2, keys, values, L, stride, PRECISION, KEYS, D)
        values = qkv_c + ((b * C * 3 + 2) * H + h) * D
        acc, top, sum_ = _attend(acc, top, sum_, q1, q2, keys + L * D, values, length, stride, PRECISION, KEYS, D)
        acc = tl.where((n < limit)[:, None], acc / sum_[:, None], 0.0)
    place = ((b * N + n) * H + h)[:, None] * D + tl.arange(0, D)[None, :]
    tl.store(out + place, acc.to(out.dtype.element_ty), mask=inside[:, None])
    tl.store(lse + bh * (L + C) + first + n, top + tl.log2(tl.maximum(sum_, 1e-30)), mask=inside)


@triton.jit
def _inner(out, dout, delta, N, first, total, H, TILE: tl.constexpr, D: tl.constexpr):
    """Computes delta (B·H, total) = sum over D of out·dout for one stream, from row `first` on."""
    bh = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = n < N
    place = ((bh // H * N + n) * H + bh % H)[:, None] * D + tl.arange(0, D)[None, :]
    a = tl.load(out + place, mask=inside[:, None], other=0.0).to(tl.float32)
    b = tl.load(dout + place, mask=inside[:, None], other=0.0).to(tl.float32)
    tl.store(delta + bh * total + first + n, tl.sum(a * b, 1), mask=inside)


@triton.jit
def _queries_of(
    dq1, dq2, q1, q2, do, lse, delta, k, v, length, stride,
    PRECISION: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Gradient at a tile of rotated queries from one stream's keys, as in `_attend`; without the factor 1/sqrt(D)."""
    for start in range(0, length, KEYS):
        n = start + tl.arange(0, KEYS)
        inside = n < length
        k1, k2 = _load_halves(k, n, D, inside, D)
        s = _dot(q1, tl.trans(k1), None, PRECISION)
        s = _dot(q2, tl.trans(k2), s, PRECISION)
        p = tl.where(inside[None, :], tl.exp2(s - lse[:, None]), 0.0)
        values = tl.load(v + n[:, None] * stride + tl.arange(0, D)[None, :], mask=inside[:, None], other=0.0)
        dp = _dot(do, tl.trans(values), None, PRECISION)
        ds = (p * (dp - delta[:, None])).to(k1.dtype)
        dq1 = _dot(ds, k1, dq1, PRECISION)
        dq2 = _dot(ds, k2, dq2, PRECISION)
    return dq1, dq2


@triton.jit
def _backward_queries(
    qkv, weight, cos, sin, dout, dqkv, dweight, N, first, lengths, CUT: tl.constexpr,
    q, k, qkv_x, qkv_c, lse, delta, L, C, H, scale, root, eps,
    PRECISION: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Gradient at one tile of raw queries of one head, arguments as in `_forward`; root is 1/sqrt(D). dweight
    (programs, D): this tile's share of the norm weight's gradient."""
    bh = tl.program_id(1).to(tl.int64)
    b, h = bh // H, bh % H
    length = tl.load(lengths + b)
    n = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    limit = N
    if CUT:
        limit = length
    inside = n < limit
    dq1 = tl.zeros((QUERIES, D // 2), tl.float32)
    dq2 = tl.zeros((QUERIES, D // 2), tl.float32)
    if tl.program_id(0) * QUERIES < limit:
        row = bh * (L + C) + first
        q1, q2 = _load_halves(q + row * D, n, D, inside, D)
        q1, q2 = (q1.to(tl.float32) * scale).to(q1.dtype), (q2.to(tl.float32) * scale).to(q2.dtype)
        place = ((b * N + n) * H + h)[:, None] * D + tl.arange(0, D)[None, :]
        do = tl.load(dout + place, mask=inside[:, None], other=0.0)
        lse_ = tl.load(lse + row + n, mask=inside, other=0.0)
        delta_ = tl.load(delta + row + n, mask=inside, other=0.0)
        keys = k + bh * (L + C) * D
        stride = 3 * H * D
        values = qkv_x + ((b * L * 3 + 2) * H + h) * D
        dq1, dq2 = _queries_of(dq1, dq2, q1, q2, do, lse_, delta_, keys, values, L, stride, PRECISION, KEYS, D)
        keys += L * D
        values = qkv_c + ((b * C * 3 + 2) * H + h) * D
        dq1, dq2 = _queries_of(dq1, dq2, q1, q2, do, lse_, delta_, keys, values, length, stride, PRECISION, KEYS, D)
    raw = (b * N * 3 * H + h) * D
    x1, x2 = _load_halves(qkv + raw, n, 3 * H * D, inside, D)
    x1, x2 = x1.to(tl.float32), x2.to(tl.float32)
    g1, g2, w1, w2 = _norm_rotate_backward(x1, x2, dq1 * root, dq2 * root, weight, cos, sin, n, inside, eps, D)
    g1, g2 = tl.where(inside[:, None], g1, 0.0), tl.where(inside[:, None], g2, 0.0)
    _store_halves(dqkv + raw, g1, g2, n, 3 * H * D, n < N, D)
    share = dweight + (bh * tl.num_programs(0) + tl.program_id(0)) * D + tl.arange(0, D // 2)
    tl.store(share, w1)
    tl.store(share + D // 2, w2)


@triton.jit
def _keys_of(
    dk1, dk2, dv, k1, k2, values, inside, q, dout, lse, delta, length, stride, scale,
    PRECISION: tl.constexpr, QUERIES: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Gradients at a tile of rotated keys and of values from one stream's first `length` queries; q (N, D) rotated,
    rows of dout `stride` apart. The keys' gradient lacks the factor 1/sqrt(D)."""
    for start in range(0, length, QUERIES):
        n = start + tl.arange(0, QUERIES)
        asked = n < length
        q1, q2 = _load_halves(q, n, D, asked, D)
        do = tl.load(dout + n[:, None] * stride + tl.arange(0, D)[None, :], mask=asked[:, None], other=0.0)
        lse_ = tl.load(lse + n, mask=asked, other=0.0)
        delta_ = tl.load(delta + n, mask=asked, other=0.0)
        s = _dot((q1.to(tl.float32) * scale).to(q1.dtype), tl.trans(k1), None, PRECISION)
        s = _dot((q2.to(tl.float32) * scale).to(q2.dtype), tl.trans(k2), s, PRECISION)
        p = tl.where(asked[:, None] & inside[None, :], tl.exp2(s - lse_[:, None]), 0.0)
        dv = _dot(tl.trans(p.to(do.dtype)), do, dv, PRECISION)
        dp = _dot(do, tl.trans(values), None, PRECISION)
        ds = tl.trans((p * (dp - delta_[:, None])).to(q1.dtype))
        dk1 = _dot(ds, q1, dk1, PRECISION)
        dk2 = _dot(ds, q2, dk2, PRECISION)
    return dk1, dk2, dv


@triton.jit
def _backward_keys(
    qkv, weight, cos, sin, dqkv, dweight, N, first, lengths, CUT: tl.constexpr,
    q, k, dout_x, dout_c, lse, delta, L, C, H, scale, root, eps,
    PRECISION: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Gradients at one tile of raw keys and of values of one head. The first line is the keys' stream, the rest as in
    `_backward_queries`."""
    bh = tl.program_id(1).to(tl.int64)
    b, h = bh // H, bh % H
    length = tl.load(lengths + b)
    n = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    limit = N
    if CUT:
        limit = length
    inside = n < limit
    raw = ((b * N * 3 + 1) * H + h) * D
    dk1 = tl.zeros((KEYS, D // 2), tl.float32)
    dk2 = tl.zeros((KEYS, D // 2), tl.float32)
    dv = tl.zeros((KEYS, D), tl.float32)
    value_place = n[:, None] * (3 * H * D) + H * D + tl.arange(0, D)[None, :]
    if tl.program_id(0) * KEYS < limit:
        row = bh * (L + C)
        k1, k2 = _load_halves(k + (row + first) * D, n, D, inside, D)
        values = tl.load(qkv + raw + value_place, mask=inside[:, None], other=0.0)
        rows = H * D
        dout = dout_x + (b * L * H + h) * D
        dk1, dk2, dv = _keys_of(
            dk1, dk2, dv, k1, k2, values, inside, q + row * D, dout, lse + row, delta + row, L, rows, scale,
            PRECISION, QUERIES, D,
        )  # fmt: skip
        row += L
        dout = dout_c + (b * C * H + h) * D
        dk1, dk2, dv = _keys_of(
            dk1, dk2, dv, k1, k2, values, inside, q + row * D, dout, lse + row, delta + row, length, rows, scale,
            PRECISION, QUERIES, D,
        )  # fmt: skip
    x1, x2 = _load_halves(qkv + raw, n, 3 * H * D, inside, D)
    x1, x2 = x1.to(tl.float32), x2.to(tl.float32)
    g1, g2, w1, w2 = _norm_rotate_backward(x1, x2, dk1 * root, dk2 * root, weight, cos, sin, n, inside, eps, D)
    g1, g2 = tl.where(inside[:, None], g1, 0.0), tl.where(inside[:, None], g2, 0.0)
    _store_halves(dqkv + raw, g1, g2, n, 3 * H * D, n < N, D)
    tl.store(dqkv + raw + value_place, dv.to(dqkv.dtype.element_ty), mask=(n < N)[:, None])
    share = dweight + (bh * tl.num_programs(0) + tl.program_id(0)) * D + tl.arange(0, D // 2)
    tl.store(share, w1)
    tl.store(share + D // 2, w2)


# ---- host


MIN_HEAD = 32  # Triton's products are at least 16 wide, and a head is multiplied in halves


def head_error(head: int) -> str:
    """The reason why the Triton kernels cannot have heads of this width; empty if they can."""
    if head < MIN_HEAD or head & (head - 1):
        return f"needs heads whose width is a power of two, at least {MIN_HEAD}, not {head}"
    return ""


@dataclass(frozen=True)
class Tiles:
    """Tokens of a tile, and how the kernels that hold them are launched."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


def forward_tiles(head: int, dtype: torch.dtype) -> Tiles:
    if dtype == torch.float32:
        return Tiles(64, 32, 4, 2)
    return Tiles(128, 64, 4 if head <= 64 else 8, 3)


def backward_tiles(head: int, dtype: torch.dtype) -> Tiles:
    if dtype == torch.float32:
        return Tiles(32, 32, 4, 1)
    return Tiles(64, 64, 4 if head <= 64 else 8, 2)


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
        return self.D**-0.5 * 1.4426950408889634  # log2(e): powers of two are what the hardware computes

    @property
    def precision(self) -> str:
        if triton.knobs.runtime.interpret and self.dtype == torch.bfloat16:
            return "upcast"
        return "ieee" if self.dtype == torch.float32 else "tf32"

    def streams(self) -> tuple[tuple[int, int, bool], tuple[int, int, bool]]:
        """Tokens, first row among all tokens, and whether padding ends it, of the latent and the condition stream."""
        return (self.L, 0, False), (self.C, self.L, True)

    def constants(self, tiles: Tiles) -> dict[str, Any]:
        return {
            "PRECISION": self.precision, "QUERIES": tiles.queries, "KEYS": tiles.keys, "D": self.D,
            "num_warps": tiles.num_warps, "num_stages": tiles.num_stages,
        }  # fmt: skip


def _rotated(shapes: _Shapes, which: int, streams: tuple[tuple[Tensor, ...], ...]) -> Tensor:
    """Queries (which 0) or keys (1) of both streams, (B·H, L + C, D)."""
    total, tile = shapes.L + shapes.C, 64
    qkv = streams[0][0]
    rotated = qkv.new_empty((shapes.B * shapes.H, total, shapes.D))
    for (packed, *norms, cos, sin), (N, first, _) in zip(streams, shapes.streams(), strict=True):
        if N:
            _rotate[(triton.cdiv(N, tile), shapes.B * shapes.H)](
                packed, which, norms[which], cos, sin, rotated, N, first, total, shapes.H, EPS, TILE=tile, D=shapes.D
            )
    return rotated


@torch.library.custom_op("audiox_trainer::joint_attention", mutates_args=())
@on_tensor_device
def _joint_attention(
    qkv_x: Tensor, q_norm_x: Tensor, k_norm_x: Tensor, cos_x: Tensor, sin_x: Tensor,
    qkv_c: Tensor, q_norm_c: Tensor, k_norm_c: Tensor, cos_c: Tensor, sin_c: Tensor, lengths: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """-> the two outputs, and the base 2 log-sum-exp (B·H, L + C) of each query's scores for the backward pass."""
    qkv_x, qkv_c = qkv_x.contiguous(), qkv_c.contiguous()
    shapes = _Shapes.from_tensors(qkv_x, qkv_c)
    streams = (qkv_x, q_norm_x, k_norm_x, cos_x, sin_x), (qkv_c, q_norm_c, k_norm_c, cos_c, sin_c)
    k = _rotated(shapes, 1, streams)
    tiles = forward_tiles(shapes.D, shapes.dtype)
    lse = qkv_x.new_empty((shapes.B * shapes.H, shapes.L + shapes.C), dtype=torch.float32)
    outs = []
    for (qkv, q_norm, _, cos, sin), (N, first, cut) in zip(streams, shapes.streams(), strict=True):
        out = qkv.new_empty((shapes.B, N, shapes.H * shapes.D))
        _forward[(triton.cdiv(N, tiles.queries), shapes.B * shapes.H)](
            qkv, q_norm, cos, sin, out, N, first, lengths, cut,
            k, qkv_x, qkv_c, lse, *shapes.common, shapes.scale, EPS, **shapes.constants(tiles),
        )  # fmt: skip
        outs.append(out)
    return outs[0], outs[1], lse


@_joint_attention.register_fake
def _(
    qkv_x: Tensor, q_norm_x: Tensor, k_norm_x: Tensor, cos_x: Tensor, sin_x: Tensor,
    qkv_c: Tensor, q_norm_c: Tensor, k_norm_c: Tensor, cos_c: Tensor, sin_c: Tensor, lengths: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    shapes = _Shapes.from_tensors(qkv_x, qkv_c)
    x, c = (qkv_x.new_empty((shapes.B, N, shapes.H * shapes.D)) for N in (shapes.L, shapes.C))
    return x, c, qkv_x.new_empty((shapes.B * shapes.H, shapes.L + shapes.C), dtype=torch.float32)


@torch.library.custom_op("audiox_trainer::joint_attention_backward", mutates_args=())
@on_tensor_device
def _joint_attention_backward(
    qkv_x: Tensor, q_norm_x: Tensor, k_norm_x: Tensor, cos_x: Tensor, sin_x: Tensor,
    qkv_c: Tensor, q_norm_c: Tensor, k_norm_c: Tensor, cos_c: Tensor, sin_c: Tensor, lengths: Tensor,
    out_x: Tensor, out_c: Tensor, lse: Tensor, dout_x: Tensor, dout_c: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """-> the gradients at qkv, q_norm and k_norm of the latent, then of the condition stream."""
    qkv_x, qkv_c, dout_x, dout_c = (t.contiguous() for t in (qkv_x, qkv_c, dout_x, dout_c))
    shapes = _Shapes.from_tensors(qkv_x, qkv_c)
    streams = (qkv_x, q_norm_x, k_norm_x, cos_x, sin_x), (qkv_c, q_norm_c, k_norm_c, cos_c, sin_c)
    q, k = _rotated(shapes, 0, streams), _rotated(shapes, 1, streams)
    tiles, heads = backward_tiles(shapes.D, shapes.dtype), shapes.B * shapes.H
    constants, factors = shapes.constants(tiles), (shapes.scale, shapes.root, EPS)
    delta = torch.empty_like(lse)
    for out, dout, (N, first, _) in zip((out_x, out_c), (dout_x, dout_c), shapes.streams(), strict=True):
        _inner[(triton.cdiv(N, 64), heads)](out, dout, delta, N, first, lse.shape[1], shapes.H, TILE=64, D=shapes.D)
    gradients = []
    for stream, dout, (N, first, cut) in zip(streams, (dout_x, dout_c), shapes.streams(), strict=True):
        qkv, q_norm, k_norm, cos, sin = stream
        dqkv = torch.empty_like(qkv)
        grid_q, grid_k = triton.cdiv(N, tiles.queries), triton.cdiv(N, tiles.keys)
        dq_norm, dk_norm = (qkv.new_empty((heads * n, shapes.D), dtype=torch.float32) for n in (grid_q, grid_k))
        _backward_queries[(grid_q, heads)](
            qkv, q_norm, cos, sin, dout, dqkv, dq_norm, N, first, lengths, cut,
            q, k, qkv_x, qkv_c, lse, delta, *shapes.common, *factors, **constants,
        )  # fmt: skip
        _backward_keys[(grid_k, heads)](
            qkv, k_norm, cos, sin, dqkv, dk_norm, N, first, lengths, cut,
            q, k, dout_x, dout_c, lse, delta, *shapes.common, *factors, **constants,
        )  # fmt: skip
        gradients += [dqkv, dq_norm.sum(0).to(q_norm.dtype), dk_norm.sum(0).to(k_norm.dtype)]
    a, b, c, d, e, f = gradients
    return a, b, c, d, e, f


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
