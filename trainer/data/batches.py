"""The eight tasks: which conditions a sample gets, holes and prefixes, dropout (section IV-B, Table A.1).

B batch, L latent frames, C latent channels, S motion steps, D feature width, T text tokens.
"""

import warnings
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...models.conditioner import video_seconds
from ...models.config import ModelConfig
from ...models.encoders.base import TextEncoder
from ..core.config import DataConfig
from ..core.hardware import pinned
from ..core.rng import Purpose, sample_rng
from ..core.tasks import TASKS
from .record import Record

# What a shard is decoded to cannot be written, and nobody here does.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


@dataclass(frozen=True)
class Conditions:
    """What the conditioner takes."""

    video: Tensor  # (B, S, D), zeros where there is none; float16 until it is moved
    audio: Tensor  # (B, L, C), zeros where nothing is given
    text: Tensor  # (B, T, Dt)
    text_length: Tensor  # (B,) int64

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.video, self.audio, self.text, self.text_length

    def to(self, device: torch.device, dtype: torch.dtype) -> "Conditions":
        """Features in `dtype`, lengths as they are."""

        def move(x: Tensor) -> Tensor:
            return x.to(device=device, dtype=dtype, non_blocking=True)

        length = self.text_length.to(device, non_blocking=True)
        return Conditions(move(self.video), move(self.audio), move(self.text), length)


@dataclass(frozen=True)
class Batch:
    """One step's samples of one rank."""

    latents: Tensor  # (B, L, C) float32, drawn from mean and deviation
    conditions: Conditions
    given: Tensor  # (B, L), 1 where the latents are a condition, which a sampler keeps
    places: Tensor  # (B,) int64, each sample's place in the global batch
    tasks: tuple[str, ...]
    ids: tuple[str, ...]
    noise: Tensor | None = None  # (B, L, C), where the latents are the endpoints of a teacher's ODE from it

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> "Batch":
        """The same samples there; their places stay."""
        return replace(
            self,
            latents=self.latents.to(device, non_blocking=True),
            conditions=self.conditions.to(device, self.latents.dtype),
            given=self.given.to(device, non_blocking=True),
            noise=None if self.noise is None else self.noise.to(device, non_blocking=True),
        )

    def pinned(self) -> "Batch":
        """The same samples for a GPU, in memory that it copies from by itself. T5's features are on it already."""
        return replace(
            self,
            latents=pinned(self.latents),
            conditions=Conditions(*(pinned(x) for x in self.conditions.tensors())),
            given=pinned(self.given),
            noise=None if self.noise is None else pinned(self.noise),
        )

    def split(self, size: int) -> list["Batch"]:
        """Micro-batches of `size` samples."""
        parts = []
        for i in range(0, len(self), size):
            cut = slice(i, i + size)
            conditions = Conditions(*(x[cut] for x in self.conditions.tensors()))
            tensors = self.latents[cut], conditions, self.given[cut], self.places[cut]
            noise = None if self.noise is None else self.noise[cut]
            parts.append(Batch(*tensors, self.tasks[cut], self.ids[cut], noise))
        return parts


@dataclass(frozen=True)
class SampleConditions:
    """What of a record a sample is conditioned on."""

    task: str
    text: str
    video: bool
    given: Tensor  # (L,), 1 where the latents are


class BatchAssembler:
    """Records to batches: draws each sample's task, caption, hole, prefix and dropout, and encodes the texts."""

    def __init__(self, model: ModelConfig, data: DataConfig, encode_text: TextEncoder, seed: int) -> None:
        self.model = model
        self.data = data
        self.encode_text = encode_text
        self.seed = seed
        self.thread = ThreadPoolExecutor(1)
        self.nearest = nearest_images(model)

    def __call__(
        self, records: Sequence[Record], tasks: Sequence[dict[str, float]], step: int, places: Sequence[int]
    ) -> Batch:
        """`tasks` holds the weights of each record's stream, `places` its place in the global batch.

        Raises ValueError when a record lacks what all its possible tasks need.
        """
        choices = [self.choose(r, w, step, p) for r, w, p in zip(records, tasks, places, strict=True)]
        return self.batch(records, choices, self.latents(records, step, places), places)

    def latents(self, records: Sequence[Record], step: int, places: Sequence[int]) -> Tensor:
        """(B, L, C) float32, drawn from the records' means and deviations."""
        latents = _stacked([r.latent_mean for r in records]).float()
        # Not every codec has a deviation, and among bytes a value is found several times as fast as among numbers.
        drawn = [i for i, record in enumerate(records) if record.latent_std.view(np.uint8).any()]
        if drawn:
            noise = np.zeros(latents.shape, np.float32)

            def draw(samples: Sequence[int]) -> None:
                for i in samples:
                    rng = sample_rng(self.seed, step, places[i], Purpose.LATENT)
                    rng.standard_normal(dtype=np.float32, out=noise[i])

            # Drawing normal numbers is most of a batch's time and leaves Python free: half of it in another thread.
            other = self.thread.submit(draw, drawn[::2])
            draw(drawn[1::2])
            other.result()
            latents.addcmul_(_stacked([r.latent_std for r in records]).float(), torch.from_numpy(noise))
        return latents

    def choose(self, record: Record, tasks: dict[str, float], step: int, place: int) -> SampleConditions:
        """What a sample is conditioned on, dropout included."""
        rng = sample_rng(self.seed, step, place, Purpose.CONDITIONS)
        task = choose_task(record, tasks, rng)
        drop_text, drop_video, drop_audio = self._dropout(rng)
        text = choose_text(record, task, rng)
        given = self.given(task, rng)
        return SampleConditions(
            task,
            "" if drop_text else text,
            TASKS[task].video and not drop_video,
            torch.zeros_like(given) if drop_audio else given,
        )

    def batch(
        self, records: Sequence[Record], choices: Sequence[SampleConditions], latents: Tensor, places: Sequence[int]
    ) -> Batch:
        """The choices carried out on latents (B, L, C)."""
        videos = torch.zeros(len(records), self.model.video.steps, self.model.video.dim, dtype=torch.float16)
        for row, record, choice in zip(videos, records, choices, strict=True):
            if choice.video:
                self._show(record, row)
        text, length = self.encode_text([c.text for c in choices])
        given = torch.stack([c.given for c in choices])
        conditions = Conditions(videos, latents * given[:, :, None], text, length)
        tasks, ids = tuple(c.task for c in choices), tuple(r.id for r in records)
        return Batch(latents, conditions, given, torch.tensor(places), tasks, ids)

    def video(self, record: Record) -> Tensor:
        """Image and motion features on one time grid, added (section IV-A): (S, D) float16; zeros without a video."""
        video = torch.zeros(self.model.video.steps, self.model.video.dim, dtype=torch.float16)
        self._show(record, video)
        return video

    def _show(self, record: Record, video: Tensor) -> None:
        if len(record.motion):
            add_video_features(_tensor(record.image), _tensor(record.motion), self.nearest, video)

    def given(self, task: str, rng: np.random.Generator) -> Tensor:
        """1 where the task gives the sound's latents as a condition, 0 elsewhere: (L,)."""
        frames = self.model.codec.frames
        mask = torch.zeros(frames)
        if task == "inpainting":
            hole = max(1, round(frames * rng.uniform(self.data.inpainting_hole[0], self.data.inpainting_hole[1])))
            start = int(rng.integers(0, frames - hole + 1))
            mask[:] = 1
            mask[start : start + hole] = 0
        elif task == "completion":
            mask[
                : max(1, round(frames * rng.uniform(self.data.completion_prefix[0], self.data.completion_prefix[1])))
            ] = 1
        return mask

    def _dropout(self, rng: np.random.Generator) -> tuple[bool, bool, bool]:
        p = self.data.dropout
        u = rng.random(4)
        everything = u[3] < p.all
        return bool(u[0] < p.text or everything), bool(u[1] < p.video or everything), bool(u[2] < p.audio or everything)


def nearest_images(model: ModelConfig) -> Tensor:
    """The image nearest in time to each motion feature (S,); of two as near, the earlier one.

    Image i was seen at i / image_rate and motion frame j at j / motion_rate. What a feature stands for lasts until its
    last frame ends, so half a frame before the middle of it lies the middle of the moments that it was made from.
    """
    video = model.video
    moments = video_seconds(model) - 0.5 / video.motion_rate
    return (moments * video.image_rate - 0.5 - 1e-4).ceil().clamp_min(0).long()


def add_video_features(images: Tensor, motion: Tensor, nearest: Tensor, video: Tensor) -> None:
    """Image features (N, D) and motion features (S, D), added on the motion's time grid, to `video` (S, D) float16."""
    images = images.half()  # as it lies in a shard; what never lay there is float32
    torch.index_select(images, 0, nearest.clamp(max=len(images) - 1), out=video)
    video += motion.half()


def _tensor(array: NDArray[np.floating[Any]]) -> Tensor:
    """Torch converts float16 several times as fast as NumPy. The memory stays a shard's, and is only read."""
    return torch.from_numpy(array)


def _stacked(arrays: Sequence[NDArray[np.floating[Any]]]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))


def choose_task(record: Record, weights: dict[str, float], rng: np.random.Generator) -> str:
    """One of the stream's tasks that the record can serve, by weight."""
    names, bounds = _usable_tasks(tuple(weights.items()), bool(record.captions), len(record.motion) > 0)
    if not names:
        raise ValueError(f"sample {record.id!r} serves none of the tasks {', '.join(weights)}: no caption or no video")
    return names[bisect_right(bounds, rng.random())]


@lru_cache(maxsize=1024)
def _usable_tasks(weights: tuple[tuple[str, float], ...], text: bool, video: bool) -> tuple[list[str], list[float]]:
    """The tasks that a record with or without text and video can serve, and where the share of each ends in [0, 1]."""
    usable = {task: weight for task, weight in weights if _can_serve(text, video, task)}
    ends = np.cumsum(np.array(list(usable.values())) / (sum(usable.values()) or 1))
    return list(usable), (ends / ends[-1:]).tolist()


def can_serve(record: Record, task: str) -> bool:
    """Whether the record has the text and the video that the task conditions on."""
    return _can_serve(bool(record.captions), len(record.motion) > 0, task)


def _can_serve(text: bool, video: bool, task: str) -> bool:
    return (text or not TASKS[task].text) and (video or not TASKS[task].video)


def choose_text(record: Record, task: str, rng: np.random.Generator) -> str:
    """One of the captions, or the task's description where the task has no text of its own (section IV-B).

    Inpainting and completion have either, evenly: a caption helps where the user gives one.
    """
    pick = int(rng.integers(max(1, len(record.captions))))
    described = bool(rng.random() < 0.5)
    default = TASKS[task].default_text
    if default is None or (TASKS[task].audio and described and record.captions):
        return record.captions[pick]
    return default
