"""configs/tiny.json with smaller numbers: a model that takes milliseconds a step, for tests and what they start."""

import json
from pathlib import Path
from typing import Any

from audiox_turbo.models import strict
from audiox_turbo.trainer.config import RunConfig, apply_override

ROOT = Path(__file__).resolve().parents[1]

# Clips of the scenes that `scenes` of conftest.py makes: with a global batch of 8 an epoch has 9 steps, and two samples
# are left over.
CLIPS = 74

SMALL = (
    'model.codec={"kind": "logmel", "sample_rate": 8000, "audio_channels": 1, "hop": 2048, "frames": 8, '
    '"channels": 16}',
    'model.text={"kind": "words", "dim": 32, "max_tokens": 24, "round_to": 8}',
    'model.video={"kind": "frames", "dim": 16, "image_rate": 1.953125, "motion_rate": 3.90625, "size": 16, "steps": 8, '
    '"pool": 2}',
    'model.video_temporal={"width": 32, "depth": 1, "heads": 2}',
    'model.audio_temporal={"width": 32, "depth": 1, "heads": 2}',
    'model.fusion={"queries": 2, "width": 32, "depth": 1, "heads": 2}',
    'model.backbone={"width": 32, "depth": 2, "heads": 2, "mlp_hidden": 64}',
    "training.steps=12",
    "training.global_batch=8",
    "training.micro_batch=4",
    "training.precision=fp32",
    "training.time=uniform",
    "training.compile=false",
    "training.threads=1",
    "optimizer.lr=1e-3",
    "schedule.warmup=0.9",
    "schedule.cooldown=0.25",
    "ema.decay=0.9",
    "checkpoint.every=4",
    "logging.every=1",
    "logging.samples_every=0",
    'sampling={"steps": 50}',
    "data.canonical_nodes=8",
)


def small_json(scenes: Path | None = None, *overrides: str) -> dict[str, Any]:
    """The run configuration as JSON; `scenes` is the folder that holds the streams `audio` and `music`."""
    data = json.loads((ROOT / "configs" / "tiny.json").read_text())
    paths = [f"data.streams.{i}.path={scenes}/{name}" for i, name in enumerate(("audio", "music")) if scenes]
    for override in (*SMALL, *paths, *overrides):
        apply_override(data, override)
    return data


def small_config(scenes: Path | None = None, *overrides: str) -> RunConfig:
    config: RunConfig = strict.parse(RunConfig, small_json(scenes, *overrides))
    return config
