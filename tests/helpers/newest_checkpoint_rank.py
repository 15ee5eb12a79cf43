"""A rank that finds the newest checkpoint of runs: `-m tests.helpers.newest_checkpoint_rank RANK RANKS STORE RUN ...`.

Prints a JSON list of [name of the folder chosen, or the error's class; what was reported].
"""

import json
import sys
from pathlib import Path

import torch.distributed as dist

from audiox_trainer.trainer.checkpoint import load


def chosen(run: Path) -> list[object]:
    heard: list[str] = []
    try:
        folder = load.newest_intact(run, heard.append)
        return [folder and folder.name, heard]
    except load.CheckpointError as error:
        return [type(error).__name__, [*heard, str(error)]]


def main() -> None:
    rank, ranks, store, *runs = sys.argv[1:]
    dist.init_process_group("gloo", store=dist.FileStore(store, int(ranks)), rank=int(rank), world_size=int(ranks))
    print(json.dumps([chosen(Path(run)) for run in runs]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
