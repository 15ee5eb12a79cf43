"""Shards damaged after the start has checked their sizes are refused by name when they are first read."""

import shutil

import pytest

from audiox_trainer.trainer.core.cli import ExitCode, exit_code_of
from audiox_trainer.trainer.data.shards import DamagedError
from tests.helpers.faulty_rank import DAMAGE
from tests.helpers.reader_ranks import open_reader
from tests.helpers.small_config import small_config

SAID = {"flip": "has changed: xxh64 ", "cut": "has 2000 bytes, its index says", "remove": "is missing"}


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", SAID)
def test_it_is_refused_at_its_first_read(scenes, tmp_path, kind, workers):
    """Like a run that does not compare hashes at its start (`data.verify_hashes` is false)."""
    folder = shutil.copytree(scenes, tmp_path / "copy")
    batches = open_reader(small_config(folder, f"data.workers={workers}")).batches(0)
    for file in folder.glob("*/*.mds"):
        DAMAGE[kind](file)
    with pytest.raises(DamagedError, match=rf"ended after 0 of 9 batches: .*shard\.\d+\.mds {SAID[kind]}") as caught:
        next(batches)
    assert exit_code_of(caught.value) is ExitCode.CORRUPT
