"""Scenes that no data set and no judge has seen, encoded like those of training.

B clips, L latent frames, C latent channels, S motion steps, D video feature width.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...models.config import AnyModelConfig
from ...models.encoders.build import build_text_encoder
from ..core.config import DataConfig, StreamConfig
from ..core.tasks import DOMAINS
from ..data.batches import BatchAssembler
from ..data.record import Record
from ..prepare.encode import EncoderSettings, SceneTask, encode_scenes
from ..scenes.scene import SAMPLE_RATE, SAMPLES, Scene, draw_scene

SEED = 3_000_017  # differs from the seeds of data sets, judge and prompts
BLOCK = 25  # scenes that are encoded together
PREFIX = 0.4  # of a clip: determines the tempo, and leaves enough for the judge to hear it


@dataclass(frozen=True)
class HeldOutClips:
    """Clips of one domain: the true scenes, and the conditions made from them."""

    scenes: list[Scene]
    records: list[Record]
    latents: Tensor  # (B, L, C)
    video: Tensor  # (B, S, D)
    inpainting_given: Tensor  # (B, L), 1 where inpainting is given the sound, 0 in the hole
    completion_given: Tensor  # (B, L), 1 where completion is given the sound: the same number of frames in every clip
    preceding: Tensor  # (B, L, C) of the clips before those of music; no rows for a domain without completion


def check_embedded(config: AnyModelConfig, name: str) -> None:
    """Raises ValueError when weights generate other clips than the embedded scenes, which this benchmark judges."""
    codec = config.codec
    found = (codec.sample_rate, codec.samples, codec.audio_channels)
    if found != (SAMPLE_RATE, SAMPLES, 1):
        raise ValueError(
            f"{name}: its codec makes {found[1]} samples at {found[0]} Hz in {found[2]} channel(s); the embedded "
            f"benchmark judges scenes of {SAMPLES} samples at {SAMPLE_RATE} Hz in 1 channel, so give weights that were "
            f"trained on `launch/prepare.py scenes`"
        )


def draw_held_out(config: AnyModelConfig, domain: str, count: int, seed: int) -> HeldOutClips:
    """`count` clips of a domain ("audio" or "music"); same arguments, same clips.

    Raises:
        ValueError: there are fewer than two clips, so that none can exchange conditions.
    """
    if count < 2:
        raise ValueError(f"{count} clip(s) per task; at least 2, so that clips can exchange conditions")
    encoders = EncoderSettings(config.codec, config.video)
    records: list[Record] = []
    for first in range(0, count, BLOCK):
        task = SceneTask(encoders, domain, SEED + seed, first, min(first + BLOCK, count), pairs=True)
        records += encode_scenes(task)
    assemble = _assembler(config)
    rngs = [np.random.default_rng([SEED, seed, DOMAINS.index(domain), i]) for i in range(count)]
    return HeldOutClips(
        scenes=[draw_scene(SEED + seed, i, domain) for i in range(count)],
        records=records,
        latents=torch.from_numpy(np.stack([record.latent_mean for record in records])),
        video=torch.stack([assemble.video(record) for record in records]),
        inpainting_given=torch.stack([assemble.draw_given_mask("inpainting", rng) for rng in rngs]),
        completion_given=torch.stack([assemble.draw_given_mask("completion", rng) for rng in rngs]),
        preceding=torch.from_numpy(np.stack([record.preceding for record in records])),
    )


def _assembler(config: AnyModelConfig) -> BatchAssembler:
    """The training's assembler, with its usual holes; it never reads its stream."""
    data = DataConfig((StreamConfig("", {"T2A": 1.0}),), completion_prefix=(PREFIX, PREFIX))
    return BatchAssembler(config, data, build_text_encoder(config.text), seed=0)
