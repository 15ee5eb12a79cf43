"""Two ranks that resume choose the same checkpoint, whatever is damaged, and whichever of them reads the damage."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from audiox_trainer.trainer.checkpoint import load
from audiox_trainer.trainer.core import integrity
from tests.helpers.faulty_rank import flip
from tests.helpers.small_config import ROOT
from tests.helpers.warm_python import python

pytestmark = pytest.mark.slow
STEPS = (5, 10, 15)


def saved(run: Path) -> Path:
    """A run of three checkpoints of four files each; the folder of the last."""
    for step in STEPS:
        folder = run / load.FOLDER / f"step_{step:08d}"
        (folder / "model").mkdir(parents=True)
        entries = {}
        for rank in range(4):
            file = folder / "model" / f"rank_{rank:05d}.safetensors"
            file.write_bytes(np.random.default_rng([step, rank]).bytes(3000))
            entries[f"model/{file.name}"] = integrity.file_entry(file)
        integrity.write_manifest(folder, {"step": step, "files": entries})
    (run / load.LATEST).write_text(f'{{"step": {STEPS[-1]}}}')
    return folder


def unreadable(file: Path) -> None:
    file.unlink()
    file.symlink_to("/proc/self/mem")


def each(act: Callable[[Path], object], name: str) -> Callable[[Path], None]:
    """Applies to this file of every checkpoint of the run."""
    return lambda folder: [act(step / name) for step in folder.parent.iterdir()] and None


# Damage to the newest of three checkpoints, or to its run, and which checkpoint is chosen then. Rank 0 reads files 0
# and 2, rank 1 files 1 and 3.
SHARDS = {
    f"file {number} {how}": (lambda folder, n=number, act=act: act(folder / f"model/rank_{n:05d}.safetensors"), 10)
    for number in (0, 1)
    for how, act in (("cut", lambda f: os.truncate(f, 100)), ("deleted", Path.unlink), ("flipped", flip))
}
DAMAGE: dict[str, tuple[Callable[[Path], object], int]] = {
    "nothing": (lambda folder: None, 15),
    **SHARDS,
    "manifest missing": (lambda folder: (folder / "manifest.json").unlink(), 10),
    "manifest empty": (lambda folder: os.truncate(folder / "manifest.json", 0), 10),
    "manifest wrong": (lambda folder: (folder / "manifest.json").write_text('{"format": 1, "step": 15}'), 10),
    "manifest unreadable": (lambda folder: unreadable(folder / "manifest.json"), 10),
    "latest missing": (lambda folder: (folder.parents[1] / load.LATEST).unlink(), 15),
    "latest empty": (lambda folder: os.truncate(folder.parents[1] / load.LATEST, 0), 15),
    "latest wrong": (lambda folder: (folder.parents[1] / load.LATEST).write_text('{"step": 5}'), 15),
    "every last file flipped": (each(flip, "model/rank_00003.safetensors"), 0),
    "every manifest missing": (each(Path.unlink, "manifest.json"), 0),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """The messages of each of two ranks, by damage."""
    base = tmp_path_factory.mktemp("choosing")
    runs = [base / name.replace(" ", "_") for name in DAMAGE]
    for run, (act, _) in zip(runs, DAMAGE.values(), strict=True):
        act(saved(run))
    ranks = [
        subprocess.Popen(
            [
                *python(),
                "-m",
                "tests.helpers.newest_checkpoint_rank",
                str(rank),
                "2",
                str(base / "store"),
                *map(str, runs),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [json.loads(rank.communicate(timeout=600)[0]) for rank in ranks]
    return dict(zip(DAMAGE, zip(*said, strict=True), strict=True))


@pytest.mark.parametrize("name", DAMAGE)
def test_both_ranks_choose_the_same(answers, name):
    (first, heard), (second, also_heard) = answers[name]
    _, step = DAMAGE[name]
    assert first == second == (f"step_{step:08d}" if step else "NoUsableCheckpointError"), answers[name]
    assert heard == also_heard
    passed = [line for line in heard if line.startswith("skipped a damaged checkpoint: ")]
    assert len(passed) == {15: 0, 10: 1, 0: 3}[step], heard
