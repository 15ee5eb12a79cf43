"""Assemble batches: the task of each sample, its conditions, holes and prefixes, dropout (section IV-B, Table A.1).

B batch, L latent frames, C latent channels, S motion steps, D feature width, T text tokens.
"""

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...models.conditioner import video_seconds
from ...models.config import AnyModelConfig, ReleasedModelConfig, VideoConfig
from ...models.encoders.base import TextEncoder
from ..core.config import DataConfig
from ..core.hardware import pinned
from ..core.rng import Purpose, sample_rng
from .condition_draws import SampleConditions, choose_mixture, choose_task, choose_text
from .record import Record

# Arrays decoded from a shard are read-only, and nothing here writes to them.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


@dataclass(frozen=True)
class Conditions:
    """The input of the conditioner."""

    video: Tensor  # (B, S, D), zeros without a video; float16 until moved to a device
    audio: Tensor  # (B, L, C): the latents where they are given, or what precedes the clip; zeros elsewhere
    text: Tensor  # (B, T, Dt)
    text_length: Tensor  # (B,) int64

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.video, self.audio, self.text, self.text_length

    def rolled(self) -> "Conditions":
        """Each sample with the conditions of the one before it."""
        return Conditions(*(x.roll(1, 0) for x in self.tensors()))

    def to(self, device: torch.device, dtype: torch.dtype) -> "Conditions":
        """Move to a device, with features in `dtype`."""

        def move(x: Tensor) -> Tensor:
            return x.to(device=device, dtype=dtype, non_blocking=True)

        length = self.text_length.to(device, non_blocking=True)
        return Conditions(move(self.video), move(self.audio), move(self.text), length)


@dataclass(frozen=True)
class Batch:
    """The samples of one rank in one step."""

    latents: Tensor  # (B, L, C) float32, drawn from mean and deviation
    conditions: Conditions
    given_mask: Tensor  # (B, L), 1 where the latents are a condition, which a sampler keeps
    indices: Tensor  # (B,) int64: the index of each sample in the global batch
    tasks: tuple[str, ...]
    ids: tuple[str, ...]
    noise: Tensor | None = None  # (B, L, C), if the latents are endpoints of a teacher's ODE that starts from it
    streams: tuple[str, ...] = ()  # the path of each sample's stream, for messages

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> "Batch":
        """Move to a device, all features in the precision of the latents; indices stay on the host."""
        dtype = self.latents.dtype
        return self.map(lambda x: x.to(device, dtype if x.is_floating_point() else x.dtype, non_blocking=True))

    def pinned(self) -> "Batch":
        """The same samples for a GPU, in memory that it copies from by itself. T5's features are on it already."""
        return self.map(pinned)

    def split(self, size: int) -> list["Batch"]:
        """Split into micro-batches of `size` samples."""
        return [self._slice(slice(i, i + size)) for i in range(0, len(self), size)]

    def followed_by(self, silence: Tensor, frames: int, seed: int, step: int) -> "Batch":
        """Latents of `frames` frames for a network that generates more than a clip: a part of a silence (N, C) follows
        every sample, another one for each. None of it is given."""
        more = frames - self.latents.shape[1]
        if not more:
            return self
        rngs = [sample_rng(seed, step, index, Purpose.SILENCE) for index in self.indices.tolist()]
        starts = [int(rng.integers(len(silence) - more + 1)) for rng in rngs]
        tails = torch.stack([silence[start : start + more] for start in starts]).to(self.latents)
        return replace(
            self,
            latents=torch.cat((self.latents, tails), dim=1),
            given_mask=torch.nn.functional.pad(self.given_mask, (0, more)),
        )

    def _slice(self, cut: slice) -> "Batch":
        batch = self.map(lambda x: x[cut])
        streams = self.streams[cut]
        return replace(batch, indices=self.indices[cut], tasks=self.tasks[cut], ids=self.ids[cut], streams=streams)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """Apply a function to all tensors except indices."""
        return replace(
            self,
            latents=function(self.latents),
            conditions=Conditions(*map(function, self.conditions.tensors())),
            given_mask=function(self.given_mask),
            noise=None if self.noise is None else function(self.noise),
        )


class BatchAssembler:
    """Turns records into batches: draws task, caption, hole, prefix and dropout per sample, and encodes the texts."""

    def __init__(self, model: AnyModelConfig, data: DataConfig, encode_text: TextEncoder, seed: int) -> None:
        self.model = model
        self.data = data
        self.encode_text = encode_text
        self.seed = seed
        self.thread = ThreadPoolExecutor(1)
        self.nearest = None if model.video is None else nearest_images(model.video)

    def __call__(
        self, records: Sequence[Record], tasks: Sequence[dict[str, float]], step: int, indices: Sequence[int]
    ) -> Batch:
        """tasks: for each record the task weights of its stream. indices: the index of each in the global batch.

        Raises ValueError when a record can serve none of its stream's tasks.
        """
        choices = [self.choose(r, w, step, p) for r, w, p in zip(records, tasks, indices, strict=True)]
        return self.batch(records, choices, self.latents(records, step, indices), indices)

    def latents(self, records: Sequence[Record], step: int, indices: Sequence[int]) -> Tensor:
        """Draw (B, L, C) float32 from the records' means and deviations."""
        latents = _stacked([r.latent_mean for r in records]).float()
        # Some codecs have no deviation. Searching bytes is several times as fast as searching numbers.
        drawn = [i for i, record in enumerate(records) if record.latent_std.view(np.uint8).any()]
        if drawn:
            noise = np.zeros(latents.shape, np.float32)

            def draw(samples: Sequence[int]) -> None:
                for i in samples:
                    rng = sample_rng(self.seed, step, indices[i], Purpose.LATENT)
                    rng.standard_normal(dtype=np.float32, out=noise[i])

            # Most of a batch's time is spent on normal numbers, which release the GIL: a thread draws half of them.
            other = self.thread.submit(draw, drawn[::2])
            draw(drawn[1::2])
            other.result()
            latents.addcmul_(_stacked([r.latent_std for r in records]).float(), torch.from_numpy(noise))
        return latents

    def choose(self, record: Record, tasks: dict[str, float], step: int, index: int) -> SampleConditions:
        """Draw the conditions of a sample, with dropout."""
        rng = sample_rng(self.seed, step, index, Purpose.CONDITIONS)
        task = choose_task(record, tasks, rng)
        drop_text, drop_video, drop_audio, everything = self._dropout(rng)
        text = choose_text(record, task, rng)
        given_mask = self.draw_given_mask(task, rng)
        video, preceding = choose_mixture(record, task, rng)
        return SampleConditions(
            task,
            "" if drop_text else text,
            video and not drop_video,
            torch.zeros_like(given_mask) if drop_audio or preceding else given_mask,
            everything,
            preceding and not drop_audio,
        )

    def batch(
        self, records: Sequence[Record], choices: Sequence[SampleConditions], latents: Tensor, indices: Sequence[int]
    ) -> Batch:
        """Put latents (B, L, C) and the drawn conditions together."""
        videos = torch.zeros(len(records), self.model.video_rows, self.model.video_dim, dtype=torch.float16)
        for row, record, choice in zip(videos, records, choices, strict=True):
            if choice.video:
                self._add_video(record, row)
        text, length = self.encode_text([c.text for c in choices])
        if isinstance(self.model, ReleasedModelConfig):
            length = length * torch.tensor([not c.null for c in choices])  # its null condition
        given_mask = torch.stack([c.given_mask for c in choices])
        audio = latents * given_mask[:, :, None]
        for row, record, choice in zip(audio, records, choices, strict=True):
            if choice.preceding:  # it ends where the clip begins
                row[len(row) - len(record.preceding) :] = _tensor(record.preceding)
        conditions = Conditions(videos, audio, text, length)
        tasks, ids = tuple(c.task for c in choices), tuple(r.id for r in records)
        return Batch(latents, conditions, given_mask, torch.tensor(indices), tasks, ids)

    def video(self, record: Record) -> Tensor:
        """Image plus motion features on one time grid (section IV-A): (S, D) float16; zeros without a video."""
        video = torch.zeros(self.model.video_rows, self.model.video_dim, dtype=torch.float16)
        self._add_video(record, video)
        return video

    def _add_video(self, record: Record, video: Tensor) -> None:
        if len(record.motion) and self.nearest is not None:
            join_video_features(_tensor(record.image), _tensor(record.motion), self.nearest, video)

    def draw_given_mask(self, task: str, rng: np.random.Generator) -> Tensor:
        """Draw where the task gives the latents as a condition: 1 there, 0 elsewhere, (L,)."""
        frames = self.model.codec.frames
        mask = torch.zeros(frames)
        if task == "inpainting":
            shortest, longest = self.data.inpainting_hole
            hole = max(1, round(frames * rng.uniform(shortest, longest)))
            start = int(rng.integers(0, frames - hole + 1))
            mask[:] = 1
            mask[start : start + hole] = 0
        elif task == "completion":
            shortest, longest = self.data.completion_prefix
            mask[: max(1, round(frames * rng.uniform(shortest, longest)))] = 1
        return mask

    def _dropout(self, rng: np.random.Generator) -> tuple[bool, bool, bool, bool]:
        p = self.data.dropout
        u = rng.random(4)
        everything = bool(u[3] < p.all)
        text, video, audio = (bool(u[i] < share or everything) for i, share in enumerate((p.text, p.video, p.audio)))
        return text, video, audio, everything


def nearest_images(video: VideoConfig) -> Tensor:
    """The image nearest in time to each motion feature (S,); the earlier one of two at the same distance.

    Image i is at i / image_rate and motion frame j at j / motion_rate. A feature lasts until its last frame ends, so
    its frames are centred half a frame before its middle.
    """
    moments = video_seconds(video) - 0.5 / video.motion_rate
    return (moments * video.image_rate - 0.5 - 1e-4).ceil().clamp_min(0).long()


def join_video_features(images: Tensor, motion: Tensor, nearest: Tensor, video: Tensor) -> None:
    """Write image features (N, D) plus motion features (S, D), on the motion's time grid, to `video` (S, D); where that
    has (N + S, D), as the released network takes them, one after the other."""
    images = images.half()  # as in a shard; features from elsewhere are float32
    if len(video) != len(motion):
        video[: len(images)], video[len(images) :] = images, motion
        return
    torch.index_select(images, 0, nearest.clamp(max=len(images) - 1), out=video)
    video += motion.half()


def _tensor(array: NDArray[np.floating[Any]]) -> Tensor:
    """Share the memory of a shard. Torch converts float16 several times as fast as NumPy."""
    return torch.from_numpy(array)


def _stacked(arrays: Sequence[NDArray[np.floating[Any]]]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))
