"""Small videos, made with PyAV, and what is in a file."""

import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile

RATE = 25  # pictures a second


def write_video(path: Path, seconds: float, codec: str = "mpeg4", sound: np.ndarray | None = None) -> None:
    """A bright square that wanders over a dark ground; `sound` (n,) at 8 kHz beside it."""
    size = 48
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        if codec == "mpeg4":
            stream.codec_context.max_b_frames = 2
        track = None if sound is None else container.add_stream("aac", rate=8000, layout="mono")
        for i in range(round(seconds * RATE)):
            picture = np.full((size, size, 3), 20, np.uint8)
            left = (3 * i) % (size - 12)
            picture[8:20, left : left + 12] = (240, 60 + i, 60)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if track is not None:
            frame = av.AudioFrame.from_ndarray(sound.astype(np.float32)[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 8000, 0, Fraction(1, 8000)
            container.mux(track.encode(frame))
            container.mux(track.encode(None))


def turn(path: Path) -> None:
    """Says of an mp4 that its pictures lie on their side, as telephones do: the matrix of the first track's header."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # version 0: 4 + 20 of times and ids, then reserved, layer, volume
    one = 1 << 16
    data[place : place + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@dataclass(frozen=True)
class Contents:
    """What a player gets from a file."""

    packets: list[bytes]  # of the pictures
    times: np.ndarray  # of the pictures, in seconds
    rotation: int
    pictures: list[bytes]
    begins: float  # time stamp of the first sound
    sound: np.ndarray  # (c, n)
    rate: int


def contents(path: Path) -> Contents:
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(container.streams.video[0]) if packet.size]
    with av.open(str(path)) as container:
        frames = list(container.decode(container.streams.video[0]))
    sounds = []
    with av.open(str(path)) as container:
        if container.streams.audio:
            sounds = list(container.decode(container.streams.audio[0]))
    return Contents(
        packets,
        np.array([frame.time for frame in frames]),
        frames[0].rotation,
        [frame.to_ndarray(format="rgb24").tobytes() for frame in frames],
        sounds[0].time if sounds else 0.0,
        np.concatenate([frame.to_ndarray() for frame in sounds], axis=1) if sounds else np.zeros((1, 0)),
        sounds[0].sample_rate if sounds else 0,
    )


def write_media(folder: Path) -> Path:
    """Noise and videos shorter and longer than the small model's clip of 2.048 s."""
    rng = np.random.default_rng(0)
    for name, seconds in (("short.wav", 1.0), ("clip.wav", 2.048), ("long.wav", 7.0)):
        soundfile.write(folder / name, 0.2 * rng.standard_normal(round(8000 * seconds)), 8000)
    soundfile.write(folder / "other_rate.wav", 0.2 * rng.standard_normal((22050, 2)), 22050)
    write_video(folder / "short.mp4", 1.2, sound=0.1 * rng.standard_normal(9600))
    write_video(folder / "long.mp4", 5.0, sound=0.1 * rng.standard_normal(40_000))
    write_video(folder / "still.mp4", 0.04)
    return folder
