"""Filter and encode clips and scenes: the work of the worker processes of a preparation.

With encoders on the CPU a worker does everything. With encoders on a GPU it only decodes, and the main process encodes.
The batches are the same in both cases: clips of one file.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...models.config import CodecConfig, VideoConfig
from ...models.encoders.base import AudioCodec, VideoEncoder
from ...models.encoders.build import build_codec, build_video_encoder
from ...models.encoders.runtime import Runtime
from ..core.credentials import redacted
from ..core.tasks import DOMAINS
from ..data.record import Record
from ..manifest.manifest import ManifestEntry
from ..media.clips import Clip, frames_in, read_clips
from ..media.source import MediaError, Reason
from ..scenes.scene import draw_scene, scene_annotation
from ..scenes.scene_captions import scene_captions
from ..scenes.synth import FRAME_RATE, FRAMES, render_audio, render_video
from .filter_networks import load_network, score_fault, scores, separate
from .filters import FiltersConfig, clip_fault, file_fault, silence_fault

LARGEST = float(np.finfo(np.float16).max)  # features are stored as float16
BATCH = 4  # clips of a file per batch: with 10 s and 224-pixel video they take 180 MB


@dataclass(frozen=True)
class EncoderSettings:
    """The configurations that decide a record's features, and the device of the encoders."""

    codec: CodecConfig
    video: VideoConfig
    filters: FiltersConfig = field(default_factory=FiltersConfig)
    device: str = "cpu"


@dataclass(frozen=True)
class EntryTask:
    """One line of a manifest to decode and encode."""

    encoders: EncoderSettings
    entry: ManifestEntry
    block: int = 0  # number of its block

    def __str__(self) -> str:
        return f"line {self.entry.line} ({self.entry.name})"


@dataclass(frozen=True)
class SceneTask:
    """Procedural scenes `first` to `last` (exclusive) of a domain."""

    encoders: EncoderSettings
    domain: str
    seed: int
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.domain} scenes {self.first} to {self.last}"


@dataclass(frozen=True)
class Rejection:
    """A line of `rejected.jsonl`: a file that is left out, or one of its clips, at `start` seconds of the segment."""

    line: int
    audio: str
    reason: str
    detail: str
    start: float | None = None


@dataclass(frozen=True)
class DecodedClips:
    """The clips of a file, of `total` ones, that passed the filters, and the rejections of the others."""

    clips: list[Clip]
    rejections: list[Rejection]
    total: int  # clips, with the rejected ones


@dataclass(frozen=True)
class ClipFeatures:
    """The four arrays of a clip, without the batch axis."""

    latent_mean: NDArray[np.float32]
    latent_std: NDArray[np.float32]
    image: NDArray[np.float32]
    motion: NDArray[np.float32]


@dataclass(frozen=True)
class ClipInfo:
    """A clip without its arrays."""

    start: float  # seconds after the start of its segment
    seconds: float  # true length
    scores: dict[str, float]  # by classifier


@dataclass(frozen=True)
class EncodedClips:
    """The clips of `DecodedClips` that the networks kept, with their features."""

    clips: list[ClipInfo]
    features: list[ClipFeatures]
    rejections: list[Rejection]
    total: int  # clips, with the rejected ones


def check_encoders(encoders: EncoderSettings) -> Iterator[None]:
    """Load every network, run those of the filters on a silent clip, check the number of frames. Yields nothing.

    Raises ValueError if weights or networks do not match their configuration.
    """
    codec, frames, filters = encoders.codec, encoders.video, encoders.filters
    rows = np.zeros((frames_in(codec.seconds, frames.image_rate), 3, frames.size, frames.size), np.uint8)
    clip = Clip(0.0, codec.seconds, np.zeros((codec.audio_channels, codec.samples), np.float32), rows, rows[:0])
    device = torch.device(encoders.device)
    for classifier in filters.classifiers:
        scores(classifier, load_network(classifier.file, device), [clip], codec.sample_rate)
    if filters.separator:
        separate(filters.separator, load_network(filters.separator.file, device), [clip], codec.sample_rate)
    _build_encoders(encoders)[1].check_frames(frames_in(codec.seconds, frames.motion_rate))
    yield from ()


def encode_entry(task: EntryTask) -> Iterator[EncodedClips | Rejection]:
    """Yield a file, a few clips at a time. The last item may reject the whole file, with its earlier clips."""
    for found in decode_entry(task):
        yield found if isinstance(found, Rejection) else encode(task, found)


def decode_entry(task: EntryTask) -> Iterator[DecodedClips | Rejection]:
    """The same as `encode_entry`, without encoding."""
    entry, encoders = task.entry, task.encoders
    clips = read_clips(
        entry.audio,
        entry.video,
        encoders.codec,
        encoders.video,
        entry.start,
        entry.end,
        sound_slack=encoders.filters.max_missing_sound,
        video_slack=encoders.filters.max_missing_video,
        allow_private=entry.allow_private,
    )
    seconds = 0.0
    try:
        while batch := list(islice(clips, BATCH)):
            seconds = batch[-1].start + batch[-1].seconds
            if fault := file_fault(seconds, False, encoders.filters):
                yield Rejection(entry.line, entry.name, *fault)
                return
            faults = [clip_fault(clip, encoders.codec.sample_rate, encoders.filters) for clip in batch]
            rejections = [_clip_rejection(entry, c, f) for c, f in zip(batch, faults, strict=True) if f]
            yield DecodedClips([c for c, f in zip(batch, faults, strict=True) if not f], rejections, len(batch))
    except MediaError as error:
        yield Rejection(entry.line, entry.name, error.reason.value, str(error))
        return
    except (OSError, MemoryError):
        raise  # the machine is at fault
    except Exception as error:  # one odd file among a million must not stop the work
        detail = redacted(f"{entry.name}: {type(error).__name__}: {error}")
        yield Rejection(entry.line, entry.name, Reason.UNDECODABLE.value, detail)
        return
    if fault := file_fault(seconds, True, encoders.filters):
        yield Rejection(entry.line, entry.name, *fault)


def _clip_rejection(entry: ManifestEntry, clip: Clip, fault: tuple[str, str]) -> Rejection:
    return Rejection(entry.line, entry.name, *fault, clip.start)


def encode(task: EntryTask, decoded: DecodedClips) -> EncodedClips:
    """Run the networks of the filters, then encode the remaining clips as one batch.

    Raises ValueError if weights or networks do not match their configuration.
    """
    entry, encoders = task.entry, task.encoders
    kept = [(clip, dict[str, float]()) for clip in decoded.clips]
    rejections = list(decoded.rejections)
    for classifier in encoders.filters.classifiers:
        if not kept or entry.domain not in classifier.domains:
            continue
        network = load_network(classifier.file, torch.device(encoders.device))
        found = scores(classifier, network, [clip for clip, _ in kept], encoders.codec.sample_rate)
        faults = [score_fault(classifier, score) for score in found]
        rejections += [_clip_rejection(entry, clip, f) for (clip, _), f in zip(kept, faults, strict=True) if f]
        for (_, known), score in zip(kept, found, strict=True):
            known.update({} if score is None else {classifier.name: score})
        kept = [pair for pair, fault in zip(kept, faults, strict=True) if not fault]
    kept, silenced = _separate(task, kept)
    features = _encode(encoders, *_stack_arrays([clip for clip, _ in kept])) if kept else []
    clips, good = list[ClipInfo](), list[ClipFeatures]()
    for (clip, known), arrays in zip(kept, features, strict=True):
        if odd := sum(np.count_nonzero(~(np.abs(array) <= LARGEST)) for array in vars(arrays).values()):
            fault = Reason.NOT_FINITE.value, f"{odd} values are not finite, or beyond float16"
            rejections.append(_clip_rejection(entry, clip, fault))
        else:
            clips.append(ClipInfo(clip.start, clip.seconds, known))
            good.append(arrays)
    rejections = sorted(rejections + silenced, key=lambda rejection: rejection.start or 0.0)
    return EncodedClips(clips, good, rejections, decoded.total)


ScoredClips = list[tuple[Clip, dict[str, float]]]


def _separate(task: EntryTask, kept: ScoredClips) -> tuple[ScoredClips, list[Rejection]]:
    encoders, separator = task.encoders, task.encoders.filters.separator
    if separator is None or not kept or task.entry.domain not in separator.domains:
        return kept, []
    rate, network = encoders.codec.sample_rate, load_network(separator.file, torch.device(encoders.device))
    silent = (Reason.SILENT.value, "nothing is left of its sound")
    clips = separate(separator, network, [clip for clip, _ in kept], rate)
    faults = [
        silent if clip.peak < encoders.filters.min_peak else silence_fault(clip, rate, encoders.filters)
        for clip in clips
    ]
    pairs = list(zip(clips, (known for _, known in kept), strict=True))
    rejections = [_clip_rejection(task.entry, clip, f) for clip, f in zip(clips, faults, strict=True) if f]
    return [pair for pair, fault in zip(pairs, faults, strict=True) if not fault], rejections


def _stack_arrays(clips: list[Clip]) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.uint8]]:
    wave, images, motion = (np.stack([getattr(clip, kind) for clip in clips]) for kind in ("wave", "images", "motion"))
    return wave, images, motion


@dataclass(frozen=True)
class SharedClips:
    """DecodedClips clips whose arrays lie in memory that the processes share: ten seconds of video are 48 MB."""

    decoded: DecodedClips  # clips without arrays
    arrays: list[tuple[Tensor, Tensor, Tensor]]  # wave, images, motion of each clip

    def restored(self) -> DecodedClips:
        """The clips with their arrays, without a copy."""
        clips = [
            replace(clip, wave=wave.numpy(), images=images.numpy(), motion=motion.numpy())
            for clip, (wave, images, motion) in zip(self.decoded.clips, self.arrays, strict=True)
        ]
        return replace(self.decoded, clips=clips)


def share_entry(task: EntryTask) -> Iterator[SharedClips | Rejection]:
    """The same as `decode_entry`, for another process to encode. torch passes the tensors on without a copy."""
    for found in decode_entry(task):
        if isinstance(found, Rejection):
            yield found
            continue
        bare = np.empty((0, 0), np.float32), np.empty((0, 0, 0, 0), np.uint8)
        clips = [replace(clip, wave=bare[0], images=bare[1], motion=bare[1]) for clip in found.clips]
        arrays = [tuple(torch.from_numpy(a) for a in (c.wave, c.images, c.motion)) for c in found.clips]
        yield SharedClips(replace(found, clips=clips), arrays)  # type: ignore[arg-type]


def stream_scenes(task: SceneTask) -> Iterator[list[Record]]:
    """`encode_scenes` as a generator, for a worker."""
    yield encode_scenes(task)


def encode_scenes(task: SceneTask) -> list[Record]:
    """Render scenes and encode them as one batch, with captions from their annotations."""
    indices = range(task.first, task.last)
    scenes = [draw_scene(task.seed, index, task.domain) for index in indices]
    waves = np.stack([render_audio(scene) for scene in scenes])
    videos = np.stack([render_video(scene) for scene in scenes]).transpose(0, 1, 4, 2, 3)  # (B, frames, 3, size, size)
    codec, video = task.encoders.codec, task.encoders.video
    images, motion = (videos[:, _nearest_frames(codec.seconds, rate)] for rate in (video.image_rate, video.motion_rate))
    features = _encode(task.encoders, waves, images, motion)
    records = []
    for index, scene, arrays in zip(indices, scenes, features, strict=True):
        notes = scene_annotation(scene)
        rng = np.random.default_rng([task.seed, index, DOMAINS.index(task.domain)])
        records.append(
            Record(
                id=f"scene-{index:06d}",
                domain=task.domain,
                captions=scene_captions(notes, rng),
                annotation=notes,
                seconds=codec.seconds,
                **vars(arrays),
            )
        )
    return records


def _nearest_frames(seconds: float, rate: float) -> NDArray[np.int64]:
    """Indices of the scene frames nearest to a rate's time stamps."""
    times = np.arange(frames_in(seconds, rate)) / rate
    return np.minimum(np.rint(times * FRAME_RATE).astype(np.int64), FRAMES - 1)


@cache
def _build_encoders(encoders: EncoderSettings) -> tuple[AudioCodec, VideoEncoder]:
    runtime = Runtime.for_device(torch.device(encoders.device), compile=True)
    return build_codec(encoders.codec, runtime), build_video_encoder(encoders.video, runtime)


@torch.inference_mode()
def _encode(
    encoders: EncoderSettings, waves: NDArray[np.float32], images: NDArray[np.uint8], motion: NDArray[np.uint8]
) -> list[ClipFeatures]:
    """waves (B, c, n) float32, images (B, N, 3, size, size) and motion (B, M, 3, size, size) uint8, no rows without
    video."""
    codec, video = _build_encoders(encoders)
    mean, std = (latents.float().cpu().numpy() for latents in codec.encode(torch.from_numpy(waves)))
    if images.shape[1]:
        pictures = torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(np.ascontiguousarray(motion))
        seen = [features.float().cpu().numpy() for features in video(*pictures)]
    else:
        seen = [np.empty((len(waves), 0, encoders.video.dim), np.float32)] * 2
    return [ClipFeatures(*arrays) for arrays in zip(mean, std, *seen, strict=True)]
