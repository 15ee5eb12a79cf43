"""Attention over one sequence of keys, with padding at its end.

B batch, H heads, N queries, M keys, D head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, key_length: Tensor | None = None) -> Tensor:
    """q (B, H, N, D), k and v (B, H, M, D) -> (B, H, N, D). Keys past `key_length` (B,) are not attended to.

    On a CPU the scores are written out: for sequences of about a hundred tokens two batched products are four to six
    times as fast, forward and backward, as the tiled kernel that `scaled_dot_product_attention` picks there.
    """
    mask = None
    if key_length is not None:
        mask = padding_mask(k.shape[2], key_length)
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    b, h, n, d = q.shape
    scores = torch.bmm((q * d**-0.5).flatten(0, 1), k.flatten(0, 1).transpose(1, 2)).view(b, h, n, k.shape[2])
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.bmm(scores.softmax(-1).flatten(0, 1), v.flatten(0, 1)).view(b, h, n, d)


def padding_mask(keys: int, length: Tensor) -> Tensor:
    """(B, 1, 1, M), True for the first `length` (B,) of M keys."""
    return (torch.arange(keys, device=length.device) < length.unsqueeze(1))[:, None, None, :]
