"""The two networks behind one interface, and which of them a configuration is of."""

from typing import Any

import torch
from torch import nn

from .audiox import AudioX, SamplingConfig
from .config import AnyModelConfig, ReleasedModelConfig
from .discriminator import DepthHeads, DiscriminatorHead
from .int8 import int8_tensors
from .released.audiox import ReleasedAudioX
from .released.discriminator import ReleasedDiscriminator

Network = AudioX | ReleasedAudioX


def network_class(config: Any) -> type[AudioX] | type[ReleasedAudioX]:
    """Of the JSON of a weights folder's `config.json`."""
    model = config.get("model") if isinstance(config, dict) else None
    return ReleasedAudioX if isinstance(model, dict) and "released" in model else AudioX


def build_discriminator(config: AnyModelConfig, blocks: int, heads: int = 1) -> nn.Module:
    """The trained part of a discriminator on what a network gives for `trunk_options`: (B, …) -> scores (B, tokens)."""
    if isinstance(config, ReleasedModelConfig):
        return ReleasedDiscriminator(blocks, config.codec.latent_channels)
    width = config.backbone.width
    return DiscriminatorHead(width) if heads == 1 else DepthHeads(width, heads)


def feature_shape(config: AnyModelConfig, blocks: int, heads: int = 1) -> tuple[int, ...]:
    """Of what a discriminator takes, per sample: tokens (L, W), of several heads (heads, L, W), or the released
    velocities (blocks, L, C)."""
    if isinstance(config, ReleasedModelConfig):
        return blocks, config.latent_frames, config.codec.latent_channels
    tokens = config.latent_frames, config.backbone.width
    return tokens if heads == 1 else (heads, *tokens)


def build_network(config: AnyModelConfig, sampling: SamplingConfig | None = None, license: str = "") -> Network:
    """With random weights."""
    if isinstance(config, ReleasedModelConfig):
        return ReleasedAudioX(config, sampling, license)
    return AudioX(config, sampling, license)


def count_parameters(network: Network) -> dict[str, int]:
    """Parameters per part; the parts add up to the whole."""

    def size(*modules: nn.Module) -> int:
        parameters = sum(p.numel() for module in modules for p in module.parameters())
        return parameters + sum(x.numel() for module in modules for x in int8_tensors(module) if x.dtype == torch.int8)

    if isinstance(network, ReleasedAudioX):
        parts = {"blocks": size(*network.backbone.blocks), "fusion": size(network.maf_block)}
        parts["temporal"] = size(network.conditioner)
    else:
        conditioner = network.conditioner
        parts = {"blocks": size(network.backbone.blocks), "fusion": size(conditioner.fusion)}
        parts["temporal"] = size(*filter(None, (conditioner.video, conditioner.audio)))
    total = size(network)
    return parts | {"rest": total - sum(parts.values()), "total": total}
