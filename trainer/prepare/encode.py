"""Encode clips and scenes on a device.

Batches decide the last bits of the features, so they must not depend on who makes them: `clip_batches.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from ...models.encoders.base import AudioCodec, VideoEncoder
from ...models.encoders.build import build_codec, build_video_encoder
from ...models.encoders.runtime import Runtime
from ..core.tasks import DOMAINS, has_completion_pairs
from ..data.record import Record
from ..manifest.manifest import ManifestEntry
from ..media.clips import Clip, frames_in
from ..media.source import Reason
from ..scenes.scene import draw_scene, scene_annotation
from ..scenes.scene_captions import scene_captions
from ..scenes.synth import FRAME_RATE, FRAMES, render_audio, render_video
from .decode import EncoderSettings, Rejection, clip_rejection

LARGEST = float(np.finfo(np.float16).max)  # features are stored as float16


@dataclass(frozen=True)
class SceneTask:
    """Procedural scenes `first` to `last` (exclusive) of a domain; audio scenes with the category `extra` if there is
    one, music scenes with what precedes them if there are `pairs`."""

    encoders: EncoderSettings
    domain: str
    seed: int
    first: int
    last: int
    extra: str = ""
    pairs: bool = False

    def __str__(self) -> str:
        return f"{self.domain} scenes {self.first} to {self.last}"


@dataclass(frozen=True)
class ClipFeatures:
    """The four arrays of a clip, without the batch axis."""

    latent_mean: NDArray[np.float32]
    latent_std: NDArray[np.float32]
    image: NDArray[np.float32]
    motion: NDArray[np.float32]


@dataclass(frozen=True)
class EncodedClip:
    """A clip whose features are finite."""

    start: float  # seconds after the start of its segment
    seconds: float  # true length
    features: ClipFeatures | None  # None: they were put elsewhere


LineClip = tuple[ManifestEntry, Clip]


def check_encoders(encoders: EncoderSettings) -> Iterator[None]:
    """Load every network and check the number of frames. Yields nothing.

    Raises ValueError if weights do not match their configuration.
    """
    torch.set_num_threads(1)
    codec, frames = encoders.codec, encoders.video
    video = _build_encoders(encoders)[1]
    if video and frames:
        video.check_frames(frames_in(codec.seconds, frames.motion_rate))
    yield from ()


def encode_clips(encoders: EncoderSettings, batch: Sequence[LineClip]) -> list[EncodedClip | Rejection]:
    """Encode clips as one batch. One result per clip, in order.

    Raises ValueError if weights do not match their configuration.
    """
    features = _encode(encoders, *_stack_arrays([clip for _, clip in batch]))
    return [_encoded(entry, clip, found) for (entry, clip), found in zip(batch, features, strict=True)]


def _encoded(entry: ManifestEntry, clip: Clip, features: ClipFeatures) -> EncodedClip | Rejection:
    if odd := sum(np.count_nonzero(~(np.abs(array) <= LARGEST)) for array in vars(features).values()):
        fault = Reason.NOT_FINITE.value, f"{odd} values are not finite, or beyond float16"
        return clip_rejection(entry, clip, fault)
    return EncodedClip(clip.start, clip.seconds, features)


def _stack_arrays(clips: list[Clip]) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.uint8]]:
    wave, images, motion = (np.stack([getattr(clip, kind) for clip in clips]) for kind in ("wave", "images", "motion"))
    return wave, images, motion


def stream_scenes(task: SceneTask) -> Iterator[list[Record]]:
    """`encode_scenes` as a generator, for a worker."""
    torch.set_num_threads(1)
    yield encode_scenes(task)


def encode_scenes(task: SceneTask) -> list[Record]:
    """Render scenes and encode them as one batch, with captions from their annotations."""
    indices = range(task.first, task.last)
    scenes = [draw_scene(task.seed, index, task.domain, task.extra) for index in indices]
    waves = np.stack([render_audio(scene) for scene in scenes])
    codec, video = task.encoders.codec, task.encoders.video
    images = motion = np.empty((len(scenes), 0, 3, 0, 0), np.uint8)
    if video:
        videos = np.stack([render_video(scene) for scene in scenes]).transpose(0, 1, 4, 2, 3)  # (B, frames, 3, s, s)
        rates = video.image_rate, video.motion_rate
        images, motion = (videos[:, _nearest_frames(codec.seconds, rate)] for rate in rates)
    features = _encode(task.encoders, waves, images, motion)
    before = [np.empty((0, codec.latent_channels), np.float32)] * len(scenes)
    if task.pairs and has_completion_pairs(task.domain):
        waves = np.stack([render_audio(scene, preceding=True) for scene in scenes])
        before = [arrays.latent_mean for arrays in _encode(task.encoders, waves, images[:, :0], motion[:, :0])]
    records = []
    for index, scene, arrays, preceding in zip(indices, scenes, features, before, strict=True):
        notes = scene_annotation(scene)
        rng = np.random.default_rng([task.seed, index, DOMAINS.index(task.domain)])
        records.append(
            Record(
                id=f"scene-{index:06d}",
                domain=task.domain,
                captions=scene_captions(notes, rng),
                annotation=notes,
                seconds=codec.seconds,
                preceding=preceding,
                **vars(arrays),
            )
        )
    return records


def _nearest_frames(seconds: float, rate: float) -> NDArray[np.int64]:
    """Indices of the scene frames nearest to a rate's time stamps."""
    times = np.arange(frames_in(seconds, rate)) / rate
    return np.minimum(np.rint(times * FRAME_RATE).astype(np.int64), FRAMES - 1)


@cache
def _build_encoders(encoders: EncoderSettings) -> tuple[AudioCodec, VideoEncoder | None]:
    runtime = Runtime.for_device(torch.device(encoders.device), compile=True)
    video = build_video_encoder(encoders.video, runtime) if encoders.video else None
    return build_codec(encoders.codec, runtime), video


@torch.inference_mode()
def _encode(
    encoders: EncoderSettings, waves: NDArray[np.float32], images: NDArray[np.uint8], motion: NDArray[np.uint8]
) -> list[ClipFeatures]:
    """waves (B, c, n) float32, images (B, N, 3, size, size) and motion (B, M, 3, size, size) uint8, no rows without
    video."""
    codec, video = _build_encoders(encoders)
    mean, std = (latents.float().cpu().numpy() for latents in codec.encode(torch.from_numpy(waves)))
    if video and images.shape[1]:
        pictures = torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(np.ascontiguousarray(motion))
        seen = [features.float().cpu().numpy() for features in video(*pictures)]
    else:
        seen = [np.empty((len(waves), 0, encoders.video.dim if encoders.video else 0), np.float32)] * 2
    return [ClipFeatures(*arrays) for arrays in zip(mean, std, *seen, strict=True)]
