"""Runs of two ranks on two nodes, for tests/checkpoint/test_local_copies.py."""

import io
import os
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from audiox_trainer.trainer.core.config import PretrainConfig
from tests.helpers import scenarios
from tests.helpers.faulty_rank import flip
from tests.helpers.small_config import small_config
from tests.helpers.training_scenarios import whole


def own_file(node: Path, step: int, rank: int) -> Path:
    return node / "checkpoints" / f"step_{step:08d}" / "model" / f"rank_{rank:05d}.safetensors"


def lost(node: Path, rank: int) -> None:
    """The second node is replaced by an empty one."""
    if rank == 1:
        shutil.rmtree(node)
        os.environ["SLURMD_NODENAME"] = "another"


def both_lost(node: Path, rank: int) -> None:
    shutil.rmtree(node)


def flipped(node: Path, rank: int) -> None:
    """One of the two copies of the first rank's file is damaged."""
    if rank == 0:
        flip(own_file(node, 6, 0))


def both_flipped(node: Path, rank: int) -> None:
    """Both copies of the first rank's file of the last step are damaged."""
    flip(own_file(node, 6, 0))


def full(node: Path, rank: int) -> None:
    """The folder cannot be written to any more: there is a file in its place."""
    shutil.rmtree(node)
    node.write_text("")


DAMAGE: dict[str, Callable[[Path, int], None]] = {
    "nothing": lambda node, rank: None,
    "lost": lost,
    "both lost": both_lost,
    "flipped": flipped,
    "both flipped": both_flipped,
    "full": full,
}


def copied(
    folder: Path, config: PretrainConfig, damage: str = "nothing", back: int = 0, stage: int | None = None
) -> dict[str, Any]:
    """A run that breaks off after its seventh step, and resumes after the damage. With `back` it goes back to that step
    first; `stage` is the ZeRO stage that it resumes with."""
    rank = scenarios.WORLD.rank
    os.environ["SLURMD_NODENAME"] = f"node-{rank}"
    whole(folder, config, stop=7)
    (run,) = Path(config.checkpoint.local_folder).iterdir()
    torch.distributed.barrier()
    left = sorted(str(path.relative_to(run)) for path in run.rglob("*.safetensors"))
    torch.distributed.barrier()
    DAMAGE[damage](run / f"node-{rank}", rank)
    torch.distributed.barrier()
    if back:
        whole(folder, config, resume=True, from_step=back, stop=back + 1)
    if stage is not None:
        config = replace(config, zero=replace(config.zero, stage=stage))
    with redirect_stdout(io.StringIO()) as said:
        whole(folder, config, resume=True)
    torch.distributed.barrier()
    after = [path.name for path in Path(config.checkpoint.local_folder).rglob("*.safetensors")]
    return {"left": left, "said": said.getvalue(), "after": after}


if __name__ == "__main__":
    scenarios.main({"copied": copied}, small_config)
