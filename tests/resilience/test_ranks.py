"""A rank is dead, stopped, in another place or wrong: every rank exits in time, says why, and the run resumes."""

import json
import re
import signal

import pytest

from audiox_trainer.trainer.checkpoint import load
from audiox_trainer.trainer.core.cli import ExitCode
from tests.helpers.exit_checks import FETCH, Fault, check_exits, finish_resumed
from tests.helpers.supervised_runs import Run

pytestmark = pytest.mark.slow
LOSS = "audiox_trainer.trainer.training.pretrain:flow_matching_loss"
TAKE_STEP = "audiox_trainer.trainer.training.pretrain:Pretraining.step"
READ = "audiox_trainer.trainer.engine.meter:NoiseBins.read"
WRITE = "audiox_trainer.trainer.checkpoint.save:save_file"
COMMIT = "audiox_trainer.trainer.checkpoint.save:_commit"


ELSEWHERE = (
    r"no progress for 10 s: rank 1 is in step 11 \(trainer/training/pretrain\.py:\d+\), "
    r"rank 0 is waiting in step 11 \(trainer/engine/meter\.py:\d+\)"
)
ASYNC_SAVE = ("checkpoint.async_save=true",)
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
QUICK = {"elsewhere": Fault(READ, 12, "wait", says=ELSEWHERE, own=ExitCode.HUNG)}
LONG = {
    "stopped in a step": Fault(LOSS, 24, "SIGSTOP", says=r"rank 1 is stopped, stuck or dead: no sign of life"),
    "killed in a step": Fault(LOSS, 24, "SIGKILL", says=r"rank 1 is dead: its process has ended, last heard of in"),
    "the first rank killed": Fault(LOSS, 24, "SIGKILL", rank=0, says=r"rank 0 is dead: its process has ended"),
    "the first rank stopped": Fault(LOSS, 24, "SIGSTOP", rank=0, says=r"rank 0 is stopped, stuck or dead"),
    "stopped in a save": Fault(WRITE, 2, "SIGSTOP", says=r"rank 1 is stopped, stuck or dead"),
    # Its next one meets that of the other rank, which is larger: gloo ends the process.
    "a collective skipped": Fault(READ, 12, "skip", says=r"rank 1 is dead: its process has ended", own=-signal.SIGABRT),
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
        settings=ASYNC_SAVE,
        before=(WRITE, 2, "wait"),
    ),
    "all killed in a save": Fault(WRITE, 3, "SIGKILL", rank=None, code=None, steps=(5, 10)),
    "all killed before a checkpoint is complete": Fault(COMMIT, 3, "SIGKILL", rank=None, code=None, steps=(5, 10)),
    "killed between the saves of two roles": Fault(
        WRITE, 3 * 3 + 2, "SIGKILL", rank=None, kind="distill", code=None, steps=(10, 17, 24)
    ),
    "all killed while writing asynchronously": Fault(
        WRITE, 3, "SIGKILL", rank=None, code=None, steps=(5, 10), settings=ASYNC_SAVE
    ),
    "stopped while writing asynchronously": Fault(
        WRITE, 2, "SIGSTOP", says=r"rank 1 is stopped, stuck or dead", settings=ASYNC_SAVE
    ),
    "a GPU lost before writing asynchronously": Fault(
        WRITE, 2, "gpu", says=r"could not save .*step_00000010: rank 1: CUDA", own=ExitCode.HUNG, settings=ASYNC_SAVE
    ),
    "killed between two roles written asynchronously": Fault(
        WRITE, 3 * 3 + 2, "SIGKILL", rank=None, kind="distill", code=None, steps=(10, 17, 24), settings=ASYNC_SAVE
    ),
    "all killed after a checkpoint is complete": Fault(COMMIT, 3, "half", rank=None, code=None, steps=(5, 10, 15)),
}


@pytest.mark.parametrize("name", QUICK)
def test_every_rank_leaves(base, ready, name, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    run = Run("pretrain", base, name, QUICK[name].settings)
    check_exits(run, QUICK[name])
    holding = [f for f in run.folder.rglob("*") if f.is_file() and SECRET.encode() in f.read_bytes()]
    assert not holding, "a credential of the environment reaches no file of a run"


def test_a_flipped_bit_in_one_ranks_weights_ends_all(base, ready):
    run = Run("pretrain", base, "flipped", ("checks.weights_every=1",))
    where = json.dumps([{"rank": 1, "target": TAKE_STEP, "call": 8, "act": "flip a weight"}])
    run.start(("-m", "tests.helpers.faulty_rank", "pretrain", where))
    assert run.wait() == [ExitCode.FAULTY, ExitCode.FAULTY], run.said()
    says = r"error: (rank 1: )?silent corruption by step 7: the weights of rank 0 \(.*\) and rank 1 \(.*\) differ, "
    assert re.search(says, run.said()), run.said()
    assert [load.step_of(folder) for folder in load.list_checkpoints(run.folder)] == [5], "nothing was saved after it"
    run.clear()


START = "audiox_trainer.trainer.engine.process_group:init_process_group"
BUILD = "audiox_trainer.trainer.training.pretrain:configure_model"
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
        r"rank 1 is dead: its process has ended, last heard of in start-up",
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("name", EARLY)
def test_a_rank_that_is_lost_in_start_up(base, ready, name):
    """The other rank waits for `timeouts.start`, and can be started again."""
    target, act, own, says = EARLY[name]
    run = Run("pretrain", base, name.replace(" ", "_"))
    where = json.dumps([{"rank": 1, "target": target, "call": 1, "act": act}])
    run.start(("-m", "tests.helpers.faulty_rank", "pretrain", where, "--set", "timeouts.start=20"))
    assert run.wait(600) == [ExitCode.HUNG, own], run.said()
    assert re.search(f"error: {says}", run.said()), run.said()
    run.clear()


@pytest.mark.long
@pytest.mark.parametrize("name", LONG)
def test_every_rank_leaves_and_the_run_goes_on(base, references, name):
    run = Run(LONG[name].kind, base, name.replace(" ", "_"), LONG[name].settings)
    check_exits(run, LONG[name])
    assert finish_resumed(run) == references[run.kind]
