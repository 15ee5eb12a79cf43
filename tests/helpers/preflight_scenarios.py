"""Ranks of launch/preflight.py, each its own node, some with something wrong: `-m
tests.helpers.preflight_scenarios`.

Reads a JSON object of scenarios from standard input, carries all of them out at once, and prints what each rank said.
Forked before torch has computed anything: it is imported once for all.
"""

import json
import os
import runpy
import shutil
import sys
import tempfile
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from audiox_trainer.trainer.core.hardware import free_port
from audiox_trainer.trainer.resilience import preflight
from tests.helpers.small_config import ROOT


def late(what: Any, seconds: float) -> Any:
    """A function that takes so much longer."""

    def call(*arguments: Any, **named: Any) -> Any:
        time.sleep(seconds)
        return what(*arguments, **named)

    return call


def break_something(fault: str) -> None:
    """In this process, which is one node."""
    if fault == "clock":
        now = time.time
        time.time = lambda: now() - 60
    elif fault == "disk":
        shutil.disk_usage = lambda folder: namedtuple("Usage", "free")(3e9)
    elif fault == "link":
        dist.send, dist.recv, dist.all_reduce = (late(f, 0.1) for f in (dist.send, dist.recv, dist.all_reduce))
    elif fault == "driver":
        preflight._own_fault = late(preflight._own_fault, 1e6)
    elif fault == "clock, a little":
        before = time.time
        time.time = lambda: before() - 9
    elif fault == "has a GPU":
        torch.cuda.device_count = lambda: 1
        torch.cuda.is_available = lambda: True
        torch.cuda.mem_get_info = lambda device: (80 * 10**9, 80 * 10**9)
        torch.cuda.get_device_name = lambda: "NVIDIA H100 80GB HBM3"
    elif fault == "lost its driver":
        os.environ["SLURM_GPUS_ON_NODE"] = "1"
    elif fault == "memory":
        torch.cuda.device_count = lambda: 1
        torch.cuda.mem_get_info = lambda device: (5 * 10**9, 80 * 10**9)
    else:
        raise AssertionError(fault)


def rank(number: int, port: int, ranks: int, options: list[str], fault: str, file: Path) -> None:
    """In a process of its own, whose output goes to a file."""
    names = [f"n{i + 1}" for i in range(ranks)]
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(ranks), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODES": " ".join(names)}
    os.environ |= {"SLURMD_NODENAME": names[number]}
    handle = os.open(file, os.O_WRONLY | os.O_CREAT)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    if fault:
        break_something(fault)
    sys.argv = ["preflight.py", *options]
    code = 0
    try:
        runpy.run_path(str(ROOT / "launch" / "preflight.py"), run_name="__main__")
    except SystemExit as ended:
        code = int(ended.code or 0)
    sys.stdout.flush()
    os._exit(code)


def main() -> None:
    scenarios = json.load(sys.stdin)
    children: dict[int, tuple[str, int, Path]] = {}
    folder = Path(tempfile.mkdtemp())
    for name, scenario in scenarios.items():
        port = free_port()
        for number in range(scenario["ranks"]):
            fault = scenario["faults"].get(str(number), "")
            file = folder / f"{name}-{number}"
            if fault == "absent":
                continue
            child = os.fork()
            if not child:
                rank(number, port, scenario["ranks"], scenario["options"], fault, file)
            children[child] = name, number, file
    found: dict[str, dict[int, tuple[int, str]]] = {name: {} for name in scenarios}
    while children:
        child, status = os.wait()
        name, number, file = children.pop(child)
        found[name][number] = os.waitstatus_to_exitcode(status), file.read_text()
    shutil.rmtree(folder)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
