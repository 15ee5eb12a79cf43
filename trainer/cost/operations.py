"""Exact counts of floating point operations: a multiply and an add are two.

A token passes one of the two streams, and modulations are computed per sample, so parameters times tokens would
overstate this model's work. All matrix products are counted; norms, activations and sums are left out (below 1%), and
so is the discriminator's head, which is two small products.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from ...models.config import AnyModelConfig, ReleasedModelConfig, TransformerConfig
from ...models.lora import LoraConfig, add_adapters
from ...models.networks import build_network
from ..core.distill_config import DistillConfig
from ..core.update_cycle import Phase
from .passes import Gradient, Pass, distillation_passes, pretraining_passes
from .released_operations import released_forward_flops

BLOCKS = ("latent stream", "condition stream", "attention", "modulation")  # parts that checkpointing computes again


def forward_flops(model: AnyModelConfig, text_tokens: int, n_blocks: int | None = None) -> dict[str, int]:
    """Operations of one sample's forward pass, per part and in total, with `text_tokens` of (padded) text. With
    `n_blocks` the pass ends after that many blocks.

    What a batch computes once, whatever its size (the embeddings of fixed times), is not counted.
    """
    if isinstance(model, ReleasedModelConfig):
        return released_forward_flops(model, n_blocks)
    backbone, fusion, codec = model.backbone, model.fusion, model.codec
    latent, audio, video = codec.frames, codec.frames, model.video_temporal
    condition = model.video_tokens + audio + text_tokens
    w = backbone.width

    def linear(tokens: int, inputs: int, outputs: int) -> int:
        return 2 * tokens * inputs * outputs

    def stream(tokens: int, blocks: int) -> int:  # QKV, output projection, gated MLP
        return blocks * (linear(tokens, w, 4 * w) + linear(tokens, w, 3 * backbone.mlp_hidden))

    depth = backbone.depth if n_blocks is None else n_blocks
    ends = depth == backbone.depth  # with the last block, whose condition stream stops at its keys and values
    everything = latent + condition
    parts = {
        "latent stream": stream(latent, depth),
        "condition stream": stream(condition, depth - ends) + ends * linear(condition, w, 3 * w),
        "attention": depth * 4 * everything**2 * w,
        "modulation": linear(1, w, w) * (12 * depth - 4 * ends + 2 * (n_blocks is None)),
        "temporal": _transformer(model.audio_temporal, audio),
        "projections": linear(latent, codec.latent_channels, w * (1 if n_blocks else 2))
        + linear(condition, fusion.width, w)
        + linear(audio, codec.latent_channels + fusion.width, model.audio_temporal.width)
        + linear(text_tokens, model.text.dim, fusion.width)
        + linear(1, 256 + w, w),
        "fusion": 0,
    }
    if video:
        parts["temporal"] += _transformer(video, model.video_rows)
        parts["projections"] += linear(model.video_rows, model.video_dim + fusion.width, video.width)
    if backbone.linear_path and n_blocks is None:
        parts["projections"] += linear(latent, codec.latent_channels, 2 * codec.latent_channels) + linear(
            1, w, codec.latent_channels
        )
    if fusion.enabled and fusion.gates:
        parts["fusion"] += linear(condition, fusion.width, fusion.width)
    if fusion.enabled and fusion.attention:
        queries = len(model.modalities) * fusion.queries
        inner = _transformer(TransformerConfig(fusion.width, fusion.depth, fusion.heads), queries)
        gather = linear(queries, fusion.width, 2 * fusion.width) + linear(condition, fusion.width, 2 * fusion.width)
        dispatch = linear(condition, fusion.width, 2 * fusion.width)
        dispatch += linear(queries, fusion.width, 2 * fusion.width)
        scores = 4 * queries * condition * fusion.width + 4 * condition * fusion.queries * fusion.width
        parts["fusion"] += inner + gather + dispatch + scores
    return parts | {"total": sum(parts.values())}


def pass_flops(model: AnyModelConfig, one: Pass, text_tokens: int) -> int:
    """Operations of a pass for one sample of the micro-batch. A backward pass to the weights counts as two forward
    passes; one to the latents counts as one, without the conditioner."""
    if one.role == "discriminator":
        return 0
    if one.lora:
        return one.count * one.samples * adapter_flops(model, one.lora, text_tokens, one.gradient)
    parts = forward_flops(model, text_tokens, one.blocks)
    whole, conditioner = parts["total"], parts["temporal"] + parts["fusion"]
    backward = {Gradient.NONE: 0, Gradient.LATENTS: whole - conditioner, Gradient.WEIGHTS: 2 * whole}[one.gradient]
    return one.count * one.samples * (whole + backward)


def update_flops(model: AnyModelConfig, passes: Sequence[Pass], text_tokens: int) -> int:
    """Operations of an update for one sample, without what checkpointing computes again (the numerator of MFU)."""
    return sum(pass_flops(model, one, text_tokens) for one in passes)


def recomputed_flops(model: AnyModelConfig, passes: Sequence[Pass], text_tokens: int) -> int:
    """Operations of an update for one sample that checkpointing adds: the blocks of every pass with a gradient."""
    total = 0
    for one in passes:
        if one.gradient is not Gradient.NONE and one.role != "discriminator":
            parts = forward_flops(model, text_tokens, one.blocks)
            total += one.count * one.samples * sum(parts[name] for name in BLOCKS)
    return total


def training_flops(model: AnyModelConfig, text_tokens: int, lora: LoraConfig | None = None) -> int:
    """`update_flops` of a pretraining step, of everything or of adapters."""
    return update_flops(model, pretraining_passes(lora), text_tokens)


def distillation_flops(config: DistillConfig, phase: Phase, k: int, text_tokens: int) -> int:
    """`update_flops` of a distillation's update about the student's step `k`."""
    return update_flops(config.model, distillation_passes(config, phase, k), text_tokens)


def _transformer(config: TransformerConfig, tokens: int) -> int:
    w = config.width
    return config.depth * (2 * tokens * w * (4 * w + 3 * (w * 8 // 3)) + 4 * tokens**2 * w)


@cache
def adapter_flops(model: AnyModelConfig, lora: LoraConfig, text_tokens: int, gradient: Gradient) -> int:
    """Operations of one sample's pass. torch counts them, on a network without numbers: which frozen layers a backward
    pass goes through follows from where the first adapter is."""
    codec, text = model.codec, model.text
    with torch.device("meta"):
        network = build_network(model)
        add_adapters(network, lora)
        network.to("meta")  # its constants too
        if gradient is not Gradient.WEIGHTS:
            network.requires_grad_(False)
        z = torch.empty(1, model.latent_frames, codec.latent_channels, requires_grad=gradient is Gradient.LATENTS)
        video = torch.empty(1, model.video_rows, model.video_dim)
        audio = torch.empty(1, codec.frames, codec.latent_channels)
        words = torch.empty(1, text_tokens, text.dim), torch.empty(1, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            velocity = network(z, torch.empty(1), video, audio, *words)
            if gradient is not Gradient.NONE:
                velocity.sum().backward()
    return int(counter.get_total_flops())
