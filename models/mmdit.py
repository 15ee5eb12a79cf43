"""The multimodal diffusion transformer: velocity of noisy latents under a condition embedding (section IV).

B batch, L latent frames, C latent channels, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..kernels.ops import REFERENCE
from .blocks import JointBlock, Modulation
from .config import BackboneConfig, CodecConfig
from .embeddings import RopeTable, SecondsEmbedding, TimeEmbedding, frame_seconds


class LinearPath(nn.Module):
    """The linear part of a velocity, which bypasses the transformer: v += B·(g(t) ⊙ A·z).

    A velocity holds all of the noise in z, and where the width is not well above the latent channels that noise fills
    the residual stream. This path bypasses it, so that the transformer works on structure alone. At the start it
    is the best linear estimate for unit-variance data, (2t - 1)/(t² + (1 - t)²)·z (the skip of Karras et al.,
    2022, in terms of the flow).
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.into = nn.Linear(channels, channels, bias=False)
        self.gate = nn.Linear(width, channels)
        self.out = nn.Linear(channels, channels, bias=False)

    def reset_parameters(self) -> None:
        nn.init.eye_(self.into.weight)
        nn.init.eye_(self.out.weight)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, z: Tensor, t: Tensor, time: Tensor) -> Tensor:
        """z (B, L, C), t (B,), time (B, W) already through SiLU -> (B, L, C)."""
        t = t.float()
        gate = self.gate(time).float() + ((2 * t - 1) / (t.square() + (1 - t).square())).unsqueeze(1)
        return self.out((gate.unsqueeze(1) * self.into(z)).to(z.dtype))


@dataclass(frozen=True)
class TimestepFeatures:
    """Activations that depend only on the noise levels. They take a quarter of the weights, which a sampler with known
    levels thus reads once instead of at every step."""

    t: Tensor  # (B,)
    time: Tensor  # (B, W), embedded and through SiLU
    blocks: tuple[tuple[Modulation, Modulation], ...]
    out: Modulation  # shift and scale of the last norm

    def expand(self, batch: int) -> "TimestepFeatures":
        """One level, (1, ·) throughout, for `batch` samples; nothing is copied."""

        def wide(rows: Modulation) -> Modulation:
            return tuple(row.expand(batch, -1) for row in rows)

        blocks = tuple((wide(x), wide(c)) for x, c in self.blocks)
        return TimestepFeatures(self.t.expand(batch), self.time.expand(batch, -1), blocks, wide(self.out))


class MMDiT(nn.Module):
    """Dual-stream transformer over latent and condition tokens."""

    def __init__(self, config: BackboneConfig, codec: CodecConfig, condition_width: int, seconds: Tensor) -> None:
        """`seconds` (V+L,) are the times of the condition tokens that have one; text tokens follow them."""
        super().__init__()
        width = config.width
        self.ops = REFERENCE
        self.checkpointing = False
        self.time = TimeEmbedding(width)
        self.latent_in = nn.Linear(codec.latent_channels, width)
        self.condition_in = nn.Linear(condition_width, width)
        self.blocks = nn.ModuleList(
            JointBlock(width, config.heads, config.mlp_hidden, last=i == config.depth - 1) for i in range(config.depth)
        )
        self.modulation_out = nn.Linear(width, 2 * width)
        self.latent_out = nn.Linear(width, codec.latent_channels)
        self.linear_path = LinearPath(codec.latent_channels, width) if config.linear_path else None
        head = width // config.heads
        frames = frame_seconds(codec)
        self.seconds_latent = SecondsEmbedding(frames, width)
        self.seconds_condition = SecondsEmbedding(seconds, width)
        self.rope_latent = RopeTable(frames, codec.rate, head)
        self.rope_condition = RopeTable(seconds, codec.rate, head)

    def forward(
        self,
        z: Tensor,
        t: Tensor | TimestepFeatures,
        condition: Tensor,
        condition_length: Tensor | None,
        n_blocks: int | None = None,
        depths: Sequence[int] = (),
    ) -> Tensor:
        """z (B, L, C), t (B,) in [0, 1] or its `timestep_features`, condition (B, V+L+T, Wc) -> velocity (B, L, C).

        With `n_blocks` the latent stream's tokens (B, L, W) after that many blocks are returned instead: the features
        of the discriminator (section V-B). With `depths` also those after each of so many blocks, the last of which is
        `n_blocks`: (B, len(depths), L, W).
        """
        known = t if isinstance(t, TimestepFeatures) else None
        time = t.time if isinstance(t, TimestepFeatures) else self._embed_time(t)
        x = self.latent_in(z) + self.seconds_latent()
        c = self.condition_in(condition)
        where = self.seconds_condition()
        c = c + F.pad(where, (0, 0, 0, c.shape[1] - where.shape[0]))
        rope_x = self.rope_latent()
        rope_c = self._condition_rope(c)
        features = []
        for i, block in enumerate(self.blocks[:n_blocks]):
            step = known.blocks[i] if known else time
            if self.checkpointing and torch.is_grad_enabled():
                x, c = checkpoint(block, x, c, step, rope_x, rope_c, condition_length, use_reentrant=False)
            else:
                x, c = block(x, c, step, rope_x, rope_c, condition_length)
            if i + 1 in depths:
                features.append(x)
        if n_blocks is not None:
            return torch.stack(features, 1) if features else x
        shift, scale = known.out if known else self._modulate_out(time)
        v = self.latent_out(self.ops.layer_norm_modulate(x, shift, scale))
        if self.linear_path is None:
            return v
        return v + self.linear_path(z, t.t if isinstance(t, TimestepFeatures) else t, time)

    def timestep_features(self, t: Tensor) -> TimestepFeatures:
        """Compute what depends only on the noise levels t (B,), for `forward`."""
        time = self._embed_time(t)
        blocks = tuple(block.modulate(time) for block in self.blocks if isinstance(block, JointBlock))
        return TimestepFeatures(t, time, blocks, self._modulate_out(time))

    def _embed_time(self, t: Tensor) -> Tensor:
        return F.silu(self.time(t))

    def _modulate_out(self, time: Tensor) -> Modulation:
        return self.modulation_out(time).float().chunk(2, dim=-1)

    def _condition_rope(self, c: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.rope_condition()
        text = c.shape[1] - cos.shape[0]  # text has no position: angle 0
        return F.pad(cos, (0, 0, 0, text), value=1.0), F.pad(sin, (0, 0, 0, text))
