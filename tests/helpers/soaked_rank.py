"""A rank that a soak can hang: `-m tests.helpers.soaked_rank pretrain '[30, 60]' --config …`.

The losses of these steps of a pretraining are NaN. At the signal `HANG` its main thread calls a library that never
returns and keeps Python's lock.
"""

import ctypes
import json
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from audiox_trainer.trainer.data.batches import Batch
from audiox_trainer.trainer.training.pretrain import Pretraining

HANG = signal.SIGRTMIN + 3


def hang(*_: Any) -> None:
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):  # the second waits forever
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)


def main() -> None:
    script, steps = sys.argv[1], set(json.loads(sys.argv[2]))
    sys.argv = [script, *sys.argv[3:]]
    os.environ["SLURMD_NODENAME"] = f"node-{os.environ['RANK']}"  # each rank is a node
    signal.signal(HANG, hang)
    real = Pretraining.losses

    def losses(self: Pretraining, step: int, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        found, t = real(self, step, batch)
        return found * float("nan") if step in steps else found, t

    Pretraining.losses = losses  # type: ignore[method-assign]
    runpy.run_path(str(Path(__file__).resolve().parents[2] / "launch" / f"{script}.py"), run_name="__main__")


if __name__ == "__main__":
    main()
