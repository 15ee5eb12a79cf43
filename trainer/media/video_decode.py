"""Decode pictures of a video by time stamp, small and square."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, dropwhile
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from .source import MediaError, MediaSource, Reason, check_decoder, file_start, open_media, seek_before

VIDEO_SLACK = 0.5  # seconds that pictures may end before the sound or begin after it; the nearest one is repeated
MOST_PIXELS = 1 << 27  # of a picture, 11,585 by 11,585: a few kB can declare gigabytes
_BACK = (1.0, 10.0)  # seconds before a segment at which to look for a key frame

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class VideoSpan:
    """The begin and the end of a file's pictures: time stamps in seconds."""

    begin: float  # of the file
    start: float  # of the first picture
    end: float  # of the last picture
    count: int

    @property
    def seconds(self) -> float:
        """From the beginning of the file to the end of its pictures."""
        return self.end - self.begin


def video_span(location: Path | str | MediaSource) -> VideoSpan:
    """The span of a file's pictures, from its packets alone: nothing is decoded.

    Raises:
        MediaError: the file is missing, damaged or holds no pictures.
    """
    with open_media(location) as source, source.container() as container:
        stream = video_track(source.name, container)
        unit, frame = float(stream.time_base or 0), 1 / float(stream.average_rate or 25)
        packets = [(p.pts * unit, p.duration) for p in container.demux(stream) if p.size and p.pts is not None]
        begin = file_start(container)
    if not packets:
        raise MediaError(Reason.ZERO_LENGTH, f"{source.name}: a video track without a frame")
    # A container may declare a later start, which hides the pictures before it.
    start = min(time for time, _ in packets) if stream.start_time is None else stream.start_time * unit
    end = max(time + (duration * unit if duration else frame) for time, duration in packets)
    return VideoSpan(begin, start, end, len(packets))


class FrameReader:
    """Frames of a video by time stamp; a context manager. Times must not decrease from one request to the next.

    location: a path, an address or a source. size: height and width in pixels. start: seconds after the beginning of
    the file; no earlier frame will be requested. threads: of the decoder, 0 for one per core. slack: seconds that the
    pictures may begin after, or end before, the requested times. squeeze: make pictures square without their true
    proportions, where otherwise their long side is cropped. crops: squares from one end of the long side to the other,
    in an axis before the colours; 1 is the middle, without that axis. allow_private: as of `open_media`.
    """

    begin: float  # time stamp in seconds at which the file begins

    def __init__(
        self,
        location: Path | str | MediaSource,
        size: int,
        start: float = 0.0,
        threads: int = 1,
        slack: float = VIDEO_SLACK,
        squeeze: bool = False,
        allow_private: bool = False,
        crops: int = 1,
    ) -> None:
        self._location, self._size, self._start, self._threads, self._slack = location, size, start, threads, slack
        self._squeeze, self._allow_private, self._crops = squeeze, allow_private, crops

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._source = stack.enter_context(open_media(self._location, self._allow_private))
            container = stack.enter_context(self._source.container())
            self.begin = file_start(container)
            self._frames = self._from_start(container, stack)
            first = next(self._frames, None)
            if first is None:
                raise MediaError(Reason.ZERO_LENGTH, f"{self._source.name}: a video track without a frame")
            self._first, self._before, self._after = first, first, next(self._frames, None)
            # Where a container does not declare the number of frames, a single one may be the rest of a film.
            alone = _is_picture(container) or self._stream(container).frames == 1
            self._still = self._after is None and alone
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def nearest(self, times: list[float]) -> list[Picture]:
        """Ascending time stamps in seconds -> as many pictures (3, size, size) or (crops, 3, size, size), uint8."""
        return [np.ascontiguousarray(picture) for picture in self.views(times)]

    def views(self, times: Iterable[float]) -> Iterator[Picture]:
        """The pictures of `nearest` one by one and without a copy, so their memory is not in the order of their
        axes."""
        return map(self._at, times)

    def check_begins(self, time: float) -> None:
        """Raises MediaError if the pictures begin more than `slack` seconds after a requested time."""
        if not self._still and self._first.time > time + self._slack:
            begin = self._first.time - self.begin
            message = f"the pictures begin at {begin:.2f} s, the segment at {time - self.begin:.2f} s"
            raise MediaError(Reason.TRUNCATED, f"{self._source.name}: {message}")

    def check_reaches(self, time: float) -> None:
        """Raises MediaError if the pictures ended more than `slack` seconds before a time already requested."""
        if not self._still and self._after is None and self._before.end < time - self._slack:
            end = self._before.end - self.begin
            message = f"the pictures end at {end:.2f} s, the sound at {time - self.begin:.2f} s"
            raise MediaError(Reason.TRUNCATED, f"{self._source.name}: {message}")

    def _at(self, time: float) -> Picture:
        while self._after is not None and self._after.time <= time:
            self._before, self._after = self._after, next(self._frames, None)
        after = self._after is not None and self._after.time - time < time - self._before.time
        chosen = self._after if after and self._after is not None else self._before
        if chosen.frame.is_corrupt:
            place = f"{chosen.time - self.begin:.2f} s"
            raise MediaError(Reason.UNDECODABLE, f"{self._source.name}: the picture at {place} is damaged")
        return chosen.picture

    def _from_start(self, container: av.container.InputContainer, stack: ExitStack) -> Iterator["_Frame"]:
        """Frames from a key frame at or before the start; from the first frame where a seek finds none."""
        stamp = self.begin + self._start
        stream = self._stream(container)
        for back in (seconds for seconds in _BACK if seconds < self._start):
            if not seek_before(container, stream, stamp - back):
                break
            frames = self._decoded(container, stream)
            first = next((f for f in frames if f.frame.key_frame), None)
            if first is not None and first.time <= stamp:
                return chain([first], frames)
        else:
            if self._start <= _BACK[0]:
                return self._decoded(container, stream)
        container = stack.enter_context(self._source.container())
        return self._decoded(container, self._stream(container))

    def _stream(self, container: av.container.InputContainer) -> av.VideoStream:
        stream = video_track(self._source.name, container)
        check_decoder(self._source.name, stream)
        if not stream.codec_context.is_open:
            stream.codec_context.thread_count = self._threads
            stream.codec_context.thread_type = "AUTO"
            stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
        return stream

    def _decoded(self, container: av.container.InputContainer, stream: av.VideoStream) -> Iterator["_Frame"]:
        square = _SquareScaler(self._size, stream, self._squeeze, self._crops)
        # A recording may begin in the middle of a group of pictures; the first ones then lack their key frame.
        frames = dropwhile(lambda frame: frame.is_corrupt, container.decode(stream))
        return (_Frame(frame.time, frame, square) for frame in frames if frame.time is not None)


@dataclass(frozen=True)
class _Frame:
    time: float  # seconds
    frame: av.VideoFrame
    square: "_SquareScaler"

    @property
    def end(self) -> float:
        """Seconds; the frame's own time where the container does not say how long it is shown."""
        return self.time + float((self.frame.duration or 0) * (self.frame.time_base or 0))

    @cached_property
    def picture(self) -> Picture:
        return self.square.scale(self.frame)


class _SquareScaler:
    """Turns frames into views (3, size, size) uint8: upright, in true proportions, with the short side scaled to `size`
    and the long side cropped around its middle, or in several places; or with `squeeze` both sides scaled to `size`."""

    def __init__(self, size: int, stream: av.VideoStream, squeeze: bool, crops: int) -> None:
        self._size, self._aspect, self._squeeze = size, float(stream.sample_aspect_ratio or 1), squeeze
        self._shares = [0.5] if crops == 1 else [i / (crops - 1) for i in range(crops)]  # of what is cropped, before it
        self._scaler, self._painter = VideoReformatter(), VideoReformatter()

    def scale(self, frame: av.VideoFrame) -> Picture:
        shown = (frame.width * self._aspect, frame.height)
        scale = self._size / min(shown)
        width, height = (self._size if self._squeeze else max(self._size, round(side * scale)) for side in shown)
        # Area averaging, because bicubic aliases when a large picture is made small. Colours are converted after
        # scaling: it is faster, and exact because yuv444p has a colour at every pixel (docs/performance.md).
        interpolation = "AREA" if scale < 1 else "BICUBIC"
        if not (frame.format.is_rgb or frame.format.has_palette):
            frame = self._scaler.reformat(frame, width, height, "yuv444p", interpolation=interpolation, threads=1)
        rgb = self._painter.reformat(frame, width, height, "rgb24", interpolation=interpolation, threads=1)
        pixels = np.asarray(rgb.to_ndarray(), dtype=np.uint8)
        squares = []
        for share in self._shares:
            top, left = int((height - self._size) * share), int((width - self._size) * share)
            square = pixels[top : top + self._size, left : left + self._size]
            turned = np.rot90(square, round(frame.rotation / 90))  # phones store pictures on their side
            squares.append(turned.transpose(2, 0, 1))
        return squares[0] if len(squares) == 1 else np.stack(squares)


def video_track(name: str, container: av.container.InputContainer) -> av.VideoStream:
    """The first video track that is not cover art. Raises MediaError where there is none."""
    covers = av.stream.Disposition.attached_pic
    for stream in container.streams.video:
        if not stream.disposition & covers:
            return stream
    raise MediaError(Reason.NO_VIDEO, f"{name}: no pictures{' but a cover' if container.streams.video else ''}")


def _is_picture(container: av.container.InputContainer) -> bool:
    name = container.format.name
    return name.endswith("_pipe") or name in ("image2", "gif", "apng", "webp")
