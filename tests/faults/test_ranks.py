"""A rank that is dead, stopped, elsewhere or mistaken: every rank leaves in time, says why, and the run goes on."""

import json
import re
import signal
import time
from dataclasses import dataclass, field

import pytest

from audiox_turbo.trainer import checkpoint
from audiox_turbo.trainer.command import ExitCode
from tests.launched import STEP, Run, begin, prepare, reference

pytestmark = pytest.mark.slow
LOSS = "audiox_turbo.trainer.pretrain:flow_matching_loss"
READ = "audiox_turbo.trainer.logs:NoiseBins.read"
WRITE = "audiox_turbo.trainer.saving:save_file"
PUBLISH = "audiox_turbo.trainer.saving:_publish"
FETCH = "audiox_turbo.trainer.data.tasks:Assembler.__call__"


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


ELSEWHERE = (
    r"no progress for 10 s: rank 1 is in step 11 \(trainer/pretrain\.py:\d+\), "
    r"rank 0 is waiting in step 11 \(trainer/logs\.py:\d+\)"
)
SKIPPED = (
    r"no progress for 10 s: rank 0 is waiting in step 11 \(trainer/logs\.py:\d+\), "
    r"rank 1 is waiting in step 11 \(trainer/stopping\.py:\d+\)"
)
BESIDE = ("checkpoint.async_save=true",)
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
QUICK = {"elsewhere": Fault(READ, 12, "wait", says=ELSEWHERE, own=ExitCode.HUNG)}
LONG = {
    "stopped in a step": Fault(LOSS, 24, "SIGSTOP", says=r"rank 1 is stopped or dead: no sign of life"),
    "killed in a step": Fault(LOSS, 24, "SIGKILL", says=r"rank 1 is stopped or dead: no sign of life"),
    "the first rank killed": Fault(LOSS, 24, "SIGKILL", rank=0, says=r"rank 0 is stopped or dead"),
    "the first rank stopped": Fault(LOSS, 24, "SIGSTOP", rank=0, says=r"rank 0 is stopped or dead"),
    "stopped in a save": Fault(WRITE, 2, "SIGSTOP", says=r"rank 1 is stopped or dead"),
    "a collective skipped": Fault(READ, 12, "skip", says=SKIPPED, own=ExitCode.HUNG),
    "a mistake": Fault(LOSS, 24, "raise", code=ExitCode.FAILED, says=r"rank 1 .*a mistake of our own", own=1),
    "a mistake that explains itself": Fault(
        LOSS, 24, "mistake", code=ExitCode.FAILED, says=r"rank 1: .*a mistake of our own", own=1
    ),
    "a mistake of all ranks in a save": Fault(
        WRITE, 2, "raise", rank=None, code=None, says=r"could not save .*rank 0: a mistake of our own", own=1
    ),
    "a GPU lost in a step": Fault(LOSS, 24, "gpu", says=r"rank 1: CUDA error: uncorrectable ECC", own=ExitCode.HUNG),
    "a GPU lost in a save": Fault(
        WRITE, 2, "gpu", says=r"could not save .*step_00000010: rank 1: CUDA error", own=ExitCode.HUNG
    ),
    "a sentence": Fault(FETCH, 12, "refuse", code=ExitCode.FAILED, says=r"rank 1: a sentence for the user", own=1),
    "a sentence while a save never ends": Fault(
        FETCH,
        13,
        "refuse",
        code=ExitCode.FAILED,
        says=r"rank 1: a sentence for the user",
        own=1,
        settings=BESIDE,
        before=(WRITE, 2, "wait"),
    ),
    "all killed in a save": Fault(WRITE, 3, "SIGKILL", rank=None, code=None, steps=(5, 10)),
    "all killed before publishing": Fault(PUBLISH, 3, "SIGKILL", rank=None, code=None, steps=(5, 10)),
    "killed between the saves of two roles": Fault(
        WRITE, 3 * 3 + 2, "SIGKILL", rank=None, kind="distill", code=None, steps=(10, 17, 24)
    ),
    "all killed while writing beside": Fault(WRITE, 3, "SIGKILL", rank=None, code=None, steps=(5, 10), settings=BESIDE),
    "stopped while writing beside": Fault(WRITE, 2, "SIGSTOP", says=r"rank 1 is stopped or dead", settings=BESIDE),
    "a GPU lost before writing beside": Fault(
        WRITE, 2, "gpu", says=r"could not save .*step_00000010: rank 1: CUDA", own=ExitCode.HUNG, settings=BESIDE
    ),
    "killed between two roles written beside": Fault(
        WRITE, 3 * 3 + 2, "SIGKILL", rank=None, kind="distill", code=None, steps=(10, 17, 24), settings=BESIDE
    ),
    "all killed after publishing": Fault(PUBLISH, 3, "half", rank=None, code=None, steps=(5, 10, 15)),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def ready(base):
    prepare(base)


@pytest.fixture(scope="module")
def references(base, ready):
    """Ends of undisturbed runs."""
    return {kind: reference(kind, base) for kind in ("pretrain", "distill")}


def outcome(run: Run, fault: Fault) -> tuple[list[int | None], float]:
    """Exit codes, after what was stopped is gone too; seconds from the fault, or later, to the last rank's end."""
    faults = [f for f in (fault.before, (fault.target, fault.call, fault.act)) if f]
    where = json.dumps([{"rank": fault.rank, **dict(zip(("target", "call", "act"), f, strict=True))} for f in faults])
    begin(run, ("-m", "tests.faults.rank", fault.kind, where))
    others = tuple(rank for rank in (0, 1) if fault.act != "SIGSTOP" or rank != fault.rank)
    progress, since = run.step(), time.monotonic()
    while any(run.processes[rank].poll() is None for rank in others) and time.monotonic() < since + 120:
        if run.step() != progress:
            progress, since = run.step(), time.monotonic()
        time.sleep(0.05)
    codes = [process.poll() for process in run.processes]
    seconds = time.monotonic() - since
    run.clear()
    return codes, seconds


def check_left(run: Run, fault: Fault) -> None:
    """Every rank leaves in time, with the code and the sentence that it should."""
    codes, seconds = outcome(run, fault)
    expected = {
        rank: fault.code if fault.rank is not None and rank != fault.rank else fault.own for rank in range(len(codes))
    }
    if fault.act in ("SIGKILL", "half"):
        expected |= {rank: -signal.SIGKILL for rank in expected if fault.rank in (None, rank)}
    said = run.said(0)[-3000:] + run.said(1)[-3000:]
    assert {rank: code for rank, code in enumerate(codes) if code is not None} == {
        rank: code for rank, code in expected.items() if code is not None
    }, said
    assert seconds < STEP + 5, f"{seconds} s from the last step"
    for rank, code in enumerate(codes):
        if fault.says and code not in (None, -signal.SIGKILL):
            # Whose sentence it is need not name itself.
            says = fault.says.removeprefix(f"rank {rank}: ") if rank == fault.rank else fault.says
            assert re.search(f"[eE]rror: .*{says}", run.said(rank)), run.said(rank)[-3000:]
    if fault.steps:
        assert [checkpoint.step_of(f) for f in reversed(checkpoint.complete(run.folder))] == list(fault.steps)


@pytest.mark.parametrize("name", QUICK)
def test_every_rank_leaves(base, ready, name, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    run = Run("pretrain", base, name, QUICK[name].settings)
    check_left(run, QUICK[name])
    holding = [f for f in run.folder.rglob("*") if f.is_file() and SECRET.encode() in f.read_bytes()]
    assert not holding, "a credential of the environment reaches no file of a run"


START = "audiox_turbo.trainer.zero:start"
BUILD = "audiox_turbo.trainer.pretrain:prepared"
WAITED = (
    r"rank 0 (has waited 20 s in start-up for the other ranks|of 2 found no process group at .*is every rank there)"
)
EARLY = {
    "killed before they meet": (START, "SIGKILL", -signal.SIGKILL, WAITED),
    "never there": (START, "wait", ExitCode.HUNG, WAITED),
    "killed after they met": (
        BUILD,
        "SIGKILL",
        -signal.SIGKILL,
        r"rank 1 is stopped or dead: no sign of life for \d+ s, last heard of in start-up",
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("name", EARLY)
def test_a_rank_that_is_lost_in_start_up(base, ready, name):
    """The other one waits for as long as `timeouts.start` says, and can be started again."""
    target, act, own, says = EARLY[name]
    run = Run("pretrain", base, name.replace(" ", "_"))
    where = json.dumps([{"rank": 1, "target": target, "call": 1, "act": act}])
    run.start(("-m", "tests.faults.rank", "pretrain", where, "--set", "timeouts.start=20"))
    assert run.wait(120) == [ExitCode.HUNG, own], run.said()
    assert re.search(f"error: {says}", run.said()), run.said()
    run.clear()


@pytest.mark.long
@pytest.mark.parametrize("name", LONG)
def test_every_rank_leaves_and_the_run_goes_on(base, references, name):
    run = Run(LONG[name].kind, base, name.replace(" ", "_"), LONG[name].settings)
    check_left(run, LONG[name])
    again = begin(run)
    assert again["resumed"] == again["expected"] > 0
    assert again["training_s"] < 60
    assert run.wait() == [0, 0], run.said()
    run.clear()
    assert run.end() == references[run.kind]
