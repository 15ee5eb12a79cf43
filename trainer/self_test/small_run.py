"""A run of a small model that takes the same paths through DeepSpeed as a run of a large one."""

import math
from dataclasses import replace
from typing import Any, TypeVar

from ...models.config import BackboneConfig, ModelConfig, TransformerConfig
from ..core.config import LoggingConfig, OptimizerConfig, PretrainConfig, ScheduleConfig, check_ranks
from ..core.config_reader import merged
from ..core.distill_config import DistillConfig, RoleConfig, UpdatesConfig

C = TypeVar("C", PretrainConfig, DistillConfig)

# At most, of the small model and its training.
MICRO_BATCH, ACCUMULATION, FRAMES, TOKENS, WIDTH, HEADS, DEPTH = 2, 3, 8, 16, 32, 2, 2
ROUNDS = 2  # updates of every role: the second finds what the first has left behind
STILL = ScheduleConfig(warmup=0.0)
RATE = 1e-30  # changes no weight
ALIGNMENT = 64  # elements, of which sizes are multiples
# DeepSpeed's sizes in elements, by default. They decide what is reduced together, gathered early or kept apart.
SIZES = {
    "reduce_bucket_size": 5e8,
    "allgather_bucket_size": 5e8,
    "sub_group_size": 1e9,
    "stage3_prefetch_bucket_size": 5e7,
    "stage3_max_live_parameters": 1e9,
    "stage3_max_reuse_distance": 1e9,
}
PERSISTENT, PERSISTENT_SIZE = "stage3_param_persistence_threshold", 1e5  # the same, of a single weight


def small_run(config: C, ranks: int) -> C:
    """The same run with a small model, few micro-batches, and rates that change no weight. Its blocks are not compiled
    and not in FP8: compiling takes longer than the test may, and FP8 has an error of its own."""
    assert isinstance(config.model, ModelConfig)  # there is no small released network
    model, training = small_model(config.model), config.training
    micro, accumulation = min(MICRO_BATCH, training.micro_batch), min(ACCUMULATION, check_ranks(training, ranks))
    loop = replace(
        training,
        steps=ROUNDS,
        global_batch=ranks * micro * accumulation,
        micro_batch=micro,
        compile=False,
        compile_conditioner=False,
        fp8=False,
    )
    changes: dict[str, Any] = {
        "model": model,
        "training": loop,
        "logging": LoggingConfig(),
        "deepspeed": merged(config.deepspeed, {"zero_optimization": scaled_sizes(config, model)}),
    }
    if isinstance(config, PretrainConfig):
        return replace(config, **changes, optimizer=_still(config.optimizer), schedule=STILL)
    blocks = min(config.distillation.discriminator_blocks, model.backbone.depth)
    changes |= {name: _still_role(getattr(config, name)) for name in ("student", "fake", "discriminator")}
    heads = min(config.distillation.discriminator_heads, blocks)
    changes["distillation"] = replace(
        config.distillation,
        discriminator_blocks=blocks,
        discriminator_heads=heads,
        fake_alignment=0.0,  # moves weights, which have to stay
    )
    changes["updates"] = UpdatesConfig(student=1, fake=1, discriminator=1)
    warm = replace(config.warm_start, updates=min(1, config.warm_start.updates), ode_steps=2)
    changes["warm_start"] = replace(warm, lr=None, schedule=None, reset_moments=False)
    return replace(config, **changes)


def small_model(model: ModelConfig) -> ModelConfig:
    """The same architecture with fewer and narrower layers, of the same width per head, and shorter inputs."""

    def narrow(config: TransformerConfig, depth: int) -> TransformerConfig:
        heads = min(HEADS, config.heads)
        return replace(config, width=config.width // config.heads * heads, heads=heads, depth=min(depth, config.depth))

    text, video, fusion, backbone = model.text, model.video, model.fusion, model.backbone
    multiple = min(text.pad_to_multiple_of, TOKENS // 2)
    if video:
        pool = min(video.pool, 2)
        video = replace(video, dim=min(WIDTH, video.dim), steps=min(video.steps, 8 * pool), pool=pool)
    heads = {"fusion": min(HEADS, fusion.heads), "backbone": min(HEADS, backbone.heads)}
    width = {"fusion": fusion.width // fusion.heads, "backbone": backbone.width // backbone.heads}
    return replace(
        model,
        codec=replace(model.codec, frames=min(FRAMES, model.codec.frames)),
        text=replace(text, kind="words", dim=min(WIDTH, text.dim), max_tokens=TOKENS, pad_to_multiple_of=multiple),
        video=video,
        video_temporal=model.video_temporal and narrow(model.video_temporal, 1),
        audio_temporal=narrow(model.audio_temporal, 1),
        fusion=replace(
            fusion,
            queries=min(2, fusion.queries),
            width=width["fusion"] * heads["fusion"],
            heads=heads["fusion"],
            depth=min(1, fusion.depth),
        ),
        backbone=replace(
            backbone,
            width=width["backbone"] * heads["backbone"],
            heads=heads["backbone"],
            depth=min(DEPTH, backbone.depth),
            mlp_hidden=min(2 * width["backbone"] * heads["backbone"], backbone.mlp_hidden),
        ),
    )


def scaled_sizes(config: PretrainConfig | DistillConfig, small: ModelConfig) -> dict[str, int]:
    """DeepSpeed's sizes, its own or the configuration's, as much smaller as the model is."""
    assert isinstance(config.model, ModelConfig)
    blocks = [_block_weights(model.backbone) for model in (small, config.model)]
    share, layer = blocks[0] / blocks[1], (small.backbone.width / config.model.backbone.width) ** 2
    shares = dict.fromkeys(SIZES, share) | {PERSISTENT: layer}
    own: dict[str, Any] = config.deepspeed.get("zero_optimization", {})
    sizes = SIZES | {PERSISTENT: PERSISTENT_SIZE} | {name: own[name] for name in shares if name in own}
    return {name: ALIGNMENT * math.ceil(size * shares[name] / ALIGNMENT) for name, size in sizes.items()}


def _block_weights(backbone: BackboneConfig) -> int:
    """Elements of the blocks' matrices, which are nearly all of a large model: of each of two streams projections to
    queries, keys and values, out of attention, and to six modulations, and a SwiGLU."""
    return 2 * backbone.depth * backbone.width * (10 * backbone.width + 3 * backbone.mlp_hidden)


def _still(optimizer: OptimizerConfig) -> OptimizerConfig:
    """Changes no weight, and its first moment is the gradient."""
    return replace(optimizer, lr=RATE, betas=(0.0, optimizer.betas[1]), weight_decay=0.0)


def _still_role(role: RoleConfig) -> RoleConfig:
    return replace(role, optimizer=_still(role.optimizer), schedule=STILL)
