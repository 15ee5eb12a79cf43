"""What the backward passes of norms and residuals share: sums over the tokens of a sample, by several programs.

B batch, L tokens, W width. A program takes several tokens of one sample, TILE at a time, while the next ones are on
their way, and stores its sums; the last one of a sample adds them up, in a fixed order. So gradients are the same each
time, and few sums pass through memory. A row is held as LEFT and RIGHT columns, powers of two, so that few lanes idle:
1536 is 1024 + 512.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from .device import multiprocessors

MIN_ROWS = 8  # tokens per program, at least
CHUNKS = 4  # sums that are added up at a time


@dataclass(frozen=True)
class Chunks:
    """How programs share the tokens of a sample."""

    chunks: int  # programs per sample
    rows: int  # tokens per program
    tile: int  # tokens at a time

    @classmethod
    def of(cls, x: Tensor, tile: int) -> "Chunks":
        """For x (B, L, W): about one program per multiprocessor, which keeps it busy by reading ahead."""
        B, L, _ = x.shape
        chunks = max(1, min(multiprocessors(x.device) // B, triton.cdiv(L, MIN_ROWS)))
        rows = triton.cdiv(triton.cdiv(max(1, L), chunks), tile) * tile
        return cls(max(1, triton.cdiv(L, rows)), rows, tile)


def row_halves(W: int, tile: int) -> dict[str, int]:
    """Constants and options of a kernel that holds `tile` whole tokens of W values."""
    left = max(1, triton.next_power_of_2(W) // 2)
    right = triton.next_power_of_2(max(1, W - left))
    warps = min(8, max(1, tile * left // 256))
    return {"TILE": tile, "CHUNKS": CHUNKS, "LEFT": left, "RIGHT": right, "num_warps": warps}


@triton.jit
def load_rows(pointer, row, inside, W, TILE: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr):
    """Rows (TILE,) of a (·, W) array in float32, as (TILE, LEFT) and (TILE, RIGHT)."""
    left, right = tl.arange(0, LEFT)[None, :], LEFT + tl.arange(0, RIGHT)[None, :]
    start = row[:, None] * W
    a = tl.load(pointer + start + left, mask=inside[:, None] & (left < W), other=0.0)
    b = tl.load(pointer + start + right, mask=inside[:, None] & (right < W), other=0.0)
    return a.to(tl.float32), b.to(tl.float32)


@triton.jit
def store_rows(pointer, a, b, row, inside, W, TILE: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr):
    left, right = tl.arange(0, LEFT)[None, :], LEFT + tl.arange(0, RIGHT)[None, :]
    start = row[:, None] * W
    tl.store(pointer + start + left, a.to(pointer.dtype.element_ty), mask=inside[:, None] & (left < W))
    tl.store(pointer + start + right, b.to(pointer.dtype.element_ty), mask=inside[:, None] & (right < W))


@triton.jit
def load_modulation(pointer, W, LEFT: tl.constexpr, RIGHT: tl.constexpr):
    """One sample's (W,) as (1, LEFT) and (1, RIGHT)."""
    left, right = tl.arange(0, LEFT)[None, :], LEFT + tl.arange(0, RIGHT)[None, :]
    return tl.load(pointer + left, mask=left < W, other=0.0), tl.load(pointer + right, mask=right < W, other=0.0)


@triton.jit
def layer_norm_backward(xa, xb, ga, gb, fa, fb, m, r, W):
    """Tokens' input x, gradient g, factor f = 1 + scale, in two parts, mean m and 1/deviation r (TILE, 1) -> LN(x) and
    the gradient at x, in two parts each. Columns past W have g = 0; what they get is not to be stored."""
    na, nb, ha, hb = (xa - m) * r, (xb - m) * r, ga * fa, gb * fb
    # The two sums of a part are one reduction, which waits for the program's warps once.
    sums = tl.sum(tl.join(ha, ha * na), 1) + tl.sum(tl.join(hb, hb * nb), 1)  # (TILE, 2)
    along, across = tl.split(sums / W)
    along, across = along[:, None], across[:, None]
    return na, nb, r * (ha - along - na * across), r * (hb - along - nb * across)


@triton.jit
def store_sums(sums, a, b, W, LEFT: tl.constexpr, RIGHT: tl.constexpr):
    """Sums of (TILE, LEFT) and (TILE, RIGHT) over tokens -> (W,)."""
    left, right = tl.arange(0, LEFT), LEFT + tl.arange(0, RIGHT)
    tl.store(sums + left, tl.sum(a, 0), mask=left < W)
    tl.store(sums + right, tl.sum(b, 0), mask=right < W)


@triton.jit
def add_columns(sums, total, column, chunks, W, CHUNKS: tl.constexpr):
    """Columns of one sample's sums (chunks, W) -> total (W,), always in the same order."""
    acc = tl.zeros((CHUNKS, column.shape[0]), tl.float32)
    for first in range(0, chunks, CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)[:, None]
        inside = (chunk < chunks) & (column < W)[None, :]
        # Past the L1 cache, which does not know what other multiprocessors wrote.
        acc += tl.load(sums + chunk * W + column[None, :], mask=inside, other=0.0, cache_modifier=".cg")
    tl.store(total + column, tl.sum(acc, 0), mask=column < W)


@triton.jit
def add_chunks(sums, total, chunks, W, CHUNKS: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr):
    """All of one sample's sums (chunks, W) -> total (W,)."""
    add_columns(sums, total, tl.arange(0, LEFT), chunks, W, CHUNKS)
    add_columns(sums, total, LEFT + tl.arange(0, RIGHT), chunks, W, CHUNKS)


@triton.jit
def is_last(arrived, chunks):
    """Whether all other programs of a sample have stored their sums; `arrived` counts them."""
    tl.debug_barrier()  # all threads have stored theirs
    return tl.atomic_add(arrived, 1) == chunks - 1
