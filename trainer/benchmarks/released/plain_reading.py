"""The released network as one would write it down from its description, part after part, to compare speeds with.

Nothing is kept from one evaluation to the next, and what an evaluation has in vain is computed: the modulation of every
position in every step, both halves of the cross-attention's keys and values, the video of samples that have none.

B batch, F frames, P tokens of a frame, S sync steps, T tokens of a modality, N positions, D width, H heads, C condition
width.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....models.released.audiox import ReleasedAudioX
from ....models.released.config import ReleasedConfig
from ....models.released.network import BACKBONE

Weights = dict[str, Tensor]  # by their names in the released files, without what stands before the part's own


class PlainReading(nn.Module):
    """The same function of the same weights as `ReleasedAudioX`."""

    def __init__(self, network: ReleasedAudioX, compiled: bool) -> None:
        super().__init__()
        self.network, self.sizes = network, network.sizes
        self.block: Callable[..., Tensor] = torch.compile(block) if compiled else block

    def part(self, prefix: str) -> Weights:
        """The weights whose names begin so."""
        named = self.network.named_parameters()
        return {name.removeprefix(prefix): weight for name, weight in named if name.startswith(prefix)}

    def forward(self, z: Tensor, t: Tensor, video: Tensor, audio: Tensor, text: Tensor, text_length: Tensor) -> Tensor:
        """The velocity, of what `ReleasedAudioX.forward` takes."""
        return self.velocity(z, t, self.condition(video, audio, text, text_length))

    def condition(self, video: Tensor, audio: Tensor, text: Tensor, text_length: Tensor) -> Tensor:
        """(B, 3·T, C)."""
        c = self.sizes
        clip, sync = video.split((c.frames * c.frame_tokens, c.sync_steps), dim=1)
        seen = read_video(self.part("conditioner.conditioners.video_prompt."), c, clip, sync, video.flatten(1).any(1))
        prompt = torch.where(audio.any(-1, keepdim=True), audio, self.network.silence.to(audio.dtype))
        heard = read_audio(self.part("conditioner.conditioners.audio_prompt."), prompt)
        text = F.pad(text, (0, 0, 0, c.tokens - text.shape[1]))
        words = text * (torch.arange(c.tokens, device=text.device) < text_length[:, None])[..., None]
        return fuse(self.part("maf_block."), c, words, seen, heard) * (text_length > 0)[:, None, None]

    def conditioned(self, condition: Tensor, length: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """As of `ReleasedAudioX`, but nothing is computed yet."""
        return lambda z, t: self.velocity(z, t, condition)

    def velocity(self, z: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """(B, L, channels)."""
        p = self.part(BACKBONE)
        phase = 2 * math.pi * t.float()[:, None] * p["timestep_features.weight"].float().T
        features = torch.cat((phase.cos(), phase.sin()), dim=-1).to(z.dtype)
        time = linear(p, "to_timestep_embed.2", F.silu(linear(p, "to_timestep_embed.0", features)))
        mixed = linear(p, "transformer.proj_mm_tokens", condition)
        mixed = linear(p, "transformer.proj_mm_seq_len", mixed.transpose(1, 2)).transpose(1, 2)
        x = z + convolution(p, "preprocess_conv", z)
        x = torch.cat((time[:, None], linear(p, "transformer.project_in", x)), dim=1)
        for i in range(self.sizes.depth):
            x = self.block(self.part(f"{BACKBONE}transformer.layers.{i}."), self.sizes.heads, x, mixed, time)
        x = linear(p, "transformer.project_out", x)[:, 1:]
        return x + convolution(p, "postprocess_conv", x)


def linear(p: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))


def convolution(p: Weights, name: str, x: Tensor) -> Tensor:
    """Over the positions of (B, N, D), which it keeps."""
    weight = p[f"{name}.weight"]
    return F.conv1d(x.transpose(1, 2), weight, p.get(f"{name}.bias"), padding=weight.shape[2] // 2).transpose(1, 2)


def layer_norm(p: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"])


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Queries (B, N, D), keys and values (B, M, D) -> (B, N, D)."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def read_video(p: Weights, c: ReleasedConfig, clip: Tensor, sync: Tensor, present: Tensor) -> Tensor:
    """CLIP's tokens (B, F·P, C) and the sync features (B, S, C) -> (B, T, C)."""
    batch, _, width = clip.shape
    x = clip.unflatten(1, (c.frames, c.frame_tokens)).transpose(1, 2).flatten(0, 1) + p["Temp_pos_embedding"]
    for i in range(c.temporal_depth):
        layer = f"Temp_transformer.layers.{i}"
        q, k, v = linear(p, f"{layer}.0.fn.to_qkv", layer_norm(p, f"{layer}.0.norm", x)).chunk(3, dim=-1)
        x = x + linear(p, f"{layer}.0.fn.to_out.0", attention(q, k, v, c.temporal_heads))
        hidden = F.gelu(linear(p, f"{layer}.1.fn.net.0", layer_norm(p, f"{layer}.1.norm", x)))
        x = x + linear(p, f"{layer}.1.fn.net.3", hidden)
    x = layer_norm(p, "Temp_transformer.norm", x)
    x = x.unflatten(0, (batch, c.frame_tokens)).transpose(1, 2).reshape(batch, width, -1)
    seen = linear(p, "proj", x).reshape(batch, c.tokens, width)
    moved = linear(p, "proj_sync", sync.reshape(batch, width, -1)).reshape(batch, c.tokens, width)
    return torch.where(present[:, None, None], seen + p["sync_weight"] * moved, p["empty_visual_feat"].to(seen.dtype))


def read_audio(p: Weights, latents: Tensor) -> Tensor:
    """The prompt's latents (B, L, channels) -> (B, T, C)."""
    return linear(p, "proj_out", linear(p, "proj_features_128", latents.transpose(1, 2)).transpose(1, 2))


def fuse(p: Weights, c: ReleasedConfig, text: Tensor, video: Tensor, audio: Tensor) -> Tensor:
    """Three of (B, T, C) -> (B, 3·T, C)."""
    inputs = (text, video, audio)
    means = torch.cat([x.mean(1) for x in inputs], dim=-1)
    gates = linear(p, "gating_network.2", F.gelu(linear(p, "gating_network.0", means))).sigmoid()
    context = torch.cat([gates[:, i, None, None] * x for i, x in enumerate(inputs)], dim=1)
    queries = p["unified_experts"].expand(len(text), -1, -1)
    x = layer_norm(p, "norm1", queries + packed_attention(p, "cross_attn", queries, context, c.fusion_heads))
    for i in range(c.fusion_depth):
        layer = f"fusion_transformer.layers.{i}"
        h = layer_norm(p, f"{layer}.norm1", x)
        x = x + packed_attention(p, f"{layer}.self_attn", h, h, c.fusion_heads)
        hidden = F.gelu(linear(p, f"{layer}.linear1", layer_norm(p, f"{layer}.norm2", x)))
        x = x + linear(p, f"{layer}.linear2", hidden)
    summaries = x.unflatten(1, (3, c.queries)).mean(2)
    fused = []
    for i, name in enumerate("vta"):
        gate = p[f"bypass_gate_{name}"].sigmoid()
        fused.append(inputs[i] + gate * layer_norm(p, f"norm_{name}2", summaries[:, i])[:, None])
    return torch.cat(fused, dim=1)


def packed_attention(p: Weights, name: str, x: Tensor, context: Tensor, heads: int) -> Tensor:
    weights, biases = p[f"{name}.in_proj_weight"].chunk(3), p[f"{name}.in_proj_bias"].chunk(3)
    q, k, v = (F.linear(y, w, b) for y, w, b in zip((x, context, context), weights, biases, strict=True))
    return linear(p, f"{name}.out_proj", attention(q, k, v, heads))


def block(p: Weights, heads: int, x: Tensor, mixed: Tensor, time: Tensor) -> Tensor:
    """Positions (B, N, D), the mixed condition (B, N, D), the time token (B, D) -> (B, N, D)."""
    modulation = linear(p, "adaLN_modulation.1", F.silu(mixed))
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
    h = F.layer_norm(x, x.shape[-1:]) * (1 + scale1) + shift1
    q, k, v = linear(p, "attn.qkv", h).unflatten(-1, (heads, -1, 3)).unbind(-1)  # each (B, N, H, D/H)
    q, k = rotate(root_mean_square_norm(q)), rotate(root_mean_square_norm(k))
    attended = attention(q.flatten(2), k.flatten(2), v.flatten(2), heads)
    x = x + gate1 * convolution(p, "linear1", attended)
    value, _ = linear(p, "cross_attn.to_kv", time).unflatten(-1, (heads, -1, 2)).unbind(-1)
    x = x + root_mean_square_norm(value).flatten(1)[:, None]
    r = F.layer_norm(x, x.shape[-1:]) * (1 + scale2) + shift2
    hidden = F.silu(convolution(p, "ffn.w1", r)) * convolution(p, "ffn.w3", r)
    return x + gate2 * convolution(p, "ffn.w2", hidden)


def root_mean_square_norm(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def rotate(x: Tensor) -> Tensor:
    """Neighbouring pairs of (B, N, H, D/H) by angles that grow with the position, in float32."""
    positions = torch.arange(x.shape[1], device=x.device, dtype=torch.float32)
    rates = 10000 ** (-torch.arange(0, x.shape[-1], 2, device=x.device, dtype=torch.float32) / x.shape[-1])
    angles = (positions[:, None] * rates)[:, None]
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()), dim=-1)
    return turned.flatten(-2).to(x.dtype)
