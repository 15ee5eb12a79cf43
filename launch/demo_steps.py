"""The steps of a demonstration as processes, with their durations."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from audiox_trainer.trainer.core.files import write_json
from audiox_trainer.trainer.core.hardware import free_port

SCRIPTS = {path.stem: os.path.relpath(path) for path in Path(__file__).parent.glob("*.py")}


def launcher() -> list[str]:
    """Two ranks on a CPU: on small tensors, two cores are faster apart, and synchronise once per step."""
    if torch.cuda.is_available() or (os.cpu_count() or 1) < 2:
        return ["deepspeed"]
    return ["deepspeed", "--num_gpus", "2", "--master_port", str(free_port())]


class StepRunner:
    """Runs commands, skips those whose result exists, and keeps their durations in OUT/seconds.json."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.file = out / "seconds.json"  # across several runs of the demo
        self.seconds: dict[str, float] = json.loads(self.file.read_text()) if self.file.exists() else {}
        # The calibration and the training share compiled code.
        self.environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(out.absolute() / "compiled")}
        self.environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{self.environment['PATH']}"

    def __call__(self, name: str, result: Path, *command: str) -> None:
        if result.exists():
            print(f"-- {name}: skipped, {result} exists", flush=True)
            return
        print(f"-- {name}\n   {' '.join(command)}", flush=True)
        begin = time.perf_counter()
        if code := subprocess.call(command, env=self.environment):
            raise ValueError(f"the command above failed with exit code {code}")
        self.seconds[name] = time.perf_counter() - begin
        write_json(self.file, self.seconds)
        print(f"   {self.seconds[name]:.0f} s", flush=True)
