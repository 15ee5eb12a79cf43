"""Which of several processes of a launcher this one is, for work that needs no communication."""

import os
from dataclasses import dataclass
from typing import Self

import torch

from ..core.hardware import choose_device

NAMES = (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"))


@dataclass(frozen=True)
class LaunchRank:
    """A process, and how many there are."""

    rank: int = 0
    ranks: int = 1
    local: int = 0  # on its machine

    @classmethod
    def from_environment(cls) -> Self:
        """Reads the variables of torchrun, deepspeed and launch/slurm/rank.sh, or of srun.

        Raises ValueError where they do not fit together.
        """
        for names in NAMES:
            if names[0] in os.environ:
                return cls(*_numbers(names))
        return cls()

    def device(self, name: str | None = None) -> torch.device:
        """The named device, or without a name this process's own GPU if the machine has one. Raises ValueError for a
        missing device."""
        if name is None and torch.cuda.is_available():
            name = f"cuda:{self.local % torch.cuda.device_count()}"
        return choose_device(name)


def _numbers(names: tuple[str, str, str]) -> tuple[int, int, int]:
    values = {name: os.environ.get(name, "0" if name == names[2] else "") for name in names}
    shown = ", ".join(f"{name}={value!r}" for name, value in values.items())
    try:
        rank, ranks, local = (int(value) for value in values.values())
    except ValueError:
        raise ValueError(f"{shown}: {names[0]} and {names[1]} must be numbers; a launcher sets both") from None
    if not 0 <= rank < ranks:
        raise ValueError(f"{shown}: {names[0]} must be from 0 to {names[1]} - 1; a launcher sets both")
    return rank, ranks, local
