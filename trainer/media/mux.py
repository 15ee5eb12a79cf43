"""Write sound to a file: alone, or with the pictures of a video, which are copied without encoding.

c sound channels, n samples.
"""

import errno
import io
import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from ..core.files import atomic_output
from .source import OPTIONS, MediaError, check_decoder, file_start
from .video_decode import video_track

if TYPE_CHECKING:
    from torch import Tensor  # takes seconds to import, and `check_writable` does without

SOUND_FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
# FFmpeg's name of the container, and the codec of the sound in it.
CONTAINERS = {
    ".mp4": ("mp4", "aac"),
    ".mov": ("mov", "aac"),
    ".mkv": ("matroska", "aac"),
    ".webm": ("webm", "libopus"),
}
OPUS_RATE = 48_000
BIT_RATE = 96_000  # per channel
FULL = {errno.ENOSPC, errno.EDQUOT}
BLOCK = 48_000  # samples written at a time

Wave = NDArray[np.float32]


def check_writable(out: Path, video: Path | None) -> None:
    """Check whether a file of this name can hold the pictures of this video. Nothing is written.

    Raises:
        ValueError: its ending is unknown, it is a container but there is no video, the container cannot hold the
            video's pictures as they are, or the video cannot be read.
    """
    ending = out.suffix.lower()
    if ending in SOUND_FORMATS:
        return
    if ending not in CONTAINERS:
        raise ValueError(f"out: {out}: only {', '.join((*SOUND_FORMATS, *CONTAINERS))} can be written")
    if video is None:
        raise ValueError(f"out: {out}: {ending} holds pictures; give the video, or write {', '.join(SOUND_FORMATS)}")
    if out.exists() and out.samefile(video):
        raise ValueError(f"out: {out} is the video itself; choose another name")
    with _media_errors(f"video: {video}"), av.open(str(video), options=OPTIONS) as given:
        pictures = video_track(str(video), given)
        check_decoder(str(video), pictures)
        codec = pictures.codec_context.name
        try:
            with av.open(io.BytesIO(), "w", format=CONTAINERS[ending][0]) as container:
                container.add_stream_from_template(pictures, opaque=True)
                container.start_encoding()
        except (ValueError, av.error.FFmpegError):
            raise ValueError(
                f"out: {out}: {ending} does not hold {codec}, the pictures of {video}, and they are not re-encoded; "
                f".mkv holds nearly everything"
            ) from None


def write_media(
    out: Path | str, wave: "Tensor", rate: int, video: Path | str | None = None, start: float = 0.0
) -> None:
    """Write a wave (c, n) in [-1, 1] at `rate` Hz to `out`, in the format of its ending. It appears whole or not at
    all.

    In a container the video's pictures are copied packet by packet, and the file begins at time 0. The sound (AAC, in
    webm Opus) replaces the video's own and begins after `start` seconds of silence.

    Raises:
        ValueError: as `check_writable`; or the wave is not finite, or the video damaged.
        OSError: the file cannot be written, as on a full disk.
    """
    out, video = Path(out), None if video is None else Path(video)
    check_writable(out, video)
    samples = np.ascontiguousarray(wave.detach().cpu().float().numpy())
    if count := np.count_nonzero(~np.isfinite(samples)):
        raise ValueError(f"out: {out}: {count} of {samples.size} samples are not finite; nothing was written")
    ending = out.suffix.lower()
    with atomic_output(out, replace=True) as temporary:
        if ending in SOUND_FORMATS:
            _write_sound(temporary, samples, rate, *SOUND_FORMATS[ending])
        elif video is not None:
            silence = np.zeros((samples.shape[0], round(start * rate)), np.float32)
            with _media_errors(f"out: {out}, with the pictures of {video}"):
                _mux(temporary, video, np.concatenate((silence, samples), axis=1), rate, *CONTAINERS[ending])


def _write_sound(path: Path, wave: Wave, rate: int, kind: str, coding: str) -> None:
    try:
        with soundfile.SoundFile(path, "w", rate, wave.shape[0], format=kind, subtype=coding) as file:
            for begin in range(0, wave.shape[1], BLOCK):  # libsndfile's Vorbis writer fails on long blocks
                file.write(wave[:, begin : begin + BLOCK].T)
    except (soundfile.LibsndfileError, AssertionError) as error:  # the second one where fewer samples were written
        raise OSError(f"{path.parent}: a sound cannot be written there; is the disk full? ({error})") from error


def _mux(path: Path, video: Path, wave: Wave, rate: int, kind: str, coding: str) -> None:
    with av.open(str(video), options=OPTIONS) as given, av.open(str(path), "w", format=kind) as made:
        pictures = video_track(str(video), given)
        copied = made.add_stream_from_template(pictures, opaque=True)
        made.metadata.update(given.metadata)
        encoded = deque(_encode(made, wave, rate, coding))
        begin = round(file_start(given) / (pictures.time_base or 1))
        for packet in given.demux(pictures):
            if not packet.size:
                continue
            if packet.pts is not None:
                packet.pts -= begin
            if packet.dts is not None:
                packet.dts -= begin
            while encoded and _timestamp(encoded[0]) <= _timestamp(packet):
                made.mux(encoded.popleft())
            packet.stream = copied
            made.mux(packet)
        for packet in encoded:
            made.mux(packet)


def _encode(made: av.container.OutputContainer, wave: Wave, rate: int, coding: str) -> Iterator[av.Packet]:
    if coding == "libopus" and rate != OPUS_RATE:
        wave, rate = soxr.resample(wave.T, rate, OPUS_RATE).T, OPUS_RATE
    channels = wave.shape[0]
    stream = made.add_stream(coding, rate=rate, layout="mono" if channels == 1 else "stereo")
    assert isinstance(stream, av.AudioStream)
    stream.bit_rate = channels * min(BIT_RATE, 6 * rate)  # AAC has 6144 bits for 1024 samples at most
    kind = "flt" if coding == "libopus" else "fltp"
    for begin in range(0, wave.shape[1], BLOCK):
        block = np.ascontiguousarray(wave[:, begin : begin + BLOCK])
        if kind == "flt":
            block = np.ascontiguousarray(block.T.reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(block, format=kind, layout=stream.layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, begin, Fraction(1, rate)
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _timestamp(packet: av.Packet) -> float:
    """Seconds; a packet without a time stamp comes before all others."""
    stamp = packet.pts if packet.dts is None else packet.dts
    return -math.inf if stamp is None or packet.time_base is None else float(stamp * packet.time_base)


@contextmanager
def _media_errors(what: str) -> Iterator[None]:
    """Turn FFmpeg's errors into a ValueError that names the file."""
    try:
        yield
    except MediaError as error:
        raise ValueError(f"video: {error}") from error
    except av.error.FFmpegError as error:
        if error.errno in FULL:
            raise OSError(error.errno, f"{what}: {error.strerror}") from error
        raise ValueError(f"{what}: {error.strerror}") from error
