"""Exact counts of the released network's floating point operations: a multiply and an add are two."""

from ...models.config import ReleasedModelConfig


def released_forward_flops(model: ReleasedModelConfig, n_blocks: int | None = None) -> dict[str, int]:
    """Operations of one sample's forward pass, per part and in total. With `n_blocks` the network is cut after each of
    so many blocks, which adds their output projections. All lengths are fixed, those of texts too."""
    c = model.released
    width, condition = c.width, c.condition_width
    n, latents, tokens = c.positions, c.latents, c.condition_tokens
    depth, cuts = (c.depth, 1) if n_blocks is None else (n_blocks, n_blocks)

    def linear(rows: int, inputs: int, outputs: int) -> int:
        return 2 * rows * inputs * outputs

    def convolution(inputs: int, outputs: int) -> int:  # over three positions
        return linear(n, 3 * inputs, outputs)

    images, inner = c.frames * c.frame_tokens, c.temporal_heads * c.temporal_head_width
    temporal = linear(images, condition, 4 * inner) + linear(images, condition, 8 * condition)
    temporal += 4 * images * c.frames * inner
    queries = 3 * c.queries
    layer = linear(queries, condition, 12 * condition) + 4 * queries**2 * condition
    gather = linear(queries, condition, 2 * condition) + linear(tokens, condition, 2 * condition)
    parts = {
        "latent stream": depth
        * (
            linear(n, width, 3 * width)
            + convolution(width, width)
            + 2 * convolution(width, c.hidden)
            + convolution(c.hidden, width)
        ),
        "condition stream": 0,
        "attention": depth * 4 * n**2 * width,
        "modulation": depth * (linear(n, width, 6 * width) + linear(1, width, 2 * width)),
        "temporal": c.temporal_depth * temporal,
        "projections": (1 + cuts) * linear(latents, c.channels, c.channels)
        + linear(latents, c.channels, width)
        + cuts * linear(n, width, c.channels)
        + linear(1, 1, 128)
        + linear(1, 256 + width, width)
        + linear(tokens, condition, width)
        + linear(width, tokens, n)
        + linear(condition, images + c.sync_steps, c.tokens)
        + linear(c.channels, c.prompt_latents, c.tokens)
        + linear(c.tokens, c.channels, condition),
        "fusion": linear(1, 3 * condition, condition)
        + linear(1, condition, 3)
        + gather
        + 4 * queries * tokens * condition
        + c.fusion_depth * layer,
    }
    return parts | {"total": sum(parts.values())}
