"""The speed at which media become clips, against FFmpeg's own program with the same filters on the same film."""

import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
from av.filter import Graph

from ...models.config import CodecConfig, ModelConfig, VideoConfig
from ..media.clips import read_clips
from .summary import Column, format_table, spread

# Every pixel changes from frame to frame: as much work as a film of this size and bit rate can be.
BUSY_PICTURES = (("testsrc2", "size=1280x720:rate=30"), ("noise", "alls=14:allf=t"))

COLUMNS = (
    Column("variant", "variant"),
    Column("x real time", "x_real_time", ".1f"),
    Column("low", "low", ".1f"),
    Column("high", "high", ".1f"),
    Column("per CPU", "cpu_x_real_time", ".1f"),
    Column("x ffmpeg by clock, by CPU time", "ratios"),
)


def measure(model: ModelConfig, rounds: int, seconds: float, film: Path | None = None) -> dict[str, Any]:
    """Speed in multiples of real time of decoding a film (default: a busy one of 1280 x 720 at 30 frames per second,
    H.264 and AAC, made for this) by FFmpeg and by `read_clips`, on one thread, on as many as there are cores, and in as
    many processes of one thread each. Variants take turns, and ratios are of neighbours. CPU time is what a busy
    machine does not change.

    Raises:
        ValueError: the ffmpeg program is missing, or fails.
    """
    if model.video is None:
        raise ValueError("model.video: null; this measures how films are decoded, so give a configuration with video")
    if shutil.which("ffmpeg") is None:
        raise ValueError("the ffmpeg program, which decoding is compared with, is not installed")
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="bench-decode-") as folder:
        film = film or busy_film(Path(folder, "busy.mp4"), seconds)
        length, size = _length_and_size(film)
        with ProcessPoolExecutor(cores, get_context("spawn")) as pool:
            task = (str(film), model.codec, model.video)

            def processes() -> None:
                list(pool.map(_read_all, *zip(*[(*task, 1)] * cores, strict=True)))

            variants: dict[str, tuple[Callable[[], object], int]] = {}
            for threads in sorted({1, cores}):
                command = _command(film, model, size, threads)
                variants[f"ffmpeg, {threads} threads"] = (lambda command=command: _run(command), 1)  # type: ignore[misc]
                variants[f"ours, {threads} threads"] = (lambda threads=threads: _read_all(*task, threads), 1)  # type: ignore[misc]
            variants[f"ours, {cores} processes"] = (processes, cores)
            measured = _take_turns(variants, rounds)
    return {"film_seconds": length, "size": size, "rows": _rows(measured, variants, length)}


def summary_lines(result: dict[str, Any]) -> list[str]:
    def ratio(row: dict[str, Any], kind: str) -> str:
        low, high = row[f"{kind}_range"]
        return f"{row[f'{kind}_ratio']:.2f} ({low:.2f} to {high:.2f})"

    kinds = ("wall", "cpu")
    rows = [r | {"ratios": ", ".join(ratio(r, k) for k in kinds if f"{k}_ratio" in r)} for r in result["rows"]]
    return format_table(rows, COLUMNS)


def _take_turns(
    variants: dict[str, tuple[Callable[[], object], int]], rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Seconds of wall clock and of CPUs, of each variant in each round, after a first round that does not count."""
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, (call, _) in variants.items():
            wall, cpu = time.perf_counter(), _cpu_seconds()
            call()
            if number:
                measured[name].append((time.perf_counter() - wall, _cpu_seconds() - cpu))
    return measured


def _rows(
    measured: dict[str, list[tuple[float, float]]], variants: dict[str, tuple[Callable[[], object], int]], length: float
) -> list[dict[str, Any]]:
    rows = []
    for name, times in measured.items():
        films = variants[name][1]
        row: dict[str, Any] = {"variant": name}
        row |= spread((films * length / wall for wall, _ in times), "x_real_time")
        if (other := measured.get(name.replace("ours", "ffmpeg"))) and name.startswith("ours"):
            for i, kind in enumerate(("wall", "cpu")):
                ratios = spread(theirs[i] / own[i] for theirs, own in zip(other, times, strict=True))
                row |= {f"{kind}_ratio": ratios["median"], f"{kind}_range": (ratios["low"], ratios["high"])}
        if films == 1:
            row["cpu_x_real_time"] = statistics.median(length / cpu for _, cpu in times)
        rows.append(row)
    return rows


def _cpu_seconds() -> float:
    """CPU seconds of this process, its threads, and the processes that it has waited for."""
    own, ended = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime


def _read_all(film: str, codec: CodecConfig, video: VideoConfig, threads: int) -> int:
    return sum(1 for _ in read_clips(film, film, codec, video, threads=threads))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"ffmpeg failed: {done.stderr.strip()[-300:]}")


def busy_film(path: Path, seconds: float) -> Path:
    """A film of busy pictures at 5 Mbit/s in H.264, and noise in AAC."""
    pictures = (*BUSY_PICTURES, ("trim", f"duration={seconds}"), ("format", "yuv420p"))
    noise = (
        ("anoisesrc", f"sample_rate=48000:amplitude=0.3:duration={seconds}"),
        ("aformat", "sample_fmts=fltp:channel_layouts=stereo"),
    )
    with av.open(str(path), "w") as container:
        film = container.add_stream("libx264", rate=30, options={"preset": "veryfast"})
        film.width, film.height, film.pix_fmt, film.bit_rate = 1280, 720, "yuv420p", 5_000_000
        sound = container.add_stream("aac", rate=48000, layout="stereo")
        sound.bit_rate = 160_000
        for stream, filters in ((film, (*pictures, ("buffersink", ""))), (sound, (*noise, ("abuffersink", "")))):
            for frame in _frames(filters):
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


def _frames(filters: Sequence[tuple[str, str]]) -> Iterator[Any]:
    """What FFmpeg's filters, by name and arguments, give one after the other."""
    graph = Graph()
    graph.link_nodes(*(graph.add(name, arguments or None) for name, arguments in filters)).configure()
    with suppress(av.error.EOFError):
        while True:
            yield graph.pull()


def _length_and_size(film: Path) -> tuple[float, tuple[int, int]]:
    with av.open(str(film)) as container:
        stream = container.streams.video[0]
        return (container.duration or 0) / av.time_base, (stream.width, stream.height)


def _command(film: Path, model: ModelConfig, size: tuple[int, int], threads: int) -> list[str]:
    """The same steps: frames at both rates, scaled by area, cut square, RGB; sound resampled by soxr."""
    video, codec = model.video, model.codec
    assert video is not None  # see `measure`
    scale = video.size / min(size)
    width, height = (max(video.size, round(side * scale)) for side in size)
    layout = "mono" if codec.audio_channels == 1 else "stereo"
    graph = (
        f"[0:v]fps={video.motion_rate},scale={width}:{height}:flags=area,format=yuv444p,"
        f"crop={video.size}:{video.size},format=rgb24,split[motion][some];[some]fps={video.image_rate}[images];"
        f"[0:a]aresample={codec.sample_rate}:resampler=soxr,aformat=sample_fmts=flt:channel_layouts={layout}[sound]"
    )
    limits = ["-threads", str(threads), "-filter_threads", str(threads), "-filter_complex_threads", str(threads)]
    outputs = [
        part
        for name, kind in (("motion", "rawvideo"), ("images", "rawvideo"), ("sound", "f32le"))
        for part in ("-map", f"[{name}]", "-f", kind, "/dev/null")
    ]
    return ["ffmpeg", "-nostdin", "-y", "-v", "error", *limits, "-i", str(film), "-filter_complex", graph, *outputs]
