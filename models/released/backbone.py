"""The released velocity network: one stream of latents, modulated position by position by the condition.

Latents never attend to conditions. Attributes have the names of the released state dict. Those of its tensors that
have no effect are left out (`unused_shapes` of network.py).

B batch, L latents, N = 1 + L positions (the time token first), M condition tokens, C channels, D width, H heads.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .config import ReleasedConfig

EPS_NORM = 1e-5
EPS_RMS = 1e-6


@dataclass(frozen=True)
class Modulation:
    """The features that depend on the condition alone: computed once for a sampling.

    Six tensors (B, N, D) for each block: shift, scale and gate of the attention, then of the feed-forward.
    """

    blocks: tuple[tuple[Tensor, ...], ...]


@dataclass(frozen=True)
class ReleasedTimestepFeatures:
    """The features that depend on the noise level alone: constants of the weights."""

    token: Tensor  # (B, D), position 0 of the sequence
    shifts: tuple[Tensor, ...]  # (B, D) of each block, added at every position

    def expand(self, batch: int) -> "ReleasedTimestepFeatures":
        """One level, (1, D) throughout, for `batch` samples; nothing is copied."""
        return ReleasedTimestepFeatures(
            self.token.expand(batch, -1), tuple(shift.expand(batch, -1) for shift in self.shifts)
        )


class FourierFeatures(nn.Linear):
    """Cosines, then sines, of learned frequencies: t (B,) -> (B, 256). In float32."""

    def forward(self, t: Tensor) -> Tensor:
        phase = 2 * math.pi * F.linear(t.float()[:, None], self.weight.float())
        return torch.cat((phase.cos(), phase.sin()), dim=-1).to(self.weight.dtype)


class TimeShift(nn.Module):
    """The released cross-attention. It attends to the single time token with key and value exchanged, so its softmax is
    1 and what it adds is a normalised linear map of the time token, the same at every position."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_kv = nn.Linear(width, 2 * width, bias=False)  # rows of odd number are without effect

    def forward(self, time: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        keys = rearrange(self.to_kv(time), "b (h d two) -> two b h d", h=self.heads, two=2)[0]
        return rms_normalized(keys).flatten(1)


class Attention(nn.Module):
    """Queries, keys and values alternate in the fastest index of the projection's output."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """(B, N, D) -> (B, N, D), the heads concatenated."""
        q, k, v = rearrange(self.qkv(x), "b n (h d three) -> three b h n d", h=self.heads, three=3)
        q, k = rotated(rms_normalized(q), rotation), rotated(rms_normalized(k), rotation)
        return rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")


class FeedForward(nn.Module):
    """SwiGLU whose three maps are convolutions over three positions."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Conv1d(width, hidden, 3, padding=1, bias=False)
        self.w2 = nn.Conv1d(hidden, width, 3, padding=1, bias=False)
        self.w3 = nn.Conv1d(width, hidden, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x = x.transpose(1, 2)
        return self.w2(F.silu(self.w1(x)) * self.w3(x)).transpose(1, 2)


class ReleasedBlock(nn.Module):
    def __init__(self, config: ReleasedConfig) -> None:
        super().__init__()
        width = config.width
        self.attn = Attention(width, config.heads)
        self.cross_attn = TimeShift(width, config.heads)
        self.linear1 = nn.Conv1d(width, width, 3, padding=1)
        self.ffn = FeedForward(width, config.hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def modulate(self, mixed: Tensor) -> tuple[Tensor, ...]:
        """Six tensors (B, N, D): shift, scale and gate of the attention, then of the feed-forward."""
        return self.adaLN_modulation(mixed).chunk(6, dim=-1)

    def forward(
        self, x: Tensor, modulation: Tensor | tuple[Tensor, ...], shift: Tensor, rotation: tuple[Tensor, Tensor]
    ) -> Tensor:
        """x (B, N, D), the mixed condition (B, N, D) or what `modulate` makes of it, shift (B, D) -> (B, N, D)."""
        if isinstance(modulation, Tensor):
            modulation = self.modulate(modulation)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        attended = self.attn(modulated(x, shift1, scale1), rotation)
        x = x + gate1 * self.linear1(attended.transpose(1, 2)).transpose(1, 2)
        x = x + shift[:, None]
        return x + gate2 * self.ffn(modulated(x, shift2, scale2))


class Transformer(nn.Module):
    def __init__(self, config: ReleasedConfig) -> None:
        super().__init__()
        self.project_in = nn.Linear(config.channels, config.width, bias=False)
        self.project_out = nn.Linear(config.width, config.channels, bias=False)
        self.proj_mm_tokens = nn.Linear(config.condition_width, config.width)
        self.proj_mm_seq_len = nn.Linear(config.condition_tokens, config.positions)
        self.layers = nn.ModuleList(ReleasedBlock(config) for _ in range(config.depth))


class ReleasedBackbone(nn.Module):
    """Velocity v ≈ ε − z_0 of latents under a condition; t = 1 is noise."""

    def __init__(self, config: ReleasedConfig) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.checkpointing = False
        self.timestep_features = FourierFeatures(1, 128, bias=False)
        self.to_timestep_embed = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.transformer = Transformer(config)
        self.preprocess_conv = nn.Conv1d(config.channels, config.channels, 1, bias=False)
        self.postprocess_conv = nn.Conv1d(config.channels, config.channels, 1, bias=False)

    @property
    def blocks(self) -> list[ReleasedBlock]:
        return [layer for layer in self.transformer.layers if isinstance(layer, ReleasedBlock)]

    def forward(
        self,
        z: Tensor,
        t: Tensor | ReleasedTimestepFeatures,
        condition: Tensor | Modulation,
        n_blocks: int | None = None,
    ) -> Tensor:
        """Velocity (B, L, C) of z (B, L, C) at noise levels t (B,) under MAF's output (B, M, condition width).

        What does not change from step to step may be given as `level` and `modulation` compute it.
        With `n_blocks` the network is cut after each of so many blocks, its output projection included, as the
        released discriminator does: (B, n_blocks, L, C).
        """
        level = self.level(t, n_blocks) if isinstance(t, Tensor) else t
        mixed = self.mixed_condition(condition) if isinstance(condition, Tensor) else None
        x = self._mixed(z, self.preprocess_conv)
        x = torch.cat((level.token[:, None].to(x.dtype), self.transformer.project_in(x)), dim=1)
        rotation = rotary_table(x.shape[1], self.config.width // self.config.heads, x)
        cuts = []
        for i, block in enumerate(self.blocks[:n_blocks]):
            own = condition.blocks[i] if isinstance(condition, Modulation) else mixed
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, own, level.shifts[i], rotation, use_reentrant=False)
            else:
                x = block(x, own, level.shifts[i], rotation)
            if n_blocks is not None:
                cuts.append(self._projected(x))
        return torch.stack(cuts, dim=1) if cuts else self._projected(x)

    def _projected(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, L, C)."""
        return self._mixed(self.transformer.project_out(x)[:, 1:], self.postprocess_conv)

    def modulation(self, condition: Tensor) -> Modulation:
        """(B, M, condition width). Zeros are the null condition, the same for every sample and sampling."""
        mixed = self.mixed_condition(condition)
        return Modulation(tuple(block.modulate(mixed) for block in self.blocks))

    def mixed_condition(self, condition: Tensor) -> Tensor:
        """(B, M, condition width) -> (B, N, D): for every position a mixture of all condition tokens."""
        h = self.transformer.proj_mm_tokens(condition)
        return self.transformer.proj_mm_seq_len(h.transpose(1, 2)).transpose(1, 2)

    def level(self, t: Tensor, n_blocks: int | None = None) -> ReleasedTimestepFeatures:
        """Noise levels (B,), for all blocks or the first `n_blocks`."""
        time = self.to_timestep_embed(self.timestep_features(t))
        return ReleasedTimestepFeatures(time, tuple(block.cross_attn(time) for block in self.blocks[:n_blocks]))

    @staticmethod
    def _mixed(x: Tensor, conv: nn.Conv1d) -> Tensor:
        """A 1 × 1 convolution over the channels, added."""
        return x + conv(x.transpose(1, 2)).transpose(1, 2)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPS_NORM) * (1 + scale) + shift


def rms_normalized(x: Tensor) -> Tensor:
    """Over the last dimension, without a learned scale."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS_RMS)


def rotary_table(positions: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin (N, width/2), float32."""
    steps = torch.arange(positions, device=like.device, dtype=torch.float32)
    rates = 10000 ** (-torch.arange(0, width, 2, device=like.device, dtype=torch.float32) / width)
    angles = steps[:, None] * rates
    return angles.cos(), angles.sin()


def rotated(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Neighbouring pairs of (B, H, N, width), in float32."""
    cos, sin = rotation
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2).to(x.dtype)
