"""Builds the roles of a distillation at a twelfth of the size of configs/distill_2p7b.json on a CPU, and prints as JSON
the peak of the process's memory that is no file's, and what the roles' tensors take by arithmetic.

    python -m tests.helpers.building_memory /tmp/teacher --write   # random weights, once
    python -m tests.helpers.building_memory /tmp/teacher
"""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from audiox_trainer.models.audiox import AudioX, SamplingConfig
from audiox_trainer.trainer.core.distill_config import load_distill_config
from audiox_trainer.trainer.distillation.distill import load_teacher
from audiox_trainer.trainer.distillation.updates import Distillation
from audiox_trainer.trainer.engine.process_group import init_process_group
from tests.helpers.small_config import ROOT

TWELFTH = ("model.text.kind=words", "model.backbone.depth=1", "distillation.discriminator_blocks=1")
SIZES = ("training.compile=false", "training.global_batch=5")
INTERVAL = 0.002  # seconds between two looks


def own_memory() -> int:
    """Bytes of this process that are no file's."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return 1024 * int(line.split()[1])


@contextlib.contextmanager
def peak() -> Iterator[list[int]]:
    """A list whose last element is the most that `own_memory` had inside the `with`."""
    found, done = [own_memory()], threading.Event()

    def look() -> None:
        while not done.is_set():
            found.append(max(found[-1], own_memory()))
            del found[:-1]
            time.sleep(INTERVAL)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def write_teacher(folder: Path) -> int:
    """Random weights in `folder`. Returns how many."""
    config = load_distill_config(ROOT / "configs" / "distill_2p7b.json", [*TWELFTH, *SIZES])
    with torch.device("meta"):
        model = AudioX(config.model, SamplingConfig())
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(0.02 * torch.randn(parameter.shape)))
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def main(folder: Path) -> None:
    config = load_distill_config(ROOT / "configs" / "distill_2p7b.json", [*TWELFTH, *SIZES])
    world = init_process_group()
    before = own_memory()
    with peak() as found:
        teacher, _ = load_teacher(config, folder)
        trainer = Distillation(config, teacher, world)
    kept = sum(role.weights + role.ema for role in trainer.planned_bytes().values())  # moments come with the first step
    print(json.dumps({"peak": found[-1] - before, "kept": kept}))


if __name__ == "__main__":
    if sys.argv[2:] == ["--write"]:
        print(write_teacher(Path(sys.argv[1])))
    else:
        main(Path(sys.argv[1]))
