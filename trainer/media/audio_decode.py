"""Decode sound: mix it, resample it and cut it into blocks of a clip's length.

This module also finds damage that FFmpeg tolerates: a flac frame with a wrong checksum, less sound than the file
declares, gaps between time stamps. A truncated file that declares no length (raw aac, mp3 without a Xing header, MPEG
streams) cannot be told from a short one.

c channels, n samples.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import cast

import av
import numpy as np
import soxr
from numpy.typing import NDArray

from ...models.config import CodecConfig
from .source import MediaError, MediaSource, Reason, check_decoder, file_start, seek_before

FULL_SCALE = 0.98  # from this level on, equal neighbouring samples are clipped
REMAINDER = 0.1  # of a clip: the shortest remainder of a longer file that is kept
SLACK = 0.05  # seconds that a file may be shorter than declared: encoders round, and damage is longer
PREROLL = 1.0  # seconds before a segment where decoding begins: codecs carry sound over from frame to frame
LATEST = 600.0  # seconds of silence before the sound of a file: more is a wrong time stamp
LONGEST = 172_800.0  # seconds of sound of a segment, two days: lossless codecs make megabytes of months of silence
RATES = (1000, 4_000_000)  # Hz: at 1 Hz a few bytes would be hours
ROUNDING = 1e-3  # seconds to which some containers round their time stamps
# Containers whose stream duration is a count and not a guess from the bit rate.
_COUNTED = {"flac", "ogg", "mov,mp4,m4a,3gp,3g2,mj2", "aiff", "caf", "wv"}
# Containers that declare the length of their longest track, which may not be the sound.
_LONGEST = {"matroska,webm", "flv"}
LONGEST_SLACK = 0.5  # seconds for such a file with several tracks: the last picture may not say how long it is shown

Wave = NDArray[np.float32]


@dataclass(frozen=True)
class SoundSegment:
    """A part of a file's sound."""

    start: float = 0.0  # seconds after the beginning of the file
    end: float | None = None  # None: to the end
    synced: bool = False  # there are pictures, which are found by time stamp
    slack: float = SLACK  # seconds that the file may be shorter than declared


@dataclass(frozen=True)
class SoundPiece:
    """A clip's sound."""

    start: float  # seconds after the segment's start
    seconds: float  # true length
    wave: Wave  # (audio_channels, samples), peak at most 1
    clipped: float  # share of the decoded samples at full scale


def decode_clips(source: MediaSource, codec: CodecConfig, segment: SoundSegment) -> Iterator[SoundPiece]:
    """Yield consecutive pieces of the codec's length. The last one is padded with zeros, or dropped if it is shorter
    than REMAINDER of a clip and not the only one. Raises MediaError."""
    block_of_clip = np.zeros((codec.samples, codec.audio_channels), np.float32)
    filled, count, meter = 0, 0, _ClippingMeter()

    def piece(length: int) -> SoundPiece:
        wave = _levelled(block_of_clip, source.name)
        return SoundPiece(count * codec.seconds, length / codec.sample_rate, wave, meter.reset())

    for block in _resampled(source, codec, segment, meter):
        while len(block):
            taken = block[: codec.samples - filled]
            block_of_clip[filled : filled + len(taken)] = taken
            filled, block = filled + len(taken), block[len(taken) :]
            if filled == codec.samples:
                yield piece(filled)
                filled, count = 0, count + 1
    if not count and not filled:
        raise MediaError(Reason.ZERO_LENGTH, f"{source.name}: shorter than one sample at {codec.sample_rate} Hz")
    if filled and (not count or filled >= REMAINDER * codec.samples):
        block_of_clip[filled:] = 0
        yield piece(filled)


def decode_all(
    source: MediaSource, codec: CodecConfig, segment: SoundSegment | None = None, longest: float | None = None
) -> Wave:
    """Decode a whole segment (default: the file), (audio_channels, n), scaled if its peak is above 1.

    Raises:
        MediaError: the file is damaged or empty.
        ValueError: the segment is longer than `longest` seconds; decoding stops there.
    """
    blocks, samples = [], 0
    for block in _resampled(source, codec, segment or SoundSegment(), _ClippingMeter()):
        blocks.append(block)
        samples += len(block)
        if longest is not None and samples > longest * codec.sample_rate:
            raise ValueError(f"longer than {longest:g} s")
    if not samples:
        raise MediaError(Reason.ZERO_LENGTH, f"{source.name}: shorter than one sample at {codec.sample_rate} Hz")
    return _levelled(np.concatenate(blocks), source.name)


@dataclass(frozen=True)
class NativeSound:
    """All sound of a file as it is, but for the mix to one channel. Levels are kept."""

    rate: int  # Hz
    channels: int  # of the file
    wave: Wave  # (n,)
    clipped: float  # share of the decoded samples at full scale


def decode_native(source: MediaSource) -> NativeSound:
    """Decode a whole file at its own rate. Raises MediaError where it is damaged or empty."""
    meter, blocks, rate = _ClippingMeter(), list[Wave](), 0
    with _track(source, 0.0) as (track, frames):
        for rate, block in _blocks(track, frames, 1, SoundSegment(), meter):  # noqa: B007  # the rate is that of all
            blocks.append(block[:, 0])
        channels = track.stream.channels
    if not blocks:
        raise MediaError(Reason.ZERO_LENGTH, f"{source.name}: holds no sound")
    wave = np.concatenate(blocks)
    if not np.isfinite(wave).all():
        raise MediaError(Reason.UNDECODABLE, f"{source.name}: samples are not finite")
    return NativeSound(rate, channels, wave, meter.reset())


@dataclass
class _ClippingMeter:
    """Counts samples since the last clip was cut. At most one frame of them belongs to the next clip."""

    samples: int = 0
    clipped: int = 0

    def add(self, block: Wave) -> None:
        """block: decoded samples (c, n)."""
        level = np.abs(block)
        flat = (level[:, 1:] >= FULL_SCALE) & (block[:, 1:] == block[:, :-1])
        over = level[:, 1:] > 1  # lossy codecs overshoot clipped input
        self.samples += block.size
        self.clipped += int(np.count_nonzero(flat | over))

    def reset(self) -> float:
        """Return the clipped share and start again."""
        share = self.clipped / max(self.samples, 1)
        self.samples = self.clipped = 0
        return share


def _levelled(block: Wave, name: str) -> Wave:
    """(n, c) -> (c, n), peak at most 1."""
    if not np.isfinite(block).all():
        raise MediaError(Reason.UNDECODABLE, f"{name}: {np.count_nonzero(~np.isfinite(block))} samples are not finite")
    return np.ascontiguousarray(block.T) / np.float32(max(1.0, np.abs(block).max()))


def _resampled(source: MediaSource, codec: CodecConfig, segment: SoundSegment, meter: _ClippingMeter) -> Iterator[Wave]:
    """Yield blocks (n, audio_channels) at the codec's rate."""
    resampler: soxr.ResampleStream | None = None
    for rate, block in _segment(source, codec.audio_channels, segment, meter):
        if rate == codec.sample_rate:
            yield block
            continue
        if resampler is None:
            resampler = soxr.ResampleStream(rate, codec.sample_rate, codec.audio_channels, dtype="float32")
        yield resampler.resample_chunk(block)
    if resampler is not None:
        yield resampler.resample_chunk(np.empty((0, codec.audio_channels), np.float32), last=True)


def _segment(
    source: MediaSource, channels: int, segment: SoundSegment, meter: _ClippingMeter
) -> Iterator[tuple[int, Wave]]:
    """Yield the file's sample rate with blocks (n, channels) of the segment, as `_blocks`."""
    with _track(source, segment.start) as (track, frames):
        yield from _blocks(track, frames, channels, segment, meter)


def _blocks(
    track: "_Track", frames: Iterator[av.AudioFrame], channels: int, segment: SoundSegment, meter: _ClippingMeter
) -> Iterator[tuple[int, Wave]]:
    """Yield the file's sample rate with blocks (n, channels) of the segment; zeros where the file begins without sound.
    The first frame's time stamp places the sound in the file, and from there on samples are counted."""
    clock: int | None = None  # samples of the file so far
    for frame in frames:
        track.check_kind(frame)
        rate = frame.sample_rate
        first, last = round(segment.start * rate), None if segment.end is None else round(segment.end * rate)
        stamp = None if frame.time is None else round((frame.time - track.begin) * rate)
        if clock is None:
            clock = 0 if stamp is None or abs(stamp) <= ROUNDING * rate else stamp
            missing = (clock if last is None else min(clock, last)) - first
            if missing > LATEST * rate:
                raise MediaError(
                    Reason.GAP, f"{track.name}: the sound begins at {clock / rate:.2f} s, more than {LATEST:g} s "
                    "after the file or the segment"
                )  # fmt: skip
            yield from _silence(rate, channels, missing)
        elif stamp is not None and abs(stamp - clock) > SLACK * rate:
            if max(clock, stamp) <= first:
                clock = stamp
            elif segment.synced:
                raise MediaError(
                    Reason.GAP, f"{track.name}: the time stamps of the sound jump from {clock / rate:.2f} s to "
                    f"{stamp / rate:.2f} s"
                )  # fmt: skip
        for block in track.converted(frame):
            wanted = block[:, max(0, first - clock) : None if last is None else max(0, last - clock)]
            clock += block.shape[1]
            if clock - first > LONGEST * rate:
                raise MediaError(Reason.TOO_LONG, f"{track.name}: longer than {LONGEST:g} s; prepare segments of it")
            if wanted.shape[1]:
                meter.add(wanted)
                yield rate, _mixed(wanted, channels)
        if last is not None and clock >= last:
            return
    track.check_length(0.0 if clock is None else clock / track.rate, segment)


def _silence(rate: int, channels: int, samples: int) -> Iterator[tuple[int, Wave]]:
    while samples > 0:
        yield rate, np.zeros((min(rate, samples), channels), np.float32)
        samples -= rate


class _Track:
    """The first sound track of an open file."""

    def __init__(self, name: str, container: av.container.InputContainer) -> None:
        if not container.streams.audio:
            raise MediaError(Reason.NO_AUDIO, f"{name}: no sound, only {[s.type for s in container.streams]}")
        self.stream = container.streams.audio[0]
        check_decoder(name, self.stream)
        self.begin = file_start(container)
        self.name, self._container = name, container
        self._reached = 0.0  # seconds at which the packets of all tracks end; for containers in _LONGEST
        if self.stream.codec_context.name == "flac":
            self.stream.codec_context.options = {"err_detect": "crccheck+explode"}
        # FFmpeg mixes surround sound down to stereo; one and two channels are mixed below.
        layout = "stereo" if self.stream.channels > 2 else None
        self._converter = av.AudioResampler(format="fltp", layout=layout)
        self._kind: tuple[int, str, str] | None = None

    @property
    def rate(self) -> int:
        return self.stream.rate if self._kind is None else self._kind[0]

    def frames(self, since: float) -> Iterator[av.AudioFrame]:
        """Yield frames of packets whose time stamp is unknown, or at least `since` seconds after the file begins."""
        packets = self._packets()
        for packet in packets:
            if packet.pts is not None and float(packet.pts * packet.time_base) - self.begin < since:
                continue
            try:
                frames = packet.decode()
            except av.error.InvalidDataError as error:
                at_end = not any(later.size for later in packets)
                reason = Reason.TRUNCATED if at_end else Reason.UNDECODABLE
                place = "the last packet is truncated" if at_end else f"the packet at byte {packet.pos} is damaged"
                raise MediaError(reason, f"{self.name}: {place} ({error.strerror})") from error
            yield from frames

    def _packets(self) -> "Iterator[av.Packet[av.AudioStream]]":
        if self._container.format.name not in _LONGEST:
            yield from self._container.demux(self.stream)
            return
        for packet in self._container.demux():
            if packet.pts is not None and packet.time_base is not None:
                self._reached = max(self._reached, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index == self.stream.index:
                yield cast("av.Packet[av.AudioStream]", packet)

    def check_kind(self, frame: av.AudioFrame) -> None:
        found = (frame.sample_rate, frame.layout.name, frame.format.name)
        if self._kind not in (None, found):
            changes = f"changes from {self._kind} to {found} (Hz, channels, format)"
            raise MediaError(Reason.UNDECODABLE, f"{self.name}: {changes}")
        if self._kind is None and not RATES[0] <= frame.sample_rate <= RATES[1]:
            expected = f"expected {RATES[0]} to {RATES[1]}"
            raise MediaError(Reason.UNDECODABLE, f"{self.name}: a sample rate of {frame.sample_rate} Hz; {expected}")
        self._kind = found

    def converted(self, frame: av.AudioFrame) -> list[Wave]:
        """Blocks (1 or 2, n)."""
        return [np.asarray(converted.to_ndarray(), np.float32) for converted in self._converter.resample(frame)]

    def check_length(self, seconds: float, segment: SoundSegment) -> None:
        """At the end of a file, check its length against what it declares and against the segment."""
        name, stream, kind = self.name, self.stream, self._container.format.name
        # An mp3 has a start time only if it has a Xing header, which counts its frames.
        counted = kind in _COUNTED or (kind == "mp3" and stream.start_time)
        if counted and stream.duration is not None and stream.time_base is not None:
            late = float((stream.start_time or 0) * stream.time_base) - self.begin
            declared = float(stream.duration * stream.time_base) + max(0.0, late)
            if seconds < declared - segment.slack:
                raise MediaError(
                    Reason.TRUNCATED, f"{name}: declares {declared:.2f} s of sound and holds {seconds:.2f} s"
                )
        self._check_longest(segment.slack)
        if seconds <= segment.start:
            asked = f", the segment starts at {segment.start:g} s" if segment.start else ""
            raise MediaError(Reason.ZERO_LENGTH, f"{name}: holds {seconds:.2f} s of sound{asked}")
        if segment.end is not None and seconds < segment.end - segment.slack:
            raise MediaError(
                Reason.TRUNCATED, f"{name}: holds {seconds:.2f} s of sound, the segment ends at {segment.end:g} s"
            )

    def _check_longest(self, slack: float) -> None:
        container, alone = self._container, len(self._container.streams) == 1
        # If a file with one track declares no length, FFmpeg guesses it from the bit rate.
        if container.format.name not in _LONGEST or not container.duration or (alone and self.stream.bit_rate):
            return
        declared = container.duration / av.time_base
        if self._reached < declared - (slack if alone else max(slack, LONGEST_SLACK)):
            raise MediaError(
                Reason.TRUNCATED, f"{self.name}: declares {declared:.2f} s and ends after {self._reached:.2f} s"
            )


@contextmanager
def _track(source: MediaSource, start: float) -> Iterator[tuple[_Track, Iterator[av.AudioFrame]]]:
    """Yield frames from PREROLL seconds before `start`. Seek only where a seek is exact."""
    since = start - PREROLL if start > PREROLL else -math.inf
    with ExitStack() as stack:
        container = stack.enter_context(source.container())
        track = _Track(source.name, container)
        if start > PREROLL and seek_before(container, track.stream, track.begin + since):
            frames = track.frames(since)
            try:
                first = next(frames, None)
            except MediaError:  # some codecs can start at few places only
                first = None
            if first is not None and first.time is not None and first.time - track.begin <= start:
                yield track, chain([first], frames)
                return
            track = _Track(source.name, stack.enter_context(source.container()))
        yield track, track.frames(since)


def _mixed(block: Wave, channels: int) -> Wave:
    """(1 or 2, n) -> (n, channels): one channel is repeated, or two are averaged."""
    if len(block) > channels:
        block = block.mean(axis=0, keepdims=True)
    return np.ascontiguousarray(np.broadcast_to(block, (channels, block.shape[1])).T)
