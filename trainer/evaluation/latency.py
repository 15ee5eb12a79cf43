"""How long one clip takes from text to wave (section VI-B, Table II): batch 1, five warm-ups, twenty runs."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ...models.audiox import SamplingConfig
from ...models.sampler import nfe
from ..generation.generator import Generator
from ..generation.request import Request

WARM_UPS, RUNS = 5, 20
TEXT = "a bell, then two kicks"
Way = tuple[str, Generator, SamplingConfig]  # a model's name, its weights, how it is sampled


def efficiency_rows(ways: Sequence[Way]) -> list[dict[str, Any]]:
    """Latency of each way in seconds end to end, mean and standard deviation, and over the clip's length (RTF); of it
    `transformer_s_mean` are the steps of the transformer and the sampler, `encoding_s_mean` the text encoder and the
    conditioner before them; the rest is the codec.

    The ways take turns, so that what else a machine does meets all of them alike, and what the noise levels settle is
    at hand for each. A way of another model than the first has `against`: how many times as fast it is as each way of
    the first, paired by turn.
    """
    for _, generator, sampling in ways:
        generator.levels(sampling)
    seconds = np.empty((len(ways), WARM_UPS + RUNS, 3))
    for run in tqdm(range(WARM_UPS + RUNS), desc="latency", disable=not ways):
        for way, (_, generator, sampling) in enumerate(ways):
            seconds[way, run] = _one(generator, run, sampling)
    seconds = seconds[:, WARM_UPS:]
    rows = [_row(way, measured) for way, measured in zip(ways, seconds, strict=True)]
    for row, measured in zip(rows, seconds, strict=True):
        if row["model"] != rows[0]["model"]:
            slower = [(r, s) for r, s in zip(rows, seconds, strict=True) if r["model"] == rows[0]["model"]]
            row["against"] = [_ratios(other, theirs, measured) for other, theirs in slower]
    return rows


def _one(generator: Generator, seed: int, sampling: SamplingConfig) -> tuple[float, float, float]:
    """Seconds of the encoders and the conditioner, of the transformer, and of all."""
    request, begin = Request([TEXT]), time.perf_counter()
    velocity = generator.velocity(request, sampling)
    if generator.device.type == "cuda":
        torch.cuda.synchronize(generator.device)
    encoded = time.perf_counter()
    latents = generator.sampled(velocity, request, seed, sampling)  # on the CPU, so the device has finished
    made = time.perf_counter()
    generator.waves(latents)
    return encoded - begin, made - encoded, time.perf_counter() - begin


def _row(way: Way, seconds: NDArray[np.float64]) -> dict[str, Any]:
    model, generator, sampling = way
    encoding, transformer, whole = seconds.T
    return {
        "model": model,
        "device": generator.device.type,
        "threads": torch.get_num_threads(),
        "steps": sampling.steps,
        "nfe": nfe(sampling),
        "latency_s_mean": float(whole.mean()),
        "latency_s_std": float(whole.std(ddof=1)),
        "encoding_s_mean": float(encoding.mean()),
        "transformer_s_mean": float(transformer.mean()),
        "rtf": float(whole.mean() / generator.model.config.codec.seconds),
    }


def _ratios(other: dict[str, Any], theirs: NDArray[np.float64], ours: NDArray[np.float64]) -> dict[str, Any]:
    """How many times as fast: the median of the turns, and all but their outer tenths."""
    found: dict[str, Any] = {name: other[name] for name in ("model", "steps", "nfe")}
    for name, part in (("transformer", 1), ("end_to_end", 2)):
        low, middle, high = np.quantile(theirs[:, part] / ours[:, part], (0.1, 0.5, 0.9))
        found |= {name: float(middle), f"{name}_low": float(low), f"{name}_high": float(high)}
    return found
