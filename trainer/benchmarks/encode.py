"""Clips per second that the frozen encoders turn into features, part by part, and the slowest part."""

import statistics
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ...models.config import AnyModelConfig, TextConfig
from ...models.encoders.base import AudioCodec, VideoEncoder
from ...models.encoders.build import build_codec, build_text_encoder, build_video_encoder
from ...models.encoders.random_weights import random_codec, random_text_encoder, random_video_encoder
from ...models.encoders.runtime import Runtime
from ..core.config import PretrainConfig
from ..core.hardware import peak_flops
from ..engine.timing import time_interleaved
from ..media.clips import frames_in, read_clips
from .summary import Column, format_table

COLUMNS = (
    Column("part", "part"),
    Column("ms per clip", "ms_per_clip", ".1f"),
    Column("clips/s", "clips_per_s", ".2f"),
    Column("low", "low", ".2f"),
    Column("high", "high", ".2f"),
    Column("TFLOP per clip", "tflop_per_clip", ".3f"),
    Column("of peak", "utilisation", ".3f"),
)


def measure(
    config: PretrainConfig, random_weights: bool, batch: int, rounds: int, media: Path | None
) -> dict[str, Any]:
    """Clips/s of each encoder on `batch` random clips, of everything that preparing data needs, of the text encoder
    (one text per clip, at full length) and, with `media`, of decoding that file in one process.

    With `random_weights` the networks have the configured sizes and the released depths, and nothing is read.

    Raises ValueError if the configured weights cannot be loaded, or if random ones cannot have the sizes.
    """
    runtime, model = Runtime.for_device(compile=True), config.model
    calls = _calls(model, runtime, random_weights, batch)
    flops = count_flops(model) if random_weights else {}
    if media is not None:
        calls["decoding, one process"] = _decoding(media, model, batch)
    if runtime.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():
        seconds = time_interleaved(calls, rounds, inner=1, warmup=2, device=runtime.device)
    peak = peak_flops(runtime.device, runtime.dtype)
    rows: list[dict[str, Any]] = []
    for part, values in seconds.items():
        median = statistics.median(values)
        row: dict[str, Any] = {"part": part, "ms_per_clip": 1000 * median / batch, "clips_per_s": batch / median}
        row |= {"low": batch / max(values), "high": batch / min(values)}
        if part in flops:
            row |= {"tflop_per_clip": flops[part] / 1e12, "utilisation": flops[part] * batch / median / peak}
        rows.append(row)
    parts = [row for row in rows if row["part"] not in ("codec, images and motion", "text")]
    facts: dict[str, Any] = {"device": str(runtime.device), "dtype": str(runtime.dtype), "batch": batch}
    if runtime.device.type == "cuda":
        facts["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return facts | {"rows": rows, "slowest": max(parts, key=lambda row: row["ms_per_clip"])["part"]}


def summary_lines(result: dict[str, Any]) -> list[str]:
    return [*format_table(result["rows"], COLUMNS), f"slowest: {result['slowest']}"]


def _calls(
    model: AnyModelConfig, runtime: Runtime, random_weights: bool, batch: int
) -> dict[str, Callable[[], object]]:
    codec, video = _encoders(model, runtime, random_weights)
    wave, images, motion = random_clips(model, batch)

    def sound() -> None:
        codec.encode(wave)

    text = _text(model.text, runtime, random_weights, batch)
    if model.video is None or video is None:
        return {"codec": sound, "text": text}

    def pictures() -> None:
        video(images, motion)

    def everything() -> None:
        sound()
        pictures()

    calls: dict[str, Callable[[], object]] = {"codec": sound}
    if model.video.kind != "frames":
        of_images, of_motion = video.images, video.motion  # type: ignore[attr-defined]
        calls |= {"images": lambda: of_images(images), "motion": lambda: of_motion(motion)}
    else:
        calls["images and motion"] = pictures
    return calls | {"codec, images and motion": everything, "text": text}


def random_clips(model: AnyModelConfig, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sound (B, c, samples), images (B, N, 3, size, size) and motion frames of the configured shapes."""
    generator, codec, video = torch.Generator().manual_seed(0), model.codec, model.video
    wave = torch.randn(batch, codec.audio_channels, codec.samples, generator=generator) * 0.1
    rates, size = ((video.image_rate, video.motion_rate), video.size) if video else ((0, 0), 0)
    shapes = [(batch, frames_in(codec.seconds, rate), 3, size, size) for rate in rates]
    images, motion = (torch.randint(0, 256, s, dtype=torch.uint8, generator=generator) for s in shapes)
    return wave, images, motion


def _encoders(model: AnyModelConfig, runtime: Runtime, random_weights: bool) -> tuple[AudioCodec, VideoEncoder | None]:
    codec = random_codec if random_weights else build_codec
    video = random_video_encoder if random_weights else build_video_encoder
    return codec(model.codec, runtime), video(model.video, runtime) if model.video else None


def _text(config: TextConfig, runtime: Runtime, random_weights: bool, batch: int) -> Callable[[], object]:
    encode_text = (random_text_encoder if random_weights else build_text_encoder)(config, runtime)
    texts = ["a bell, then two kicks and a long way to go " * config.max_tokens] * batch  # cut at the full length
    return lambda: encode_text(texts)


def count_flops(model: AnyModelConfig) -> dict[str, int]:
    """Operations of products and convolutions for one clip, by part, counted on networks without numbers."""
    runtime, counted = Runtime(torch.device("meta"), torch.float32), {}
    with torch.device("meta"):
        calls = _calls(model, runtime, random_weights=True, batch=1)
    # transformers asks a real mask for its values, but not a fake one.
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    for part, call in calls.items():
        with fake, FlopCounterMode(display=False) as counter, torch.no_grad():
            call()
        counted[part] = counter.get_total_flops()
    return counted


def _decoding(media: Path, model: AnyModelConfig, batch: int) -> Callable[[], object]:
    """A call that decodes and cuts `batch` clips; at its end the file starts again."""

    def clips() -> Iterator[object]:
        while True:
            yield from read_clips(media, media, model.codec, model.video)

    endless = clips()
    return lambda: list(islice(endless, batch))
