"""Joining the process group of all ranks, under DeepSpeed.

A rank is what a launcher (torchrun, deepspeed, Slurm) starts once per GPU.
"""

import gc
import os
from dataclasses import dataclass, field
from datetime import timedelta

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from torch.distributed import distributed_c10d as c10d

from ..core.cli import ExitCode
from ..core.config import TimeoutsConfig
from ..core.hardware import allow_open_files, free_port, keep_freed_memory
from .step_times import StepTimes


class MissingRanksError(OSError):
    """A rank did not start, or died before all had joined."""

    exit_code = ExitCode.HUNG  # a retry may succeed


@dataclass(frozen=True)
class World:
    """The rank of this process, and its device."""

    rank: int
    ranks: int
    local_rank: int
    device: torch.device
    times: StepTimes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", StepTimes(self.device))


def init_process_group(threads: int = 0, timeouts: TimeoutsConfig | None = None) -> World:
    """Joins the process group that torchrun, deepspeed or Slurm describe. Without a launcher there is one rank.

    `threads` per rank on a CPU; with 0 the ranks share those that torch would use. Raises MissingRanksError where the
    group is not complete within `timeouts.start` seconds, OSError where its port is taken.
    """
    timeouts = timeouts or TimeoutsConfig()
    allow_open_files()
    if threads:
        torch.set_num_threads(threads)
    local_size = os.environ.get("LOCAL_SIZE", "1")  # the name of LOCAL_WORLD_SIZE in DeepSpeed's launcher
    defaults = {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": local_size,
        "MASTER_ADDR": "127.0.0.1",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(free_port())
    accelerator = get_accelerator()
    local = int(os.environ["LOCAL_RANK"])
    if accelerator.device_name() != "cpu":
        accelerator.set_device(local)
    else:
        keep_freed_memory()
        if not threads and "OMP_NUM_THREADS" not in os.environ:  # otherwise every rank uses every core
            torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["LOCAL_WORLD_SIZE"])))
    # On a CPU DeepSpeed would compile an inference operation for 45 s, which training never calls.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = accelerator.communication_backend_name()
    try:
        if (restart := os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) != "0":
            _join_restarted(backend, restart, timedelta(seconds=timeouts.start))
        deepspeed.init_distributed(dist_backend=backend, verbose=False, timeout=timedelta(seconds=timeouts.start))
    except RuntimeError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = str(error).strip().split("\n")[0]
        taken = "EADDRINUSE" in reason or "address already in use" in reason
        remedy = "another program has the port: set another MASTER_PORT" if taken else "is every rank there?"
        kind = OSError if taken else MissingRanksError
        raise kind(
            f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} found no process group at {where}: {remedy} "
            f"({reason})"
        ) from error
    _use_current_collectives()
    c10d._set_pg_timeout(timedelta(seconds=timeouts.collective))
    device = torch.device(accelerator.device_name(local) if accelerator.device_name() != "cpu" else "cpu")
    world = World(torch.distributed.get_rank(), torch.distributed.get_world_size(), local, device)
    world.times.time_collectives(deepspeed.comm.comm.cdb)
    _freeze_imports()
    return world


def _freeze_imports() -> None:
    """Leave what was imported to itself: DeepSpeed collects garbage for each engine, and would look through all that,
    which takes up to a second."""
    import torch._dynamo  # noqa: F401 (torch's optimizers import it, and it is half of all)

    gc.freeze()


def _join_restarted(backend: str, restart: str, timeout: timedelta) -> None:
    """torchrun's store outlives its ranks. Those that it starts again must not read the addresses of the former."""
    store, rank, ranks = next(torch.distributed.rendezvous("env://", timeout=timeout))
    store = torch.distributed.PrefixStore(f"restart_{restart}", store)
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=timeout)


def _use_current_collectives() -> None:
    """DeepSpeed would call two collectives by names that torch 2.13 deprecates. Older releases lack the new ones."""
    for name in ("all_gather", "reduce_scatter"):
        if function := getattr(torch.distributed, f"{name}_single", None):
            setattr(deepspeed.comm.comm.cdb, f"{name}_function", function)


def align_timeouts() -> None:
    """Gives every process group the timeout of the default one. Those that DeepSpeed makes have torch's own, which for
    NCCL is ten minutes."""
    default = c10d._get_default_group()
    timeout = default._get_backend(default._device_types[0]).options._timeout
    for group in c10d._world.pg_map:
        c10d._set_pg_timeout(timeout, group)
