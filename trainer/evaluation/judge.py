"""Trains the judge on true scenes, and lets it annotate sound without knowing what was asked for.

Half of the sounds that it learns from have been through the codec and back, so that it does not take the artefacts of
the phase reconstruction for events. B batch, T frames, K categories.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from ...models.judge import Judge, JudgeConfig, JudgeOutput
from ..core.hardware import cpu_has_bf16
from ..scenes.scene import AUDIO_CATEGORIES, INSTRUMENTS, SAMPLES, TEMPI, Event, Scene, draw_scene
from ..scenes.synth import render_audio

JUDGE = JudgeConfig(AUDIO_CATEGORIES, INSTRUMENTS, TEMPI)
# Scenes with this seed are the judge's own: data sets and benchmarks draw from other seeds.
TRAINING_SEED = 1_000_003
MUSIC_SHARE = 0.4
CODEC_CHUNK = 8  # clips a call: phase reconstruction is several times faster while it fits into the cache
ONSET_WEIGHT = 4.0  # of a frame with an onset against one without: onsets are rare
ON, OFF = 0.5, 0.35  # an event begins above the first probability and lasts while above the second
MIN_FRAMES = 4  # shorter activity is no event
MIN_BETWEEN = 9  # frames between two onsets of a category: the shortest event and its pause last 14


@dataclass(frozen=True)
class Annotation:
    """What was heard in a clip: events in order of their onsets (seconds), and an instrument and tempo, "" and 0
    where no instrument was."""

    events: tuple[Event, ...]
    instrument: str
    tempo: int

    @property
    def order(self) -> tuple[str, ...]:
        return tuple(event.category for event in self.events)

    @property
    def counts(self) -> dict[str, int]:
        return {name: self.order.count(name) for name in self.order}


@dataclass(frozen=True)
class Batch:
    """Sounds (B, 1, samples) and what is true of them; `music` (B,) tells the two domains apart."""

    wave: Tensor
    activity: Tensor  # (B, T, K) 0 or 1
    onset: Tensor  # (B, T, K) in 0..1
    presence: Tensor  # (B, K + I) 0 or 1
    tempo: Tensor  # (B,) index, 0 for audio
    music: Tensor  # (B,) bool


def targets(scenes: list[Scene], config: JudgeConfig) -> dict[str, Tensor]:
    """What the judge should say of each scene: the fields of a `Batch` except the sound."""
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
            # A triangle three frames wide: a detector that is a frame late is not all wrong.
            near = 1 - (times - event.onset).abs() / (2 * config.frame_seconds)
            onset[b, :, k] = torch.maximum(onset[b, :, k], near.clamp_min(0))
            presence[b, k] = 1
        if scene.domain == "music":
            presence[b, names + config.instruments.index(scene.instrument)] = 1
            tempo[b] = config.tempi.index(scene.tempo)
    music = torch.tensor([scene.domain == "music" for scene in scenes])
    return {"activity": activity, "onset": onset, "presence": presence, "tempo": tempo, "music": music}


def judge_loss(output: JudgeOutput, batch: Batch) -> Tensor:
    """Cross-entropies of all heads, weighted so that each matters; a scalar in float32."""
    weight = 1 + (ONSET_WEIGHT - 1) * batch.onset
    frames = F.binary_cross_entropy_with_logits(output.activity.float(), batch.activity)
    frames = frames + F.binary_cross_entropy_with_logits(output.onset.float(), batch.onset, weight)
    clips = F.binary_cross_entropy_with_logits(output.presence.float(), batch.presence)
    tempo = F.cross_entropy(output.tempo.float(), batch.tempo, reduction="none") * batch.music
    return 10 * frames + 2 * clips + tempo.sum() / batch.music.sum().clamp_min(1)


def render(scenes: list[Scene]) -> Tensor:
    """-> (B, 1, SAMPLES)."""
    return torch.from_numpy(np.stack([render_audio(scene) for scene in scenes]))


def through(round_trip: Callable[[Tensor], Tensor], waves: Tensor) -> Tensor:
    """waves (B, 1, samples) through the codec and back, a few at a time."""
    with torch.no_grad():
        return torch.cat([round_trip(chunk) for chunk in waves.split(CODEC_CHUNK)])


class _Source:
    """Batches without end: one half freshly drawn scenes, the other from a pool that went through the codec."""

    def __init__(self, seed: int, round_trip: Callable[[Tensor], Tensor], pool: int, batch: int) -> None:
        self.rng = np.random.default_rng([TRAINING_SEED, seed])
        self.half = batch // 2
        self.pool_scenes = self._draw(pool)
        chunks = [self.pool_scenes[i : i + CODEC_CHUNK] for i in range(0, pool, CODEC_CHUNK)]
        self.pool = torch.cat(
            [through(round_trip, render(c)) for c in tqdm(chunks, desc="codec", unit_scale=CODEC_CHUNK)]
        )

    def _draw(self, count: int) -> list[Scene]:
        domains = np.where(self.rng.random(count) < MUSIC_SHARE, "music", "audio")
        return [draw_scene(TRAINING_SEED, int(self.rng.integers(2**40)), str(domain)) for domain in domains]

    def batch(self) -> Batch:
        chosen = self.rng.permutation(len(self.pool_scenes))[: self.half]
        fresh = self._draw(self.half)
        wave = torch.cat((render(fresh), self.pool[torch.from_numpy(chosen)]))
        scenes = fresh + [self.pool_scenes[i] for i in chosen]
        return Batch(self._disturbed(wave), **targets(scenes, JUDGE))

    def _disturbed(self, wave: Tensor) -> Tensor:
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
    round_trip: Callable[[Tensor], Tensor],
    steps: int = 200,
    batch: int = 64,
    pool: int = 1024,
    learning_rate: float = 3e-3,
) -> Judge:
    """A judge trained on `steps` batches; `round_trip` takes waves (B, 1, samples) through the codec and back.

    The learning rate rises for a tenth of the steps and falls to nothing in a half cosine. Returned in evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge(JUDGE)
    source = _Source(seed, round_trip, pool, batch)
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


def save_judge(judge: Judge, folder: Path) -> None:
    """Writes judge.safetensors and judge.json."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(judge.state_dict(), folder / "judge.safetensors")
    (folder / "judge.json").write_text(json.dumps(asdict(judge.config), indent=2) + "\n")


def load_judge(folder: Path) -> Judge:
    """Reads what `save_judge` wrote; the judge is in evaluation mode."""
    saved: dict[str, Any] = json.loads((folder / "judge.json").read_text())
    saved = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
    judge = Judge(JudgeConfig(**saved))
    judge.load_state_dict(load_file(folder / "judge.safetensors"), strict=True)
    return judge.eval()


def listen(judge: Judge, waves: Tensor, batch: int = 64) -> JudgeOutput:
    """waves (B, 1, samples) -> what the judge says of all of them, in float32."""
    with torch.no_grad():
        parts = [judge(chunk) for chunk in waves.split(batch)]
    return JudgeOutput(*(torch.cat([getattr(part, f.name).float() for part in parts]) for f in fields(JudgeOutput)))


def annotate(judge: Judge, waves: Tensor) -> list[Annotation]:
    """Blind annotations of waves (B, 1, samples)."""
    return decode(listen(judge, waves), judge.config)


def decode(output: JudgeOutput, config: JudgeConfig) -> list[Annotation]:
    """Logits to events, instrument and tempo."""
    activity = output.activity.sigmoid().numpy()
    onset = output.onset.sigmoid().numpy()
    names = len(config.categories)
    result = []
    for b in range(activity.shape[0]):
        events = [
            Event(category, start * config.frame_seconds, stop * config.frame_seconds)
            for k, category in enumerate(config.categories)
            for start, stop in _segments(activity[b, :, k], onset[b, :, k])
        ]
        heard = output.presence[b, names:]
        music = bool(heard.max() > 0)
        result.append(
            Annotation(
                events=tuple(sorted(events, key=lambda event: event.onset)),
                instrument=config.instruments[int(heard.argmax())] if music else "",
                tempo=config.tempi[int(output.tempo[b].argmax())] if music else 0,
            )
        )
    return result


def _segments(activity: NDArray[np.float32], onset: NDArray[np.float32]) -> list[tuple[int, int]]:
    """Probabilities (T,) -> [start, stop) in frames of each event of one category.

    An event begins where activity rises, or at a peak of onset within activity, which parts repetitions that activity
    alone would join; it ends where activity falls or the next begins.
    """
    if activity.max() <= ON:
        return []
    active = activity > OFF
    edges = np.flatnonzero(np.diff(np.concatenate(([False], active, [False])))).reshape(-1, 2)
    result: list[tuple[int, int]] = []
    for begin, end in edges.tolist():
        if activity[begin:end].max() <= ON:
            continue
        starts = [begin]
        for frame in range(begin + MIN_BETWEEN, end - 1):
            peak = onset[frame] > ON and onset[frame] == onset[frame - 2 : frame + 3].max()
            if peak and frame - starts[-1] >= MIN_BETWEEN:
                starts.append(frame)
        result += [(a, b) for a, b in zip(starts, [*starts[1:], end], strict=True) if b - a >= MIN_FRAMES]
    return result
