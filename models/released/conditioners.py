"""The released conditioners and their fusion: features of the frozen encoders to condition tokens.

Attributes have the names of the released state dict. B batch, F frames, P tokens of a frame, S sync steps, L latents of
the audio prompt, T = 128 tokens of a modality, C condition width.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .config import ReleasedConfig

INITIAL_GATE = -10.0  # sigmoid 4.5e-5: fusion starts by adding next to nothing


class Normalized(nn.Module):
    """A layer norm in front of a function; the released names have it around each half of a layer."""

    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x))


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * head_width, width), nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.to_qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        return self.to_out(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        # Their dropouts, which are off, hold places 2 and 4.
        self.net = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Identity(), nn.Linear(4 * width, width), nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class ReleasedTemporalTransformer(nn.Module):
    """Over the frames of one token: (B·P, F, C) -> (B·P, F, C)."""

    def __init__(self, config: ReleasedConfig) -> None:
        super().__init__()
        width = config.condition_width
        self.layers = nn.ModuleList(
            nn.ModuleList(
                (
                    Normalized(width, SelfAttention(width, config.temporal_heads, config.temporal_head_width)),
                    Normalized(width, Mlp(width)),
                )
            )
            for _ in range(config.temporal_depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            for half in layer.children():
                x = x + half(x)
        return self.norm(x)


class VideoConditioner(nn.Module):
    def __init__(self, config: ReleasedConfig) -> None:
        super().__init__()
        width = config.condition_width
        self.empty_visual_feat = nn.Parameter(torch.zeros(1, config.tokens, width))
        self.sync_weight = nn.Parameter(torch.ones(1))
        self.Temp_pos_embedding = nn.Parameter(torch.zeros(1, config.frames, width))
        self.Temp_transformer = ReleasedTemporalTransformer(config)
        self.proj = nn.Linear(config.frames * config.frame_tokens, config.tokens)
        self.proj_sync = nn.Linear(config.sync_steps, config.tokens)

    def forward(self, clip: Tensor, sync: Tensor, present: Tensor) -> Tensor:
        """CLIP's hidden states (B, F, P, C), sync features (B, S, C), whether there is a video (B,) -> (B, T, C)."""
        if torch.is_inference_mode_enabled() and not present.any():  # in training all ranks compute the same modules
            return self.empty_visual_feat.expand(len(clip), -1, -1)
        tokens = self.project(self.temporal(clip), self.proj) + self.sync_weight * self.project(sync, self.proj_sync)
        return torch.where(present[:, None, None], tokens, self.empty_visual_feat.to(tokens.dtype))

    def temporal(self, clip: Tensor) -> Tensor:
        """(B, F, P, C) -> (B, F·P, C)."""
        x = rearrange(clip, "b f p c -> (b p) f c") + self.Temp_pos_embedding
        return rearrange(self.Temp_transformer(x), "(b p) f c -> b (f p) c", b=len(clip))

    @staticmethod
    def project(x: Tensor, linear: nn.Linear) -> Tensor:
        """(B, N, C) -> (B, T, C). The numbers of a sample are read row after row as (C, N), projected, and the (C, T)
        that comes out is read row after row as (T, C): reinterpreted both times, not transposed."""
        batch, n, width = x.shape
        return linear(x.reshape(batch, width, n)).reshape(batch, -1, width)


class AudioConditioner(nn.Module):
    def __init__(self, config: ReleasedConfig) -> None:
        super().__init__()
        self.proj_features_128 = nn.Linear(config.prompt_latents, config.tokens)
        self.proj_out = nn.Linear(config.channels, config.condition_width)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (B, L, channels) of the prompt, those of silence where there is none -> (B, T, C)."""
        return self.proj_out(self.proj_features_128(latents.transpose(1, 2)).transpose(1, 2))


class PackedAttention(nn.Module):
    """Multi-head attention whose queries, keys and values have one weight, as torch's has."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Tokens (B, N, C) attend to others (B, M, C) -> (B, N, C)."""
        width = x.shape[-1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        q = F.linear(x, weight[:width], bias[:width])
        k, v = F.linear(context, weight[width:], bias[width:]).chunk(2, dim=-1)
        q, k, v = (rearrange(each, "b n (h d) -> b h n d", h=self.heads) for each in (q, k, v))
        return self.out_proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))


class FusionLayer(nn.Module):
    """Pre-norm self-attention and MLP. The release has dropout here in training, which ours has not."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = PackedAttention(width, heads)
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.self_attn(h, h)
        return x + self.linear2(F.gelu(self.linear1(self.norm2(x))))


class FusionTransformer(nn.Module):
    def __init__(self, config: ReleasedConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            FusionLayer(config.condition_width, config.fusion_heads) for _ in range(config.fusion_depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class ReleasedFusion(nn.Module):
    """MAF. Its names v, t, a belong to the first, second and third input, and it is called with text, video, audio."""

    def __init__(self, config: ReleasedConfig) -> None:
        super().__init__()
        width = config.condition_width
        self.queries = config.queries
        self.unified_experts = nn.Parameter(torch.randn(3 * config.queries, width))
        self.gating_network = nn.Sequential(nn.Linear(3 * width, width), nn.GELU(), nn.Linear(width, 3))
        self.cross_attn = PackedAttention(width, config.fusion_heads)
        self.norm1 = nn.LayerNorm(width)
        self.fusion_transformer = FusionTransformer(config)
        for name in "vta":
            setattr(self, f"bypass_gate_{name}", nn.Parameter(torch.full((1,), INITIAL_GATE)))
            setattr(self, f"norm_{name}2", nn.LayerNorm(width))

    def forward(self, text: Tensor, video: Tensor, audio: Tensor) -> Tensor:
        """Three of (B, T, C) -> (B, 3·T, C), in the order text, video, audio."""
        inputs = (text, video, audio)
        gates = self.gates(inputs)
        context = torch.cat([gates[:, i, None, None] * x for i, x in enumerate(inputs)], dim=1)
        experts = self.unified_experts.expand(len(text), -1, -1)
        experts = self.norm1(experts + self.cross_attn(experts, context))
        summaries = rearrange(self.fusion_transformer(experts), "b (m q) c -> m b q c", q=self.queries).mean(2)
        fused = []
        for name, x, summary in zip("vta", inputs, summaries, strict=True):
            gate, norm = getattr(self, f"bypass_gate_{name}"), getattr(self, f"norm_{name}2")
            fused.append(x + gate.sigmoid() * norm(summary)[:, None])
        return torch.cat(fused, dim=1)

    def gates(self, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """(B, 3). Means over all tokens, the zero rows of padded text included."""
        return self.gating_network(torch.cat([x.mean(1) for x in inputs], dim=-1)).sigmoid()
