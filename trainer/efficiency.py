"""How long one clip takes from text to wave (section VI-B, Table II): batch 1, five warm-ups, twenty runs."""

import time
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..models.audiox import SamplingConfig
from .generator import Generator, Request
from .making import nfe

WARM_UPS, RUNS = 5, 20
TEXT = "a bell, then two kicks"


def efficiency_row(generator: Generator, model: str, sampling: SamplingConfig) -> dict[str, Any]:
    """Latency in seconds end to end, mean and standard deviation, and over the clip's length (RTF); of it
    `transformer_s_mean` goes into the latents, text encoder included, and the rest into the codec."""
    request = Request([TEXT])
    latent_seconds, seconds = [], []
    for run in tqdm(range(WARM_UPS + RUNS), desc=f"{model}: latency"):
        begin = time.perf_counter()
        latents = generator.latents(request, run, sampling)  # on the CPU, so the device has finished
        middle = time.perf_counter()
        generator.waves(latents)
        latent_seconds.append(middle - begin)
        seconds.append(time.perf_counter() - begin)
    measured = np.array(seconds[WARM_UPS:])
    return {
        "model": model,
        "device": generator.device.type,
        "threads": torch.get_num_threads(),
        "steps": sampling.steps,
        "nfe": nfe(sampling),
        "latency_s_mean": float(measured.mean()),
        "latency_s_std": float(measured.std(ddof=1)),
        "transformer_s_mean": float(np.mean(latent_seconds[WARM_UPS:])),
        "rtf": float(measured.mean() / generator.model.config.codec.seconds),
    }
