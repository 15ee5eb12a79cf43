"""Files, ports and memory that are damaged, lost, changed or taken while two ranks run."""

import json
import os
import re
import shutil
import signal
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from audiox_trainer.trainer.core.cli import ExitCode
from audiox_trainer.trainer.data.reader import SHARED_MEMORY
from tests.helpers.exit_checks import FETCH, Fault, check_exits, finish_resumed
from tests.helpers.slurm import alone, not_alone
from tests.helpers.supervised_runs import KINDS, RANKS, Run, begin

pytestmark = [pytest.mark.slow, pytest.mark.long]
LOSS = "audiox_trainer.trainer.training.pretrain:flow_matching_loss"
FAKE = "audiox_trainer.trainer.distillation.objectives:Objectives._fake"
CORRUPT = Fault(FETCH, 12, "", code=ExitCode.CORRUPT, own=ExitCode.CORRUPT)
LOADING = ("data.workers=1",)
DAMAGED = {
    "cut": replace(CORRUPT, act="cut", says=r"shard\.\d+\.mds has 2000 bytes, its index says \d+"),
    "removed": replace(CORRUPT, act="remove", says=r"shard\.\d+\.mds is missing"),
    # What has been read stays read until the next epoch's processes begin.
    "flipped": replace(CORRUPT, act="flip", says=r"shard\.\d+\.mds has changed: xxh64", settings=LOADING),
    "cut under a distillation": replace(
        CORRUPT, act="cut", kind="distill", says=r"shard\.\d+\.mds has 2000 bytes", settings=LOADING
    ),
}
LOADERS = {
    "killed": Fault(FETCH, 12, "kill loaders", own=ExitCode.HUNG, says=r"rank 1: epoch .*: DataLoader worker .*"),
    "stuck": Fault(
        FETCH,
        12,
        "stop loaders",
        own=ExitCode.HUNG,
        says=r"no progress for 10 s: rank 1 is (waiting )?in step \d+ \(trainer/data/prefetch\.py:\d+\)",
    ),
}


def settings(scenes: Path) -> tuple[str, ...]:
    return tuple(f"data.streams.{i}.path={scenes}/{name}" for i, name in enumerate(("audio", "music")))


@pytest.mark.parametrize("name", DAMAGED)
def test_shards_that_are_damaged_in_mid_run(base, references, name):
    """Both ranks name the file; when the shards are restored the run resumes."""
    fault = DAMAGED[name]
    scenes = shutil.copytree(base / "scenes", base / f"scenes {name}")
    run = Run(fault.kind, base, name.replace(" ", "_"), (*fault.settings, *settings(scenes)))
    check_exits(run, replace(fault, shards=str(scenes)))
    shutil.copytree(base / "scenes", scenes, dirs_exist_ok=True)
    assert finish_resumed(run) == references[fault.kind]


@pytest.mark.parametrize("name", LOADERS)
def test_processes_that_load(base, references, name):
    run = Run("pretrain", base, f"loaders_{name}", LOADING)
    try:
        check_exits(run, LOADERS[name])
    finally:
        for pid in re.findall(r"SIGSTOP to (\d+)", run.said(1)):
            os.kill(int(pid), signal.SIGKILL)
    assert finish_resumed(run) == references["pretrain"]


def test_a_gradient_that_is_nan_on_one_rank_of_a_distillation(base, references):
    """Once: no rank updates that role, and the run continues. From then on: both give up; the checkpoint is intact."""
    fault = {"rank": 1, "target": FAKE, "call": 3, "act": "NaN"}
    once = Run("distill", base, "nan_once", ("training.max_skipped_steps=2",))
    once.start(("-m", "tests.helpers.faulty_rank", "distill", json.dumps([fault])))
    assert once.wait() == [0, 0], once.said()
    once.clear()
    assert "the gradient is not finite on some rank; no rank updated its weights (1 in a row)" in once.said()
    ends, expected = once.end()["updates"], references["distill"]["updates"]
    assert ends == expected | {"fake": expected["fake"] - 1}
    check_exits(
        run := Run("distill", base, "nan_for_ever", ("training.max_skipped_steps=2",)),
        Fault(
            FAKE,
            4,
            "NaN from then on",
            kind="distill",
            code=ExitCode.DIVERGED,
            own=ExitCode.DIVERGED,
            says=r"2 steps in a row, to step \d+, had a .* that is not finite; .*\. Lower fake\.optimizer\.lr",
        ),
    )
    again = begin(run)
    assert again["resumed"] == again["expected"] > 0
    assert run.wait() == [0, 0], run.said()
    run.clear()
    ends = run.end()["updates"]
    assert ends in (expected, expected | {"fake": expected["fake"] - 1})  # a save may lie between the two


def test_a_taken_port(base, ready):
    """Rank 0 reports it at once. The others, which another program answers, wait for `timeouts.start`."""
    run = Run("pretrain", base, "taken_port", ("timeouts.start=20",))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        run.start(port=port)
        assert run.wait(600) == [ExitCode.FAILED, ExitCode.HUNG], run.said(0) + run.said(1)
    run.clear()
    assert f"127.0.0.1:{port}: another program has the port: set another MASTER_PORT" in run.said(0)
    assert "error: rank 1 has waited 20 s in start-up for the other ranks" in run.said(1)


def test_shared_memory_of_a_neighbour_that_is_killed(base, references):
    """Two runs at once on a machine: the death of one does not affect the other."""
    killed, other = (Run(kind, base, f"neighbour_{kind}", LOADING) for kind in KINDS)
    kill = {"rank": None, "target": LOSS, "call": 12, "act": "SIGKILL"}
    killed.start(("-m", "tests.helpers.faulty_rank", "pretrain", json.dumps([kill])))
    other.start()
    assert killed.wait() == [-signal.SIGKILL] * RANKS, killed.said()
    assert not other.ended() and list(SHARED_MEMORY.glob("[0-9]*_*"))
    killed.clear()
    assert finish_resumed(killed) == references[killed.kind]
    assert other.wait() == [0, 0], other.said()
    other.clear()
    assert other.end() == references[other.kind]


@pytest.mark.skipif(bool(not_alone()), reason=not_alone())
def test_stale_shared_memory(base, ready, tmp_path):
    """In a private /dev/shm: both ranks refuse half-made segments of another job, name them, and leave them."""
    start = (
        "from pathlib import Path; from tests.helpers.supervised_runs import Run; import sys\n"
        "left = Path('/dev/shm/000001_cache_usage')\n"
        "for segment in (Path('/dev/shm/000000_barrier'), left): segment.write_bytes(b'left' * 1024)\n"
        "run = Run('pretrain', Path(sys.argv[1]), 'stale', ('training.steps=4', 'logging.every=1'))\n"
        "run.start()\n"
        "print(run.wait(600), left.read_bytes()[8:] == b'left' * 1022)\n"
        "print(all(f'{left}: shared memory of another job' in run.said(rank) for rank in (0, 1)))\n"
        "run.clear()\n"
        "for segment in Path('/dev/shm').glob('[0-9]*'): segment.unlink()\n"
        "run.start()\n"
        "print(run.wait(600), run.step())\n"
    )
    assert alone(start, base, tmp_path) == ["[1, 1] True", "True", "[0, 0] 4"]


CHANGED = {
    "training.seed=5": r"training\.seed: the run in .* has 0, this configuration 5",
    "data.streams.0.tasks.T2A=0.9": r"data\.streams\.0\.tasks\.T2A: the run in .* has 0\.426, this configuration 0\.9",
    "data.streams.0.path": r"its shards are not those that the run in .* was trained on",
}


@pytest.mark.parametrize("change", CHANGED)
def test_what_changed_between_two_starts(base, ready, change):
    """Both ranks refuse before anything of the run is changed; if accepted, the run continues with the change."""
    scenes = shutil.copytree(base / "scenes", base / f"scenes of {change.split('=')[0]}")
    begun = (*settings(scenes), "training.steps=10", "logging.every=1")
    run = Run("pretrain", base, f"changed_{change.partition('=')[0]}", begun)
    run.start()
    assert run.wait() == [0, 0], run.said()
    run.clear()
    run.settings = (*settings(scenes), "training.steps=15", "logging.every=1")
    if "=" in change:
        run.settings += (change,)
    else:
        shutil.rmtree(scenes / "audio")
        shutil.copytree(scenes / "music", scenes / "audio")

    def everything() -> dict[Path, bytes]:
        files = [f for f in run.folder.rglob("*") if f.is_file() and not f.name.startswith("said_")]
        return {file: file.read_bytes() for file in files if file.name != ".lock"}

    before = everything()
    run.start()
    assert run.wait(600) == [ExitCode.FAILED] * RANKS, run.said()
    run.clear()
    assert everything() == before
    assert all(re.search(f"error: .*{CHANGED[change]}", run.said(rank)) for rank in range(RANKS)), run.said()
    run.settings += ("data.accept_changed_data=true",)
    run.start()
    ends = run.wait()
    run.clear()
    assert ends == [ExitCode.FAILED if change.startswith("training") else ExitCode.DONE] * RANKS, run.said()
    assert run.step() == (10 if change.startswith("training") else 15)
