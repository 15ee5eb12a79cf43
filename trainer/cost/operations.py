"""Exact counts of floating point operations: a multiply and an add are two.

A token passes one of the two streams, and modulations are computed per sample, so parameters times tokens would
overstate this model's work. Counted are all matrix products; norms, activations and sums are left out (below 1%).
"""

from ...models.config import ModelConfig, TransformerConfig


def forward_flops(model: ModelConfig, text_tokens: int, n_blocks: int | None = None) -> dict[str, int]:
    """Operations of one sample's forward pass, per part and in total, with `text_tokens` of (padded) text; with
    `n_blocks` of a pass that ends after that many blocks.

    What a batch computes once, whatever its size (the embeddings of fixed times), is not a sample's.
    """
    backbone, fusion, codec = model.backbone, model.fusion, model.codec
    latent, video, audio = codec.frames, model.video.tokens, codec.frames
    condition = video + audio + text_tokens
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
        "temporal": _transformer(model.video_temporal, model.video.steps) + _transformer(model.audio_temporal, audio),
        "projections": linear(latent, codec.latent_channels, w * (1 if n_blocks else 2))
        + linear(condition, fusion.width, w)
        + linear(model.video.steps, model.video.dim + fusion.width, model.video_temporal.width)
        + linear(audio, codec.latent_channels + fusion.width, model.audio_temporal.width)
        + linear(text_tokens, model.text.dim, fusion.width)
        + linear(1, 256 + w, w),
        "fusion": 0,
    }
    if backbone.linear_path and n_blocks is None:
        parts["projections"] += linear(latent, codec.latent_channels, 2 * codec.latent_channels) + linear(
            1, w, codec.latent_channels
        )
    if fusion.enabled and fusion.gates:
        parts["fusion"] += linear(condition, fusion.width, fusion.width)
    if fusion.enabled and fusion.attention:
        queries = 3 * fusion.queries
        inner = _transformer(TransformerConfig(fusion.width, fusion.depth, fusion.heads), queries)
        gather = linear(queries, fusion.width, 2 * fusion.width) + linear(condition, fusion.width, 2 * fusion.width)
        dispatch = linear(condition, fusion.width, 2 * fusion.width)
        dispatch += 3 * linear(fusion.queries, fusion.width, 2 * fusion.width)
        scores = 4 * queries * condition * fusion.width + 4 * condition * fusion.queries * fusion.width
        parts["fusion"] += inner + gather + dispatch + scores
    return parts | {"total": sum(parts.values())}


def counted(parts: dict[str, int]) -> str:
    """The parts of `forward_flops`, as a line."""
    listed = ", ".join(f"{name} {flops / 1e9:.4g}" for name, flops in parts.items())
    return f"forward of a sample, GFLOP: {listed}"


def training_flops(model: ModelConfig, text_tokens: int) -> int:
    """Forward and backward of one sample, without what checkpointing recomputes (the numerator of MFU)."""
    return 3 * forward_flops(model, text_tokens)["total"]


def _transformer(config: TransformerConfig, tokens: int) -> int:
    w = config.width
    return config.depth * (2 * tokens * w * (4 * w + 3 * (w * 8 // 3)) + 4 * tokens**2 * w)
