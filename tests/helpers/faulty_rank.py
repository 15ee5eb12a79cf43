"""A rank of launch/pretrain.py or distill.py with a fault: `-m tests.helpers.faulty_rank pretrain '[...]' --config …`.

The faults are a JSON list of {"rank", "target", "call", "act"}: at the given call of a function on that rank (on
all with null) something happens instead of it, or, of `DAMAGE`, `LOADERS` and "flip a weight" (of a training's step),
before it; of `NAN`, to what it returns.
"shards" is the folder of those that are damaged.
"""

import importlib
import json
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def flip_weight(model: torch.nn.Module) -> None:
    """Flips one bit of the last weight, one that no update rounds away."""
    weights = list(model.parameters())[-1].data.view(-1)
    kind, bit = {2: (torch.int16, 5), 4: (torch.int32, 21)}[weights.element_size()]
    weights.view(kind)[-1] ^= 1 << bit


def cut(file: Path) -> None:
    os.truncate(file, 2000)


def signal_loaders(number: signal.Signals) -> None:
    for process in multiprocessing.active_children():
        assert process.pid is not None
        os.kill(process.pid, number)
        print(f"{number.name} to {process.pid}", flush=True)


DAMAGE: dict[str, Callable[[Path], None]] = {"flip": flip, "cut": cut, "remove": Path.unlink}
LOADERS = {"kill loaders": signal.SIGKILL, "stop loaders": signal.SIGSTOP}
NAN = ("NaN", "NaN from then on")


def faulty(real: Any, at: int, act: str, shards: Path) -> Any:
    """The function, with a fault at its call number `at` (from 1)."""
    calls = 0

    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if act in NAN and (calls == at or (calls > at and act != "NaN")):
            return real(*arguments, **named) * float("nan")
        if calls != at:
            return real(*arguments, **named)
        if act in DAMAGE:
            for file in shards.rglob("*.mds"):
                DAMAGE[act](file)
            return real(*arguments, **named)
        if act in LOADERS:
            signal_loaders(LOADERS[act])
            return real(*arguments, **named)
        if act == "flip a weight":
            flip_weight(arguments[0].engine.module)
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
            shards = Path(fault.get("shards", ""))
            setattr(owner, last, faulty(getattr(owner, last), fault["call"], fault["act"], shards))
    runpy.run_path(str(ROOT / "launch" / f"{script}.py"), run_name="__main__")


if __name__ == "__main__":
    main()
