"""Attention over one sequence of keys, with padding at its end.

B batch, H heads, N queries, M keys, D head width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, key_length: Tensor | None = None) -> Tensor:
    """q (B, H, N, D), k and v (B, H, M, D) -> (B, H, N, D). Keys past `key_length` (B,) are not attended to.

    On a CPU the scores are written out: for sequences of about a hundred tokens two batched products are four to six
    times as fast, forward and backward, as the tiled kernel that `scaled_dot_product_attention` picks there.
    """
    mask = None if key_length is None else padding_mask(k.shape[2], key_length)
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    b, h, n, d = q.shape
    q, k, v = (x.flatten(0, 1) for x in (q * d**-0.5, k, v))
    if torch.compiler.is_compiling():  # which fuses what lies between the products
        scores = torch.bmm(q, k.transpose(1, 2)).view(b, h, n, k.shape[1])
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return torch.bmm(scores.softmax(-1).flatten(0, 1), v).view(b, h, n, d)
    bias = None
    if mask is not None:
        bias = q.new_zeros(mask.shape).masked_fill(~mask, float("-inf")).expand(-1, h, -1, -1).flatten(0, 1)
    out: Tensor = _Attention.apply(q, k, v, bias)
    return out.view(b, h, n, d)


class _Attention(torch.autograd.Function):
    """softmax(q·kᵀ + bias)·v for q (B·H, N, D), k and v (B·H, M, D), bias (B·H, 1, M) or None. One tensor holds the
    scores and then their softmax, and another one both gradients at them, where autograd would have five or six."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        p = torch.bmm(q, k.transpose(1, 2))
        if bias is not None:
            p.add_(bias)
        torch.softmax(p, -1, out=p)
        ctx.save_for_backward(q, k, v, p)
        return torch.bmm(p, v)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, p = ctx.saved_tensors
        of_q, of_k, of_v, _ = ctx.needs_input_grad
        dv = torch.bmm(p.transpose(1, 2), dout) if of_v else None
        if not (of_q or of_k):
            return None, None, dv, None
        ds = torch.bmm(dout, v.transpose(1, 2))
        torch._softmax_backward_data(ds, p, -1, ds.dtype, grad_input=ds)
        return torch.bmm(ds, k) if of_q else None, torch.bmm(ds.transpose(1, 2), q) if of_k else None, dv, None


def padding_mask(keys: int, length: Tensor) -> Tensor:
    """(B, 1, 1, M), True for the first `length` (B,) of M keys."""
    return (torch.arange(keys, device=length.device) < length.unsqueeze(1))[:, None, None, :]
