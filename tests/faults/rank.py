"""A rank of launch/pretrain.py or distill.py with a fault in it: `-m tests.faults.rank pretrain '{...}' --config ...`.

The faults are a JSON list of {"rank", "target", "call", "act"}: at the given call of a function on that rank (on
all with null) something happens instead of it.
"""

import importlib
import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]


def faulty(real: Any, at: int, act: str) -> Any:
    """The function, with a fault at its call number `at` (from 1)."""
    calls = 0

    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != at:
            return real(*arguments, **named)
        if act in ("SIGKILL", "SIGSTOP"):
            os.kill(os.getpid(), signal.Signals[act])
        elif act == "half":  # killed when the call is done
            real(*arguments, **named)
            os.kill(os.getpid(), signal.SIGKILL)
        elif act == "wait":
            time.sleep(1e6)
        elif act == "skip":
            return {"loss": 0.0}
        elif act == "gpu":
            raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")
        elif act == "raise":
            raise RuntimeError("a mistake of our own")
        elif act == "mistake":
            raise TypeError("a mistake of our own")
        elif act == "refuse":
            raise ValueError("a sentence for the user")
        raise AssertionError(act)

    return call


def main() -> None:
    script, faults = sys.argv[1], json.loads(sys.argv[2])
    sys.argv = [script, *sys.argv[3:]]
    for fault in faults:
        if fault["rank"] in (None, int(os.environ["RANK"])):
            module, name = fault["target"].split(":")
            owner: Any = importlib.import_module(module)
            *path, last = name.split(".")
            for part in path:
                owner = getattr(owner, part)
            setattr(owner, last, faulty(getattr(owner, last), fault["call"], fault["act"]))
    runpy.run_path(str(ROOT / "launch" / f"{script}.py"), run_name="__main__")


if __name__ == "__main__":
    main()
