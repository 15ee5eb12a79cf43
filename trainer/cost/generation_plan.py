"""Time and disk of making many clips, by the operations of the network's passes."""

from typing import Any

from ...models.sampler import nfe
from ..core.config import BaseConfig, PretrainConfig
from ..core.distill_config import DistillConfig
from .planned_time import Cluster
from .workload import Workload

SAMPLE_BYTES = 2  # of a .wav: 16 bits


def generation_figures(
    config: BaseConfig, work: Workload, cluster: Cluster, clips: int, other_seconds: float = 0.0
) -> dict[str, Any]:
    """Of `clips` sounds as long as the codec's clip, by the configuration's sampling, with the network in bf16 and each
    GPU on its own. `other_seconds`: what encoders, codec and files take per clip, measured, because the arithmetic
    knows the network only.

    Raises ValueError where a number is out of range.
    """
    if not 0 < clips < 1 << 40 or not 0 <= other_seconds < 1e6:
        raise ValueError(f"--generate {clips} and --other-seconds {other_seconds:g}: give 1 or more, and 0 or more")
    assert isinstance(config, PretrainConfig | DistillConfig)
    codec, passes = config.model.codec, nfe(config.sampling)
    flops = passes * work.forward["total"]
    network = flops / (cluster.mfu * cluster.gpu.flops)
    seconds = clips * (network + other_seconds) / cluster.gpus
    return {
        "gpu": cluster.gpu.title,
        "gpus": cluster.gpus,
        "mfu": cluster.mfu,
        "clips": clips,
        "clip_seconds": codec.seconds,
        "steps": config.sampling.steps,
        "passes": passes,
        "flops_per_clip": flops,
        "network_seconds": network,
        "other_seconds": other_seconds,
        "rtf": (network + other_seconds) / codec.seconds,
        "hours": seconds / 3600,
        "gpu_hours": seconds / 3600 * cluster.gpus,
        "clips_per_gpu": -(-clips // cluster.gpus),
        "weights_bytes": 2 * work.parameters["total"],
        "disk_bytes": round(clips * codec.seconds * codec.sample_rate) * codec.audio_channels * SAMPLE_BYTES,
    }


def format_generation(found: dict[str, Any]) -> str:
    other = (
        f"and {found['other_seconds']:.3f} s of encoders, codec and files"
        if found["other_seconds"]
        else "without encoders, codec and files: measure these, and add them by --other-seconds"
    )
    clips, each = found["clips"], found["clips_per_gpu"]
    lines = (
        f"{clips:,} clips of {found['clip_seconds']:g} s on {found['gpus']} {found['gpu']}, the network at "
        f"{found['mfu']:.0%} of its peak in bf16; nothing was measured",
        f"per clip        {found['passes']} passes in {found['steps']} steps, {found['flops_per_clip'] / 1e12:.1f} "
        f"TFLOP: {found['network_seconds']:.3f} s of the network (RTF {found['rtf']:.4f}), {other}",
        f"time            {found['hours']:.2f} hours, {found['gpu_hours']:.1f} GPU-hours; {each:,} clips per GPU",
        f"disk            {found['disk_bytes'] / 1e9:.1f} GB of .wav; weights of {found['weights_bytes'] / 1e9:.1f} GB "
        f"in bf16 on each GPU",
    )
    return "\n".join(lines)
