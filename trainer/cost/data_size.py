"""Clips, epochs and bytes of a run on so many hours of sound."""

from typing import Any

from ...models.config import AnyModelConfig, ReleasedModelConfig
from ..core.config import BaseConfig
from ..data.record import clip_bytes
from ..media.clips import frames_in
from .workload import Workload


def data_figures(config: BaseConfig, work: Workload, hours: float) -> dict[str, Any]:
    """Of `hours` that are cut into whole clips. The bytes of shards are those with a video in every clip, if the model
    takes any; those of checkpoints are what stays when a run ends, one more while it saves."""
    model, keep = config.model, config.checkpoint.keep_last
    clips = hours * 3600 / model.codec.seconds
    samples = work.total * work.training.global_batch
    checkpoint = sum(role.checkpoint_bytes() for role in work.roles)
    return {
        "hours": hours,
        "clips": round(clips),
        "samples": round(samples),
        "epochs": samples / clips,
        "shard_bytes": round(clips) * clip_bytes(model.codec, *_video(model)),
        "checkpoint_bytes": checkpoint,
        "checkpoints_kept": keep,
    }


def format_data(found: dict[str, Any]) -> list[str]:
    size = f"{found['checkpoint_bytes'] / 1e9:.1f} GB"
    kept = (
        f"{found['checkpoints_kept']} checkpoints of {size}" if found["checkpoints_kept"] else f"checkpoints of {size}"
    )
    return [
        f"data            {found['hours']:,g} hours are {found['clips']:,} clips; {found['samples']:,} samples are "
        f"{found['epochs']:,.1f} epochs",
        f"disk            {found['shard_bytes'] / 1e9:.1f} GB of shards, {kept}, and one more while it saves",
    ]


def _video(model: AnyModelConfig) -> tuple[int, int, int]:
    """Rows of images and of motion in a shard, and their width."""
    if model.video is None:
        return 0, 0, 0
    if isinstance(model, ReleasedModelConfig):
        return model.video_rows - model.video.steps, model.video.steps, model.video.dim
    return frames_in(model.codec.seconds, model.video.image_rate), model.video.steps, model.video.dim
