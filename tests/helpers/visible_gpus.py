"""A stage that notes which GPUs its judge may use, and the node that it is on."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from audiox_trainer.trainer.stages.run_stage import run_stage
from audiox_trainer.trainer.stages.stage import Judging, Stage, StageResult, StageTask, StageWorkers


def judge(task: StageTask) -> Judging:
    time.sleep(0.5)  # so that every actor gets some
    changes: dict[str, Any] = {"gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""), "maker": os.getppid()}
    yield StageResult([changes])


def main() -> None:
    """Arguments: a manifest, where to write, the address of a cluster, and "gpus" for a stage that wants them."""
    manifest, out, address, gpus = sys.argv[1:]
    stage = Stage("segment", {}, judge, gpus=gpus == "gpus")
    run_stage(stage, Path(manifest), Path(out), StageWorkers(address=address))
