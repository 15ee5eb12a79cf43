"""configs/tiny.json with smaller numbers: a model that takes milliseconds a step, for tests and what they start."""

import json
from pathlib import Path
from typing import Any

from audiox_trainer.models import strict
from audiox_trainer.trainer.core.config import PretrainConfig
from audiox_trainer.trainer.core.config_reader import apply_override, read_config
from audiox_trainer.trainer.core.distill_config import DistillConfig

ROOT = Path(__file__).resolve().parents[2]

# Clips of the scenes that `scenes` of conftest.py makes: with a global batch of 8 an epoch has 9 steps, and two samples
# are left over.
CLIPS = 74

SMALL = (
    'model.codec={"kind": "logmel", "sample_rate": 8000, "audio_channels": 1, "hop": 2048, "frames": 8, '
    '"latent_channels": 16}',
    'model.text={"kind": "words", "dim": 32, "max_tokens": 24, "pad_to_multiple_of": 8}',
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
    "training.timestep_sampling=uniform",
    "training.compile=false",
    "training.cpu_threads=1",
    "optimizer.lr=1e-3",
    "schedule.warmup=0.9",
    "schedule.cooldown=0.25",
    "ema.decay=0.9",
    "checkpoint.every=4",
    "logging.every=1",
    "logging.preview_every=0",
    'sampling={"steps": 50}',
    "data.canonical_nodes=8",
)


def small_json(scenes: Path | None = None, *overrides: str) -> dict[str, Any]:
    """The run configuration as JSON; `scenes` is the folder that holds the streams `audio` and `music`."""
    data = read_config(ROOT / "configs" / "tiny.json")
    paths = [f"data.streams.{i}.path={scenes}/{name}" for i, name in enumerate(("audio", "music")) if scenes]
    for override in (*SMALL, *paths, *overrides):
        apply_override(data, override)
    return data


def small_config(scenes: Path | None = None, *overrides: str) -> PretrainConfig:
    config: PretrainConfig = strict.parse(PretrainConfig, small_json(scenes, *overrides))
    return config


def small_distill_config(scenes: Path | None = None, *overrides: str) -> DistillConfig:
    """A distillation of `small_config`'s model that covers both warm-ups and two rounds of 5:1:1 in 17 updates.

    Adam's first update is the sign of a gradient, which rounding decides where it is next to zero; eps keeps such a
    weight where it is.
    """
    base = small_json(scenes)
    role = {"precision": "fp32", "optimizer": {"lr": 1e-3, "eps": 1e-6}, "schedule": {"warmup": 0.5}}
    data = {
        "model": base["model"],
        "data": base["data"],
        "training": {"steps": 10, "global_batch": 8, "micro_batch": 4, "cpu_threads": 1},
        "sampling": {"sampler": "renoise", "steps": 4, "guidance": 1.0},
        **{name: role for name in ("student", "fake", "discriminator")},
        "teacher": {"precision": "fp32"},
        "updates": {"student": 5, "fake": 1, "discriminator": 1, "fake_warm_up": 2},
        "warm_start": {"updates": 1, "ode_steps": 3},
        "distillation": {"teacher_guidance": 3.0, "discriminator_blocks": 1, "adversarial_weight": 0.5},
        "ema": {"decay": 0.9},
        "logging": {"every": 1},
    }
    data = json.loads(json.dumps(data))  # roles of their own, for overrides
    for override in overrides:
        apply_override(data, override)
    config: DistillConfig = strict.parse(DistillConfig, data)
    return config
