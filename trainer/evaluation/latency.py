"""Latency of one clip from text to wave (section VI-B, Table II): batch 1, five warm-ups, twenty runs."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ...models.audiox import SamplingConfig
from ...models.sampler import nfe
from ..generation.clip_request import ClipRequest
from ..generation.generator import Generator

WARM_UPS, RUNS = 5, 20
PARTS = ("text", "conditioner", "transformer", "codec")
TEXT = "a bell, then two kicks"
TimedModel = tuple[str, Generator, SamplingConfig]  # the name of the weights, a generator with them, its sampling


def efficiency_rows(models: Sequence[TimedModel]) -> list[dict[str, Any]]:
    """Latency of each model in seconds, mean and standard deviation, and over the clip's length (RTF).

    Of it the PARTS: the text encoder; the conditioner, with the encoders of the null condition where there is guidance;
    the transformer and the sampler; the codec. The models take turns, so that other load on the machine affects all of
    them equally, and the features of the noise levels are cached for each. A row of other weights than the first has
    `against`: its speed relative to each row of the first weights, paired by turn.
    """
    for _, generator, sampling in models:
        generator.timestep_features(sampling)
    seconds = np.empty((len(models), WARM_UPS + RUNS, len(PARTS)))
    for run in tqdm(range(WARM_UPS + RUNS), desc="latency", disable=not models):
        for i, (_, generator, sampling) in enumerate(models):
            seconds[i, run] = _time_clip(generator, run, sampling)
    seconds = seconds[:, WARM_UPS:]
    rows = [_row(model, times) for model, times in zip(models, seconds, strict=True)]
    for row, times in zip(rows, seconds, strict=True):
        if row["model"] != rows[0]["model"]:
            first = [(r, s) for r, s in zip(rows, seconds, strict=True) if r["model"] == rows[0]["model"]]
            row["against"] = [_speedup(other, others, times) for other, others in first]
    return rows


def _time_clip(generator: Generator, seed: int, sampling: SamplingConfig) -> list[float]:
    """Seconds of each of the PARTS."""
    request, times = ClipRequest([TEXT]), [time.perf_counter()]

    def done() -> None:
        if generator.device.type == "cuda":
            torch.cuda.synchronize(generator.device)
        times.append(time.perf_counter())

    conditions = generator.conditions(request)
    done()
    velocity = generator.velocity_under(conditions, request, sampling)
    done()
    latents = generator.integrate(velocity, request, seed, sampling)
    done()
    generator.waves(latents).cpu()
    done()
    return np.diff(times).tolist()


def _row(model: TimedModel, seconds: NDArray[np.float64]) -> dict[str, Any]:
    name, generator, sampling = model
    total = seconds.sum(axis=1)
    return {
        "model": name,
        "device": generator.device.type,
        "threads": torch.get_num_threads(),
        "steps": sampling.steps,
        "nfe": nfe(sampling),
        "latency_s_mean": float(total.mean()),
        "latency_s_std": float(total.std(ddof=1)),
        **{f"{part}_s_mean": float(each.mean()) for part, each in zip(PARTS, seconds.T, strict=True)},
        "rtf": float(total.mean() / generator.model.config.codec.seconds),
    }


def _speedup(other: dict[str, Any], others: NDArray[np.float64], times: NDArray[np.float64]) -> dict[str, Any]:
    """The speed-up: the median of the turns, and the range without their outer tenths."""
    row: dict[str, Any] = {name: other[name] for name in ("model", "steps", "nfe")}
    transformer = PARTS.index("transformer")
    for name, part in (("transformer", slice(transformer, transformer + 1)), ("end_to_end", slice(None))):
        ratios = others[:, part].sum(axis=1) / times[:, part].sum(axis=1)
        low, middle, high = np.quantile(ratios, (0.1, 0.5, 0.9))
        row |= {name: float(middle), f"{name}_low": float(low), f"{name}_high": float(high)}
    return row
