"""The makers of a preparation on Ray: one per core, or two per GPU, which the cores of all nodes feed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..workers.ray_pool import RayPool, resources
from .make_block import PER_DEVICE, BlockJob


def cluster_pool(devices: tuple[str, ...], job: BlockJob, function: Callable[[BlockJob], Any]) -> RayPool[Any]:
    """Makers of what `function` gives for the job. They use GPUs as `devices` says, if the cluster has any."""
    cores, gpus = resources("CPU"), resources("GPU")
    if not devices or not gpus:
        return RayPool(function(job), lambda: resources("CPU"), {"num_cpus": 1})
    makers = PER_DEVICE * gpus
    if cores < makers:
        raise ValueError(
            f"the cluster has {cores} cores for {gpus} GPUs; {PER_DEVICE} per GPU is the least: give its nodes more"
        )
    encoders = replace(job.encoders, device=devices[0])
    fed = replace(job, encoders=encoders, actors=True, decoders=cores // makers)

    def count() -> int:  # nodes come and go, and each maker must get its decoders
        return min(PER_DEVICE * resources("GPU"), resources("CPU") // fed.decoders)

    return RayPool(function(fed), count, {"num_cpus": 0, "num_gpus": 1 / PER_DEVICE})
