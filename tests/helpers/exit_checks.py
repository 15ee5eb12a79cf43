"""Faults on a rank of a run, and checks of how every rank exits and how the run resumes."""

import json
import re
import signal
import time
from dataclasses import dataclass, field
from typing import Any

from audiox_trainer.trainer.checkpoint import load
from audiox_trainer.trainer.core.cli import ExitCode
from tests.helpers.supervised_runs import PATIENCE, Run, begin

FETCH = "audiox_trainer.trainer.data.batches:BatchAssembler.__call__"


@dataclass(frozen=True)
class Fault:
    target: str
    call: int
    act: str
    rank: int | None = 1
    kind: str = "pretrain"
    code: int | None = ExitCode.HUNG  # of the ranks that are not at fault; None where all are
    says: str = ""
    own: int | None = None  # code of the rank at fault
    steps: tuple[int, ...] = field(default=())  # of the checkpoints that stand then
    settings: tuple[str, ...] = field(default=())
    before: tuple[str, int, str] | None = None  # another one on the same rank: target, call, act
    shards: str = ""  # a folder, of those that are damaged


def outcome(run: Run, fault: Fault) -> tuple[list[int | None], float]:
    """Exit codes once all processes have ended, and seconds from the fault, or later, to the last rank's end."""
    faults = [f for f in (fault.before, (fault.target, fault.call, fault.act)) if f]
    common = {"rank": fault.rank, "shards": fault.shards}
    where = json.dumps([common | dict(zip(("target", "call", "act"), f, strict=True)) for f in faults])
    begin(run, ("-m", "tests.helpers.faulty_rank", fault.kind, where))
    others = tuple(rank for rank in (0, 1) if fault.act != "SIGSTOP" or rank != fault.rank)
    progress, since = run.step(), time.monotonic()
    while any(run.processes[rank].poll() is None for rank in others) and time.monotonic() < since + PATIENCE:
        if run.step() != progress:
            progress, since = run.step(), time.monotonic()
        time.sleep(0.05)
    codes = [process.poll() for process in run.processes]
    seconds = time.monotonic() - since
    run.clear()
    return codes, seconds


def check_exits(run: Run, fault: Fault) -> None:
    """Every rank exits in time, with the expected code and message."""
    codes, seconds = outcome(run, fault)
    expected = {
        rank: fault.code if fault.rank is not None and rank != fault.rank else fault.own for rank in range(len(codes))
    }
    if fault.act in ("SIGKILL", "half"):
        expected |= {rank: -signal.SIGKILL for rank in expected if fault.rank in (None, rank)}
    if fault.act == "SIGSTOP" and fault.rank is not None and codes[fault.rank] is not None:
        expected[fault.rank] = -signal.SIGKILL  # its monitor was faster
    said = run.said(0)[-3000:] + run.said(1)[-3000:]
    assert {rank: code for rank, code in enumerate(codes) if code is not None} == {
        rank: code for rank, code in expected.items() if code is not None
    }, said
    assert seconds < PATIENCE, "a rank hangs"
    for rank, code in enumerate(codes):
        if fault.says and code is not None and code >= 0:  # not ended by a signal
            # The rank at fault need not name itself.
            says = fault.says.removeprefix(f"rank {rank}: ") if rank == fault.rank else fault.says
            assert re.search(f"[eE]rror: .*{says}", run.said(rank)), run.said(rank)[-3000:]
    if fault.steps:
        assert [load.step_of(f) for f in reversed(load.list_checkpoints(run.folder))] == list(fault.steps)


def finish_resumed(run: Run) -> dict[str, Any]:
    """Resumes a run by the same command, from its newest checkpoint; returns its result."""
    again = begin(run)
    assert again["resumed"] == again["expected"] > 0
    assert run.wait() == [0, 0], run.said()
    run.clear()
    return run.end()
