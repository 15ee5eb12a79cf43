"""How fast media become clips, beside FFmpeg's own program with the same filters on the same film."""

import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av

from ...models.config import CodecConfig, ModelConfig, VideoConfig
from ..core.hardware import describe
from ..media.clips import read_clips

# Every pixel changes from frame to frame, which is as much work as a film of this size can be at this bit rate.
_BUSY = "testsrc2=size=1280x720:rate=30,noise=alls=14:allf=t"


def decode(model: ModelConfig, rounds: int, seconds: float, film: Path | None = None) -> dict[str, Any]:
    """x real time of a film (default: a busy one of 1280 x 720, 30 frames a second, H.264 and AAC, made for it) through
    FFmpeg and through `read_clips`, on one thread and on as many as there are cores, and in as many processes of one
    thread each. Variants take turns; ratios are those of neighbours. CPU time counts what a busy machine does not.

    Raises:
        ValueError: the ffmpeg program is missing, or fails.
    """
    if shutil.which("ffmpeg") is None:
        raise ValueError("the ffmpeg program, which decoding is compared with, is not installed")
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="bench-decode-") as folder:
        film = film or busy_film(Path(folder, "busy.mp4"), seconds)
        length, size = _length(film)
        with ProcessPoolExecutor(cores, get_context("spawn")) as pool:
            task = (str(film), model.codec, model.video)

            def processes() -> None:
                list(pool.map(_ours, *zip(*[(*task, 1)] * cores, strict=True)))

            variants: dict[str, tuple[Callable[[], object], int]] = {}
            for threads in sorted({1, cores}):
                command = _command(film, model, size, threads)
                variants[f"ffmpeg, {threads} threads"] = (lambda command=command: _run(command), 1)  # type: ignore[misc]
                variants[f"ours, {threads} threads"] = (lambda threads=threads: _ours(*task, threads), 1)  # type: ignore[misc]
            variants[f"ours, {cores} processes"] = (processes, cores)
            measured = _turns(variants, rounds)
    return {"host": describe(), "film_seconds": length, "size": size, "rows": _rows(measured, variants, length)}


def table(result: dict[str, Any]) -> list[str]:
    """Lines to print."""
    lines = [f"{'variant':22} {'x real time':>12} {'low':>6} {'high':>6} {'a CPU':>6}  x ffmpeg by clock, by CPU time"]
    for row in result["rows"]:
        speeds = f"{row['x_real_time']:12.1f} {row['low']:6.1f} {row['high']:6.1f} {row.get('cpu_x_real_time', 0):6.1f}"
        ratios = [
            f"{row[f'{kind}_ratio']:.2f} ({row[f'{kind}_range'][0]:.2f} to {row[f'{kind}_range'][1]:.2f})"
            for kind in ("wall", "cpu")
            if f"{kind}_ratio" in row
        ]
        lines.append(f"{row['variant']:22} {speeds}  {', '.join(ratios)}")
    return lines


def _turns(variants: dict[str, tuple[Callable[[], object], int]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of wall clock and of CPUs, of each variant in each round, after one that does not count."""
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, (call, _) in variants.items():
            wall, cpu = time.perf_counter(), _cpu()
            call()
            if number:
                measured[name].append((time.perf_counter() - wall, _cpu() - cpu))
    return measured


def _rows(
    measured: dict[str, list[tuple[float, float]]], variants: dict[str, tuple[Callable[[], object], int]], length: float
) -> list[dict[str, Any]]:
    rows = []
    for name, times in measured.items():
        films = variants[name][1]
        speeds = sorted(films * length / wall for wall, _ in times)
        row = {"variant": name, "x_real_time": statistics.median(speeds), "low": speeds[0], "high": speeds[-1]}
        if (other := measured.get(name.replace("ours", "ffmpeg"))) and name.startswith("ours"):
            for i, kind in enumerate(("wall", "cpu")):
                ratios = sorted(theirs[i] / own[i] for theirs, own in zip(other, times, strict=True))
                row |= {f"{kind}_ratio": statistics.median(ratios), f"{kind}_range": (ratios[0], ratios[-1])}
        if films == 1:
            row["cpu_x_real_time"] = statistics.median(length / cpu for _, cpu in times)
        rows.append(row)
    return rows


def _cpu() -> float:
    """Seconds of this process, its threads, and the processes that it has waited for."""
    own, ended = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime


def _ours(film: str, codec: CodecConfig, video: VideoConfig, threads: int) -> int:
    return sum(1 for _ in read_clips(film, film, codec, video, threads=threads))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"ffmpeg failed: {done.stderr.strip()[-300:]}")


def busy_film(path: Path, seconds: float) -> Path:
    noise = f"anoisesrc=sample_rate=48000:amplitude=0.3:duration={seconds}"
    pictures = ["-c:v", "libx264", "-preset", "veryfast", "-b:v", "5M", "-pix_fmt", "yuv420p"]
    sound = ["-c:a", "aac", "-b:a", "160k", "-ac", "2"]
    inputs = ["-f", "lavfi", "-i", _BUSY, "-f", "lavfi", "-i", noise, "-t", str(seconds)]
    _run(["ffmpeg", "-nostdin", "-v", "error", *inputs, *pictures, *sound, str(path)])
    return path


def _length(film: Path) -> tuple[float, tuple[int, int]]:
    with av.open(str(film)) as container:
        stream = container.streams.video[0]
        return (container.duration or 0) / av.time_base, (stream.width, stream.height)


def _command(film: Path, model: ModelConfig, size: tuple[int, int], threads: int) -> list[str]:
    """The same steps: frames at both rates, scaled by area, cut square, RGB; sound resampled by soxr."""
    video, codec = model.video, model.codec
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
