"""Scenes that no data set and no judge has seen, encoded as the training's were.

B clips, L latent frames, C latent channels, S motion steps, D video feature width.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...models.config import ModelConfig
from ...models.encoders.build import build_text_encoder
from ..core.config import DataConfig, StreamConfig
from ..core.tasks import DOMAINS
from ..data.batches import BatchAssembler
from ..data.record import Record
from ..prepare.encode import EncoderSettings, SceneTask, encode_scenes
from ..scenes.scene import SAMPLE_RATE, SAMPLES, Scene, draw_scene

SEED = 3_000_017  # apart from the data sets' seeds, the judge's and the prompts'
BLOCK = 25  # scenes that are encoded together
PREFIX = (
    0.4  # of a clip: where a judge still hears the tempo in what is left, and the tempo is settled by what is given
)


@dataclass(frozen=True)
class Unseen:
    """Clips of one domain: what is true of them, and the conditions that they give."""

    scenes: list[Scene]
    records: list[Record]
    latents: Tensor  # (B, L, C)
    video: Tensor  # (B, S, D)
    hole: Tensor  # (B, L), 1 where inpainting is given the sound, 0 in the hole
    prefix: Tensor  # (B, L), 1 where completion is given the sound: the first frames, as many in every clip


def check_embedded(config: ModelConfig, name: str) -> None:
    """Raises ValueError when weights make other clips than the embedded scenes, which this benchmark judges."""
    codec = config.codec
    found = (codec.sample_rate, codec.samples, codec.audio_channels)
    if found != (SAMPLE_RATE, SAMPLES, 1):
        raise ValueError(
            f"{name}: its codec makes {found[1]} samples at {found[0]} Hz in {found[2]} channel(s); the embedded "
            f"benchmark judges scenes of {SAMPLES} samples at {SAMPLE_RATE} Hz in 1 channel, so give weights that were "
            f"trained on `launch/prepare.py scenes`"
        )


def draw_unseen(config: ModelConfig, domain: str, count: int, seed: int) -> Unseen:
    """`count` clips of a domain ("audio" or "music"); same arguments, same clips.

    Raises:
        ValueError: there are fewer than two clips, which leaves none to exchange conditions with.
    """
    if count < 2:
        raise ValueError(f"{count} clip(s) a task; at least 2, so that conditions can be exchanged between clips")
    encoders = EncoderSettings(config.codec, config.video)
    records: list[Record] = []
    for first in range(0, count, BLOCK):
        task = SceneTask(encoders, domain, SEED + seed, first, min(first + BLOCK, count))
        records += encode_scenes(task)
    assemble = _assembler(config)
    rngs = [np.random.default_rng([SEED, seed, DOMAINS.index(domain), i]) for i in range(count)]
    return Unseen(
        scenes=[draw_scene(SEED + seed, i, domain) for i in range(count)],
        records=records,
        latents=torch.from_numpy(np.stack([record.latent_mean for record in records])),
        video=torch.stack([assemble.video(record) for record in records]),
        hole=torch.stack([assemble.draw_given_mask("inpainting", rng) for rng in rngs]),
        prefix=torch.stack([assemble.draw_given_mask("completion", rng) for rng in rngs]),
    )


def _assembler(config: ModelConfig) -> BatchAssembler:
    """The training's own way from records to conditions, with its usual holes; no stream is ever read."""
    data = DataConfig((StreamConfig("", {"T2A": 1.0}),), completion_prefix=(PREFIX, PREFIX))
    return BatchAssembler(config, data, build_text_encoder(config.text), seed=0)
