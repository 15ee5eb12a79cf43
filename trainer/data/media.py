"""Sound and pictures from files: decode, resample, mix, cut into clips of the codec's length.

Everything streams, so that a file of ten hours needs no more memory than one clip. Shapes: c channels, n samples.

What FFmpeg lets pass is looked for here: a wav shorter than its header says, a flac frame with a wrong checksum, a file
that yields less sound than it declares. A file that declares no length (raw aac, mp3 without a Xing header) can be cut
without anybody noticing; it counts as a short file.
"""

import math
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
import soxr
from numpy.typing import NDArray

from ...models.config import CodecConfig, VideoConfig

SILENT = 1e-4  # a clip whose peak is below (-80 dB) holds nothing to learn from
FULL_SCALE = 0.98  # from here on neighbours of one value have run into a limit
REMAINDER = 0.1  # of a clip: what a file of several clips leaves over is kept from this length on
SLACK = 0.05  # seconds that a file may lack of its declared length: encoders round, damage is longer
VIDEO_SLACK = 0.5  # seconds by which pictures may end before the sound; their last frame stands for the rest
# A playlist is no sound: it may name addresses, and FFmpeg waits without end for a live one to go on.
_FORMATS = av.formats_available - {"hls", "dash", "concat", "sdp", "rtsp", "imf"}
_OPTIONS = {"format_whitelist": ",".join(sorted(_FORMATS)), "protocol_whitelist": "file"}
# Containers whose stream duration is a count and not a guess from the bit rate.
_COUNTED = {"flac", "ogg", "mov,mp4,m4a,3gp,3g2,mj2", "aiff", "caf", "wv"}


Wave = NDArray[np.float32]


class Reason(StrEnum):
    """Why a file, or a clip of it, is left out."""

    MISSING = "missing"
    UNREADABLE = "unreadable"  # a folder, no permission, or the disk fails
    UNDECODABLE = "undecodable"
    NO_AUDIO = "no audio track"
    NO_VIDEO = "no video track"
    ZERO_LENGTH = "zero length"
    SILENT = "silent"
    TRUNCATED = "truncated"


class MediaError(Exception):
    """A file gives no clips; `reason` says what kind of damage, the message where and how."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[Reason, str]]:
        return MediaError, (self.reason, str(self))  # exceptions with two arguments do not cross processes otherwise


@dataclass(frozen=True)
class Clip:
    """A piece of a file as long as the codec's clip, padded with zeros at the end."""

    start: float  # seconds after the start of the segment it was cut from
    seconds: float  # true length of the sound
    wave: Wave  # (audio_channels, samples) float32, peak at most 1
    images: NDArray[np.uint8]  # (N, 3, size, size) uint8 at image_rate; no rows without video
    motion: NDArray[np.uint8]  # (M, 3, size, size) uint8 at motion_rate; no rows without video
    clipped: float = 0.0  # share of the samples, as they were decoded, that ran into full scale

    @property
    def silent(self) -> bool:
        return float(np.abs(self.wave).max()) < SILENT


def read_clips(
    audio: Path | str,
    video: Path | str | None,
    codec: CodecConfig,
    frames: VideoConfig,
    start: float = 0.0,
    end: float | None = None,
) -> Iterator[Clip]:
    """Cuts the segment [start, end) of a file, in seconds, into consecutive clips.

    The last clip is padded with zeros; when it is not the only one and shorter than a tenth of a clip it is dropped.
    The level stays as it is, unless a clip's peak is above 1: that clip is scaled to peak 1. Frames are those nearest
    in time; the time line of a video that also gives the sound begins at its first sound.

    Raises:
        MediaError: a file is missing, damaged or empty, also after some clips have been given: then those are no good
            either.
    """
    audio, video = Path(audio), None if video is None else Path(video)
    empty = np.empty((0, 3, frames.size, frames.size), np.uint8)
    if video is None:
        for begin, seconds, wave, clipped in _cut(audio, codec, start, end):
            yield Clip(begin, seconds, wave, empty, empty, clipped)
        return
    origin = start + (_first_sound(audio) if video == audio else 0.0)
    with _naming(video), FrameReader(video, frames.size) as reader:
        for begin, seconds, wave, clipped in _cut(audio, codec, start, end):
            images = [begin + i / frames.image_rate for i in range(frames_in(codec.seconds, frames.image_rate))]
            motion = [begin + i / frames.motion_rate for i in range(frames_in(codec.seconds, frames.motion_rate))]
            # One pass over the video serves both rates.
            times = sorted({*images, *motion})
            pictures = dict(zip(times, reader.nearest([origin + time for time in times]), strict=True))
            reader.check_reaches(origin + begin + seconds)
            stacks = [np.stack([pictures[t] for t in kind]) for kind in (images, motion)]
            yield Clip(begin, seconds, wave, stacks[0], stacks[1], clipped)


def read_sound(path: Path, codec: CodecConfig) -> Wave:
    """All the sound of a file at the codec's rate and channels: (audio_channels, n), scaled where its peak is above 1.

    Raises:
        MediaError: the file is missing, damaged or empty.
    """
    blocks = list(_resampled(path, codec, 0.0, None, _Decoded()))
    if not any(len(block) for block in blocks):
        raise MediaError(Reason.ZERO_LENGTH, f"{path}: shorter than one sample at {codec.sample_rate} Hz")
    return _levelled(np.concatenate(blocks), path)


@dataclass(frozen=True)
class VideoSpan:
    """How long the pictures of a file last."""

    start: float  # seconds: time stamp of the first picture
    end: float  # seconds: where the last one ends
    count: int


def video_span(path: Path) -> VideoSpan:
    """By the packets of a file; nothing is decoded.

    Raises:
        MediaError: the file is missing, damaged or holds no pictures.
    """
    _check_file(path)
    with _naming(path), av.open(str(path), metadata_errors="replace", options=_OPTIONS) as container:
        if not container.streams.video:
            raise MediaError(Reason.NO_VIDEO, f"{path}: no pictures")
        stream = container.streams.video[0]
        unit, frame = float(stream.time_base or 0), 1 / float(stream.average_rate or 25)
        packets = [(p.pts * unit, p.duration) for p in container.demux(stream) if p.size and p.pts is not None]
    if not packets:
        raise MediaError(Reason.ZERO_LENGTH, f"{path}: a video track without a frame")
    # A cut that a container declares hides the pictures before its start.
    start = min(time for time, _ in packets) if stream.start_time is None else stream.start_time * unit
    end = max(time + (duration * unit if duration else frame) for time, duration in packets)
    return VideoSpan(start, end, len(packets))


def frames_in(seconds: float, rate: float) -> int:
    """Frames of a rate whose time lies within a clip; the small number keeps 2.048 s at 15.625 from giving 33."""
    return math.ceil(seconds * rate - 1e-6)


@dataclass
class _Decoded:
    """Samples of all channels since the last clip was cut: at most one frame of them is the next one's."""

    samples: int = 0
    clipped: int = 0

    def add(self, block: Wave) -> None:
        """block (c, n), as it was decoded."""
        level = np.abs(block)
        flat = (level[:, 1:] >= FULL_SCALE) & (block[:, 1:] == block[:, :-1])
        over = level[:, 1:] > 1  # lossy codecs overshoot where they were given a flat top
        self.samples += block.size
        self.clipped += int(np.count_nonzero(flat | over))

    def take(self) -> float:
        """The clipped share, and begins anew."""
        share = self.clipped / max(self.samples, 1)
        self.samples = self.clipped = 0
        return share


def _cut(path: Path, codec: CodecConfig, start: float, end: float | None) -> Iterator[tuple[float, float, Wave, float]]:
    """-> start and true length in seconds, wave (audio_channels, samples), and clipped share, of each clip."""
    kept, count, decoded = np.empty((0, codec.audio_channels), np.float32), 0, _Decoded()
    for block in _resampled(path, codec, start, end, decoded):
        kept = np.concatenate((kept, block))
        while len(kept) >= codec.samples:
            yield count * codec.seconds, codec.seconds, _levelled(kept[: codec.samples], path), decoded.take()
            kept, count = kept[codec.samples :], count + 1
    if not count and not len(kept):
        raise MediaError(Reason.ZERO_LENGTH, f"{path}: shorter than one sample at {codec.sample_rate} Hz")
    if len(kept) and (not count or len(kept) >= REMAINDER * codec.samples):
        padded = np.pad(kept, ((0, codec.samples - len(kept)), (0, 0)))
        yield count * codec.seconds, len(kept) / codec.sample_rate, _levelled(padded, path), decoded.take()


def _levelled(block: Wave, path: Path) -> Wave:
    """(n, c) -> (c, n), peak at most 1."""
    if not np.isfinite(block).all():
        raise MediaError(Reason.UNDECODABLE, f"{path}: {np.count_nonzero(~np.isfinite(block))} samples are not finite")
    return np.ascontiguousarray(block.T) / np.float32(max(1.0, np.abs(block).max()))


def _resampled(path: Path, codec: CodecConfig, start: float, end: float | None, decoded: _Decoded) -> Iterator[Wave]:
    """Blocks (n, audio_channels) at the codec's rate; counts in `decoded`."""
    resampler: soxr.ResampleStream | None = None
    for rate, block in _decoded(path, codec.audio_channels, start, end, decoded):
        if rate == codec.sample_rate:
            yield block
            continue
        if resampler is None:
            resampler = soxr.ResampleStream(rate, codec.sample_rate, codec.audio_channels, dtype="float32")
        yield resampler.resample_chunk(block)
    if resampler is not None:
        yield resampler.resample_chunk(np.empty((0, codec.audio_channels), np.float32), last=True)


def _decoded(
    path: Path, channels: int, start: float, end: float | None, decoded: _Decoded
) -> Iterator[tuple[int, Wave]]:
    """The file's own sample rate with blocks (n, channels) of the segment. Everything before it is decoded and left
    away: a seek is not exact in every format."""
    _check_file(path)
    with _naming(path), av.open(str(path), metadata_errors="replace", options=_OPTIONS) as container:
        if not container.streams.audio:
            raise MediaError(Reason.NO_AUDIO, f"{path}: holds {[s.type for s in container.streams]}")
        stream = container.streams.audio[0]
        if stream.codec_context.name == "flac":
            stream.codec_context.options = {"err_detect": "crccheck+explode"}
        # FFmpeg knows how to fold surround sound; one and two channels are mixed below.
        converter = av.AudioResampler(format="fltp", layout="stereo" if stream.channels > 2 else None)
        seen, rate = 0, stream.rate
        kind: tuple[int, int, str] | None = None
        for frame in _frames(container, stream, path):
            rate = frame.sample_rate
            found = (rate, len(frame.layout.channels), frame.format.name)
            if kind not in (None, found):
                raise MediaError(Reason.UNDECODABLE, f"{path}: changes from {kind} to {found} (Hz, channels, format)")
            kind = found
            first, last = round(start * rate), None if end is None else round(end * rate)
            for converted in converter.resample(frame):
                block = np.asarray(converted.to_ndarray(), np.float32)  # (c, n)
                wanted = block[:, max(0, first - seen) : None if last is None else max(0, last - seen)]
                seen += block.shape[1]
                if wanted.shape[1]:
                    decoded.add(wanted)
                    yield rate, _mixed(wanted, channels)
            if last is not None and seen >= last:
                return
        _check_length(path, container, stream, seen / rate, start, end)


def _frames(container: av.container.InputContainer, stream: av.AudioStream, path: Path) -> Iterator[av.AudioFrame]:
    packets = container.demux(stream)
    for packet in packets:
        try:
            frames = packet.decode()
        except av.error.InvalidDataError as error:
            at_end = not any(later.size for later in packets)
            reason = Reason.TRUNCATED if at_end else Reason.UNDECODABLE
            place = "the last packet is cut" if at_end else f"the packet at byte {packet.pos} is damaged"
            raise MediaError(reason, f"{path}: {place} ({error.strerror})") from error
        yield from frames


def _mixed(block: Wave, channels: int) -> Wave:
    """(1 or 2, n) -> (n, channels): one channel is repeated, two are averaged to one."""
    if len(block) > channels:
        block = block.mean(axis=0, keepdims=True)
    return np.ascontiguousarray(np.broadcast_to(block, (channels, block.shape[1])).T)


def _check_file(path: Path) -> None:
    with _naming(path):
        status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise MediaError(Reason.UNREADABLE, f"{path}: not a file")  # a folder, or a pipe that would never end
    with _naming(path), path.open("rb") as file:
        size = status.st_size
        if not size:
            raise MediaError(Reason.ZERO_LENGTH, f"{path}: 0 bytes")
        riff, _, kind = struct.unpack("<4sI4s", file.read(12).ljust(12, b"\0"))
        if (riff, kind) != (b"RIFF", b"WAVE"):
            return
        # FFmpeg takes what there is of a wav that was cut; programs that write to a pipe declare a length near 2**31 or
        # 2**32 because they do not know it.
        while len(head := file.read(8)) == 8:
            name, length = struct.unpack("<4sI", head)
            left = size - file.tell()
            if name == b"data" and left < length < 0x7FFF0000:
                raise MediaError(Reason.TRUNCATED, f"{path}: declares {length} bytes of sound and holds {left}")
            file.seek(length + length % 2, 1)


def _check_length(
    path: Path,
    container: av.container.InputContainer,
    stream: av.AudioStream,
    seconds: float,
    start: float,
    end: float | None,
) -> None:
    """Called where the file has ended: does it hold what it declares, and what was asked for?"""
    # Of an mp3, a start time says that a Xing header with a count of frames was there.
    counted = container.format.name in _COUNTED or (container.format.name == "mp3" and stream.start_time)
    if counted and stream.duration is not None and stream.time_base is not None:
        declared = float(stream.duration * stream.time_base)
        if seconds < declared - SLACK:
            raise MediaError(Reason.TRUNCATED, f"{path}: declares {declared:.2f} s of sound and holds {seconds:.2f} s")
    if seconds <= start:
        asked = f", the segment starts at {start:g} s" if start else ""
        raise MediaError(Reason.ZERO_LENGTH, f"{path}: holds {seconds:.2f} s of sound{asked}")
    if end is not None and seconds < end - SLACK:
        raise MediaError(Reason.TRUNCATED, f"{path}: holds {seconds:.2f} s of sound, the segment ends at {end:g} s")


def _first_sound(path: Path) -> float:
    """Time stamp in seconds of the first sound of a file."""
    _check_file(path)
    with _naming(path), av.open(str(path), metadata_errors="replace", options=_OPTIONS) as container:
        if not container.streams.audio:
            raise MediaError(Reason.NO_AUDIO, f"{path}: holds {[s.type for s in container.streams]}")
        first = next(container.decode(container.streams.audio[0]), None)
        return (first.time or 0.0) if first is not None else 0.0


@dataclass(frozen=True)
class _Frame:
    time: float  # seconds
    frame: av.VideoFrame
    size: int

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """(3, size, size) uint8: the short side scaled to `size`, the middle of the long one."""
        scale = self.size / min(self.frame.width, self.frame.height)
        width, height = (max(self.size, round(side * scale)) for side in (self.frame.width, self.frame.height))
        # Area averaging: bicubic would alias where a large picture becomes small.
        rgb = self.frame.reformat(width, height, "rgb24", interpolation="AREA" if scale < 1 else "BICUBIC")
        top, left = (height - self.size) // 2, (width - self.size) // 2
        square = rgb.to_ndarray()[top : top + self.size, left : left + self.size]
        turned = np.rot90(square, round(self.frame.rotation / 90))  # telephones store pictures lying on their side
        return np.ascontiguousarray(turned.transpose(2, 0, 1))


class FrameReader:
    """Frames of a video by time stamp; a context manager. Times must not decrease from one request to the next."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size
        _check_file(path)

    def __enter__(self) -> Self:
        self._container = av.open(str(self._path), metadata_errors="replace", options=_OPTIONS)
        if not self._container.streams.video:
            self._container.close()
            raise MediaError(Reason.NO_VIDEO, f"{self._path}: no pictures")
        stream = self._container.streams.video[0]
        stream.codec_context.thread_count = 1  # as many processes as cores are at work already
        self._frames = self._container.decode(stream)
        first = self._next()
        if first is None:
            raise MediaError(Reason.ZERO_LENGTH, f"{self._path}: a video track without a frame")
        self._before, self._after = first, self._next()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()

    def nearest(self, times: list[float]) -> list[NDArray[np.uint8]]:
        """times in seconds, ascending -> as many pictures (3, size, size) uint8."""
        return [self._at(time).pixels for time in times]

    def check_reaches(self, time: float) -> None:
        """Raises MediaError when the pictures ended more than VIDEO_SLACK seconds before a time already asked for."""
        if self._after is None and self._before.time < time - VIDEO_SLACK:
            raise MediaError(
                Reason.TRUNCATED,
                f"{self._path}: the pictures end at {self._before.time:.2f} s, the sound goes on to {time:.2f} s",
            )

    def _at(self, time: float) -> _Frame:
        while self._after is not None and self._after.time <= time:
            self._before, self._after = self._after, self._next()
        if self._after is not None and self._after.time - time < time - self._before.time:
            return self._after
        return self._before

    def _next(self) -> _Frame | None:
        frame = next((f for f in self._frames if f.time is not None), None)
        return None if frame is None else _Frame(float(frame.time), frame, self._size)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns what opening and decoding raise into a MediaError with the file's name."""
    try:
        yield
    except FileNotFoundError as error:
        raise MediaError(Reason.MISSING, f"{path}: no such file") from error
    except OSError as error:
        raise MediaError(Reason.UNREADABLE, f"{path}: {error.strerror}") from error
    except av.error.FFmpegError as error:
        raise MediaError(Reason.UNDECODABLE, f"{path}: {error.strerror}") from error
