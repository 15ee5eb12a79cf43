"""What the worker processes of `prepare.py` do: clips and scenes through the frozen encoders to records.

This module leaves mosaicml-streaming alone: importing it takes longer than most workers' whole job.
"""

import os
from dataclasses import dataclass
from functools import cache
from itertools import islice
from multiprocessing import parent_process
from threading import Thread

import numpy as np
import torch
from numpy.typing import NDArray

from ...models.config import CodecConfig, VideoConfig
from ...models.encoders.base import AudioCodec, VideoEncoder
from ...models.encoders.build import build_codec, build_video_encoder
from ...models.encoders.runtime import Runtime
from .captions import captions
from .manifest import Entry, clip_annotation
from .media import Clip, frames_in, read_clips
from .record import DOMAINS, Record
from .scenes import annotation, draw_scene
from .sentences import texts_of
from .source import MediaError, Reason
from .synth import FRAME_RATE, FRAMES, render_audio, render_video

BATCH = 4  # clips of a file that are encoded together: 10 s of them with 224-pixel video take 180 MB


@dataclass(frozen=True)
class Encoders:
    """The configurations that decide a record's features."""

    codec: CodecConfig
    video: VideoConfig


@dataclass(frozen=True)
class EntryTask:
    """One line of a manifest to turn into records; `seed` settles the wording of captions."""

    encoders: Encoders
    entry: Entry
    seed: int

    def __str__(self) -> str:
        return f"line {self.entry.line} ({self.entry.name})"


@dataclass(frozen=True)
class SceneTask:
    """Procedural scenes `first` to `last` (exclusive) of a domain."""

    encoders: Encoders
    domain: str
    seed: int
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.domain} scenes {self.first} to {self.last}"


@dataclass(frozen=True)
class Rejection:
    """A line of `rejected.jsonl`: a file, or a clip of it, that is left out."""

    line: int
    audio: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Outcome:
    """What one task gave."""

    records: list[Record]
    rejections: list[Rejection]


@dataclass(frozen=True)
class _Features:
    """A clip's four arrays, without the batch axis."""

    latent_mean: NDArray[np.float32]
    latent_std: NDArray[np.float32]
    image: NDArray[np.float32]
    motion: NDArray[np.float32]


def start_worker() -> None:
    """Prepares a worker process: one thread for torch, and an end when the parent has gone."""
    torch.set_num_threads(1)
    Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """A parent that is killed would leave its workers waiting for tasks for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def encode_entry(task: EntryTask) -> Outcome:
    """Decodes, cuts and encodes one file. A damaged file gives one rejection and no record, whatever came before the
    damage; clips without sound are rejected one by one."""
    entry, encoders = task.entry, task.encoders
    pieces: list[tuple[Clip, _Features]] = []
    silent: list[float] = []
    clips = read_clips(entry.audio, entry.video, encoders.codec, encoders.video, entry.start, entry.end)
    try:
        while batch := list(islice(clips, BATCH)):
            silent += [clip.start for clip in batch if clip.silent]
            batch = [clip for clip in batch if not clip.silent]
            if batch:
                arrays = (np.stack([getattr(clip, kind) for clip in batch]) for kind in ("wave", "images", "motion"))
                pieces += zip(batch, _encode(encoders, *arrays), strict=True)
    except MediaError as error:
        return Outcome([], [Rejection(entry.line, entry.name, error.reason.value, str(error))])
    rejections = [
        Rejection(entry.line, entry.name, Reason.SILENT.value, f"nothing above -80 dB in the clip at {start:g} s")
        for start in silent
    ]
    whole = len(pieces) + len(silent) == 1
    return Outcome([_record(task, i, *piece, whole) for i, piece in enumerate(pieces)], rejections)


def _record(task: EntryTask, index: int, clip: Clip, features: _Features, whole: bool) -> Record:
    entry = task.entry
    notes = clip_annotation(entry, clip.start, clip.seconds, whole)
    texts = texts_of(entry.captions, notes, np.random.default_rng([task.seed, entry.line, index]))
    source = {"audio": entry.name, "start": entry.start + clip.start}
    return Record(
        id=f"line-{entry.line:06d}-{index:04d}",
        domain=entry.domain,
        captions=texts,
        annotation={**notes, "source": source},
        seconds=clip.seconds,
        **vars(features),
    )


def encode_scenes(task: SceneTask) -> Outcome:
    """Renders scenes and encodes them as one batch, with all the captions that their annotations allow."""
    indices = range(task.first, task.last)
    scenes = [draw_scene(task.seed, index, task.domain) for index in indices]
    waves = np.stack([render_audio(scene) for scene in scenes])
    videos = np.stack([render_video(scene) for scene in scenes]).transpose(0, 1, 4, 2, 3)  # (B, frames, 3, size, size)
    codec, video = task.encoders.codec, task.encoders.video
    images, motion = (videos[:, _nearest(codec.seconds, rate)] for rate in (video.image_rate, video.motion_rate))
    features = _encode(task.encoders, waves, images, motion)
    records = []
    for index, scene, arrays in zip(indices, scenes, features, strict=True):
        notes = annotation(scene)
        rng = np.random.default_rng([task.seed, index, DOMAINS.index(task.domain)])
        records.append(
            Record(
                id=f"scene-{index:06d}",
                domain=task.domain,
                captions=captions(notes, rng),
                annotation=notes,
                seconds=codec.seconds,
                **vars(arrays),
            )
        )
    return Outcome(records, [])


def _nearest(seconds: float, rate: float) -> NDArray[np.int64]:
    """Indices of the scene frames nearest to a rate's time stamps."""
    times = np.arange(frames_in(seconds, rate)) / rate
    return np.minimum(np.rint(times * FRAME_RATE).astype(np.int64), FRAMES - 1)


@cache
def _built(encoders: Encoders) -> tuple[AudioCodec, VideoEncoder]:
    runtime = Runtime.here(compile=True)
    return build_codec(encoders.codec, runtime), build_video_encoder(encoders.video, runtime)


@torch.inference_mode()
def _encode(
    encoders: Encoders, waves: NDArray[np.float32], images: NDArray[np.uint8], motion: NDArray[np.uint8]
) -> list[_Features]:
    """waves (B, c, n) float32, images (B, N, 3, size, size) and motion (B, M, 3, size, size) uint8, no rows without
    video."""
    codec, video = _built(encoders)
    mean, std = (latents.float().cpu().numpy() for latents in codec.encode(torch.from_numpy(waves)))
    if images.shape[1]:
        pictures = torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(np.ascontiguousarray(motion))
        seen = [features.float().cpu().numpy() for features in video(*pictures)]
    else:
        seen = [np.empty((len(waves), 0, encoders.video.dim), np.float32)] * 2
    return [_Features(*arrays) for arrays in zip(mean, std, *seen, strict=True)]
