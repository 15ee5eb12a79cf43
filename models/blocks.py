"""Building blocks of the conditioner, the fusion module and the MMDiT.

B batch, N tokens, L latent tokens, C condition tokens, H heads, D head width, W width.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..kernels.attention import attention
from ..kernels.joint_attention import StreamInput
from ..kernels.ops import REFERENCE
from ..kernels.qk_norm_rope import norm_rotate

Modulation = tuple[Tensor, ...]  # of one stream of one block: shifts, scales and gates, each (B, W) in float32


class SwiGLU(nn.Module):
    """(B, N, W) -> (B, N, W) through a gated hidden layer."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.ops = REFERENCE
        self.recompute = False
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        ab = self.up(x)
        if self.recompute and torch.is_grad_enabled():
            return self._without_storing(ab)
        return self.down(self.ops.swiglu(ab))

    def _without_storing(self, ab: Tensor) -> Tensor:
        """The same, but what `down` would keep of its input for the backward pass is computed from `ab` again there."""
        if torch.compiler.is_compiling():
            return self.down(checkpoint(self.ops.swiglu, ab, use_reentrant=False))
        y = self.ops.swiglu(ab)
        memory = y.untyped_storage()._cdata

        def pack(saved: Tensor) -> Tensor | tuple[torch.Size, tuple[int, ...], int]:
            if saved.untyped_storage()._cdata != memory:
                return saved
            return saved.size(), saved.stride(), int(saved.storage_offset())

        def unpack(packed: Tensor | tuple[torch.Size, tuple[int, ...], int]) -> Tensor:
            return packed if isinstance(packed, Tensor) else self.ops.swiglu(ab).as_strided(*packed)

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            return self.down(y)


def recompute_swiglu(model: nn.Module, on: bool) -> None:
    """Whether the SwiGLUs of a model compute the input of their last product again in the backward pass, rather than
    store it. Gradients are bitwise the same."""
    for module in model.modules():
        if isinstance(module, SwiGLU):
            module.recompute = on


class CrossAttention(nn.Module):
    """Pre-normed attention from x (B, N, W) to context (B, M, W); M may be padded at its end."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_x = nn.LayerNorm(width)
        self.norm_context = nn.LayerNorm(width)
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, context: Tensor, length: Tensor | None = None) -> Tensor:
        """`length` (B,) counts the context tokens that may be attended. -> (B, N, W), without a residual."""
        q = rearrange(self.q(self.norm_x(x)), "b n (h d) -> b h n d", h=self.heads)
        k, v = rearrange(self.kv(self.norm_context(context)), "b m (two h d) -> two b h m d", two=2, h=self.heads)
        y = attention(q, k, v, length)
        return self.out(rearrange(y, "b h n d -> b n (h d)"))


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and SwiGLU, optionally with rotary positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm = nn.Parameter(torch.ones(width // heads))
        self.k_norm = nn.Parameter(torch.ones(width // heads))
        self.out = nn.Linear(width, width, bias=False)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = SwiGLU(width, width * 8 // 3)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """x (B, N, W), rope (cos, sin) each (N, D/2) -> (B, N, W)."""
        qkv = rearrange(self.qkv(self.norm1(x)), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        qk, v = qkv.split((2, 1))
        q, k = norm_rotate(qk, torch.stack((self.q_norm, self.k_norm))[:, None, None, None], *rope)
        y = attention(q, k, v[0])
        x = x + self.out(rearrange(y, "b h n d -> b n (h d)"))
        return x + self.mlp(self.norm2(x))


class Stream(nn.Module):
    """One stream's half of an MMDiT block: its own adaLN, QKV, output projection and MLP.

    `last` leaves out everything after the QKV: nothing reads the condition stream after the last block.
    """

    def __init__(self, width: int, heads: int, mlp_hidden: int, last: bool = False) -> None:
        super().__init__()
        self.ops = REFERENCE
        self.heads = heads
        self.last = last
        self.modulation = nn.Linear(width, (2 if last else 6) * width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm = nn.Parameter(torch.ones(width // heads))
        self.k_norm = nn.Parameter(torch.ones(width // heads))
        if not last:
            self.out = nn.Linear(width, width, bias=False)
            self.mlp = SwiGLU(width, mlp_hidden)

    def modulate(self, time: Tensor) -> Modulation:
        """time (B, W) -> shift, scale and gate of the attention, then of the MLP, each (B, W) in float32."""
        return self.modulation(time).float().chunk(2 if self.last else 6, dim=-1)

    def attention_input(self, x: Tensor, modulation: Modulation, rope: tuple[Tensor, Tensor]) -> StreamInput:
        qkv = self.qkv(self.ops.layer_norm_modulate(x, modulation[0], modulation[1]))
        qkv = rearrange(qkv, "b n (three h d) -> b n three h d", three=3, h=self.heads)
        return StreamInput(qkv, self.q_norm, self.k_norm, *rope)

    def update(self, x: Tensor, attended: Tensor, modulation: Modulation) -> Tensor:
        _, _, gate1, shift2, scale2, gate2 = modulation
        x, normed = self.ops.gated_residual_layer_norm_modulate(x, self.out(attended), gate1, shift2, scale2)
        return self.ops.gated_residual(x, self.mlp(normed), gate2)


class JointBlock(nn.Module):
    """A dual-stream MMDiT block (section VI-A): own weights for latents and conditions, one attention over both."""

    def __init__(self, width: int, heads: int, mlp_hidden: int, last: bool = False) -> None:
        super().__init__()
        self.ops = REFERENCE
        self.latent = Stream(width, heads, mlp_hidden)
        self.condition = Stream(width, heads, mlp_hidden, last=last)

    def forward(
        self,
        x: Tensor,
        c: Tensor,
        time: Tensor | tuple[Modulation, Modulation],
        rope_latent: tuple[Tensor, Tensor],
        rope_condition: tuple[Tensor, Tensor],
        condition_length: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """x (B, L, W), c (B, C, W), time (B, W) already through SiLU or the result of `modulate` -> new x and c."""
        mod_x, mod_c = self.modulate(time) if isinstance(time, Tensor) else time
        attended_x, attended_c = self.ops.joint_attention(
            self.latent.attention_input(x, mod_x, rope_latent),
            self.condition.attention_input(c, mod_c, rope_condition),
            condition_length,
        )
        x = self.latent.update(x, attended_x, mod_x)
        return x, c if self.condition.last else self.condition.update(c, attended_c, mod_c)

    def modulate(self, time: Tensor) -> tuple[Modulation, Modulation]:
        """time (B, W) already through SiLU -> the modulations of both streams."""
        return self.latent.modulate(time), self.condition.modulate(time)
