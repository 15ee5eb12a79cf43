"""Trains the judge on true scenes.

Half of its training sounds have been through the codec and back, so that it does not mistake artefacts of the phase
reconstruction for events. B batch, T frames, K categories.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ...models.encoders.base import AudioCodec
from ...models.judge import Judge, JudgeConfig, JudgeOutput
from ..core.hardware import cpu_has_bf16
from ..scenes.scene import AUDIO_CATEGORIES, INSTRUMENTS, SAMPLES, TEMPI, Scene, draw_scene
from ..scenes.synth import render_audio

JUDGE = JudgeConfig(AUDIO_CATEGORIES, INSTRUMENTS, TEMPI)
TRAINING_SEED = 1_000_003  # data sets and benchmarks draw from other seeds
MUSIC_SHARE = 0.4
EXTRA_SHARE = 0.25  # of a judge's scenes that have the extra category, which is then as frequent as the others
CODEC_CHUNK = 8  # clips per call: phase reconstruction is several times faster while it fits into the cache
ONSET_WEIGHT = 4.0  # of a frame with an onset against one without: onsets are rare


@dataclass(frozen=True)
class JudgeBatch:
    """Sounds (B, 1, samples) with the true answers; `music` (B,) separates the two domains."""

    wave: Tensor
    activity: Tensor  # (B, T, K) 0 or 1
    onset: Tensor  # (B, T, K) in 0..1
    presence: Tensor  # (B, K + I) 0 or 1
    tempo: Tensor  # (B,) index, 0 for audio
    music: Tensor  # (B,) bool


def targets(scenes: list[Scene], config: JudgeConfig) -> dict[str, Tensor]:
    """The true answers for each scene: the fields of a `JudgeBatch` except the sound."""
    count, names = len(scenes), len(config.categories)
    times = (torch.arange(SAMPLES // config.hop) + 0.5) * config.frame_seconds
    activity = torch.zeros(count, times.numel(), names)
    onset = torch.zeros_like(activity)
    presence = torch.zeros(count, names + len(config.instruments))
    tempo = torch.zeros(count, dtype=torch.long)
    for b, scene in enumerate(scenes):
        for event in scene.events:
            k = config.categories.index(event.category)
            activity[b, (times >= event.onset) & (times < event.offset), k] = 1
            # A triangle three frames wide: a detector that is a frame late is not entirely wrong.
            near = 1 - (times - event.onset).abs() / (2 * config.frame_seconds)
            onset[b, :, k] = torch.maximum(onset[b, :, k], near.clamp_min(0))
            presence[b, k] = 1
        if scene.domain == "music":
            presence[b, names + config.instruments.index(scene.instrument)] = 1
            tempo[b] = config.tempi.index(scene.tempo)
    music = torch.tensor([scene.domain == "music" for scene in scenes])
    return {"activity": activity, "onset": onset, "presence": presence, "tempo": tempo, "music": music}


def judge_loss(output: JudgeOutput, batch: JudgeBatch) -> Tensor:
    """Weighted sum of the cross-entropies of all heads; a scalar in float32."""
    weight = 1 + (ONSET_WEIGHT - 1) * batch.onset
    frames = F.binary_cross_entropy_with_logits(output.activity.float(), batch.activity)
    frames = frames + F.binary_cross_entropy_with_logits(output.onset.float(), batch.onset, weight)
    clips = F.binary_cross_entropy_with_logits(output.presence.float(), batch.presence)
    tempo = F.cross_entropy(output.tempo.float(), batch.tempo, reduction="none") * batch.music
    return 10 * frames + 2 * clips + tempo.sum() / batch.music.sum().clamp_min(1)


def render_scenes(scenes: list[Scene]) -> Tensor:
    """Waves (B, 1, SAMPLES) of scenes."""
    return torch.from_numpy(np.stack([render_audio(scene) for scene in scenes]))


def round_trip(codec: AudioCodec, waves: Tensor) -> Tensor:
    """waves (B, 1, samples) through the codec and back, a few at a time."""
    with torch.no_grad():
        return torch.cat([codec.decode(codec.encode(chunk)[0]) for chunk in waves.split(CODEC_CHUNK)])


class _BatchSource:
    """Endless batches: one half newly drawn scenes, the other half from a pool that went through the codec."""

    def __init__(
        self,
        config: JudgeConfig,
        seed: int,
        through_codec: Callable[[Tensor], Tensor],
        pool: int,
        batch: int,
        extra: str,
    ) -> None:
        self.config, self.extra = config, extra
        self.rng = np.random.default_rng([TRAINING_SEED, seed])
        self.half = batch // 2
        self.pool_scenes = self._draw(pool)
        chunks = [self.pool_scenes[i : i + CODEC_CHUNK] for i in range(0, pool, CODEC_CHUNK)]
        self.pool = torch.cat(
            [through_codec(render_scenes(c)) for c in tqdm(chunks, desc="codec", unit_scale=CODEC_CHUNK)]
        )

    def _draw(self, count: int) -> list[Scene]:
        domains = np.where(self.rng.random(count) < MUSIC_SHARE, "music", "audio")
        shares = self.rng.random(count) if self.extra else np.ones(count)
        extras = [self.extra if share < EXTRA_SHARE else "" for share in shares]
        return [
            draw_scene(TRAINING_SEED, int(self.rng.integers(2**40)), str(domain), extra)
            for domain, extra in zip(domains, extras, strict=True)
        ]

    def batch(self) -> JudgeBatch:
        chosen = self.rng.permutation(len(self.pool_scenes))[: self.half]
        fresh = self._draw(self.half)
        wave = torch.cat((render_scenes(fresh), self.pool[torch.from_numpy(chosen)]))
        scenes = fresh + [self.pool_scenes[i] for i in chosen]
        return JudgeBatch(self._add_gain_and_noise(wave), **targets(scenes, self.config))

    def _add_gain_and_noise(self, wave: Tensor) -> Tensor:
        """A gain between -8 and +2 dB and noise between -70 and -45 dB for each clip."""
        count = wave.shape[0]
        gain = 10 ** (self.rng.uniform(-8, 2, (count, 1, 1)) / 20)
        noise = self.rng.random(wave.shape, dtype=np.float32) - 0.5
        level = 10 ** (self.rng.uniform(-70, -45, (count, 1, 1)) / 20)
        return (
            wave * torch.from_numpy(gain).float() + torch.from_numpy(noise) * torch.from_numpy(level * 12**0.5).float()
        )


def train_judge(
    seed: int,
    through_codec: Callable[[Tensor], Tensor],
    steps: int = 200,
    batch: int = 64,
    pool: int = 1024,
    learning_rate: float = 3e-3,
    extra: str = "",
) -> Judge:
    """A judge trained on `steps` batches; `through_codec` takes waves (B, 1, samples) through the codec and back. With
    `extra`, one of `EXTRA_CATEGORIES`, it learns this category too.

    The learning rate rises for a tenth of the steps and falls to zero along a half cosine. Returned in evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge(replace(JUDGE, categories=(*AUDIO_CATEGORIES, extra)) if extra else JUDGE)
    source = _BatchSource(judge.config, seed, through_codec, pool, batch, extra)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=learning_rate, weight_decay=1e-2, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps + 1, pct_start=0.1)
    progress = tqdm(range(steps), desc="judge")
    for step in progress:
        data = source.batch()
        with torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bf16()):
            output = judge(data.wave)
        loss = judge_loss(output, data)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    return judge.eval()
