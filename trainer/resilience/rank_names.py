"""What messages call a rank: its number, its node, its GPU."""

import os
import socket

import torch
import torch.distributed as dist


def node_name() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def rank_names(device: torch.device) -> list[str]:
    """Every rank's name, as `rank 3 (n17, GPU 3)`. All ranks call this, each with its own device."""
    where = node_name() if device.index is None else f"{node_name()}, GPU {device.index}"
    gathered = [where] * dist.get_world_size()
    dist.all_gather_object(gathered, where)
    return [f"rank {rank} ({where})" for rank, where in enumerate(gathered)]
