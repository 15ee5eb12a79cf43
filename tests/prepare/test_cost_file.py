"""A preparation says what it took, over interruptions and on GPUs."""

from dataclasses import replace

import pytest

from audiox_trainer.trainer.data.storage import open_store
from audiox_trainer.trainer.manifest.manifest_index import index_manifest
from audiox_trainer.trainer.prepare import make_block, prepare_files
from audiox_trainer.trainer.prepare.cost_file import COST_FILE, read_cost
from audiox_trainer.trainer.prepare.decode import EncoderSettings, decode_entry
from audiox_trainer.trainer.prepare.encode import encode_clips
from audiox_trainer.trainer.prepare.filters import FiltersConfig
from audiox_trainer.trainer.prepare.make_block import BlockJob, BlockMaker
from audiox_trainer.trainer.prepare.manifest_blocks import BLOCK_LINES, MIN_BLOCKS, make_plan
from tests.helpers.preparation import MODEL, manifest, sound

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forkserver")]


@pytest.fixture
def sounds(tmp_path):
    for i in range(4):
        sound(tmp_path / f"{i}.wav", 3.0)
    return manifest(tmp_path, *({"audio": f"{i}.wav"} for i in range(4)))


def prepared(tmp_path, sounds):
    return prepare_files.prepare_files(str(tmp_path / "out"), MODEL, sounds, seed=0, workers=1)


def test_it_adds_up_over_interruptions(tmp_path, sounds, monkeypatch, capfd):
    write, calls = prepare_files.write_record, []

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError("the disk is full")
        write(*arguments)

    monkeypatch.setattr(prepare_files, "write_record", stopped)
    with pytest.raises(OSError, match="the disk is full"):
        prepared(tmp_path, sounds)
    assert "core hours" in capfd.readouterr().err, "said once the first block is there"
    half = read_cost(open_store(str(tmp_path / "out")))
    assert half.taken.cores > 0 and half.taken.gpus == 0
    assert half.forecast.lines == 4 and half.forecast.effort.cores > 0
    monkeypatch.setattr(prepare_files, "write_record", write)
    whole = prepared(tmp_path, sounds)
    cost = read_cost(open_store(str(tmp_path / "out")))
    assert cost.forecast == half.forecast and cost.taken.cores > half.taken.cores
    assert whole.cost == f"took {cost.taken}, forecast {cost.forecast.effort}"
    assert prepared(tmp_path, sounds).cost == whole.cost, "a finished one says it again"


def test_a_lost_file_stops_nothing(tmp_path, sounds):
    prepared(tmp_path, sounds)
    (tmp_path / "out" / COST_FILE).unlink()
    assert prepared(tmp_path, sounds).cost == ""


def test_a_gpus_time_is_counted(tmp_path, sounds, monkeypatch):
    """The encoders' device is a GPU by name; they work on the CPU."""
    on_cpu = lambda encoders, batch: encode_clips(replace(encoders, device="cpu"), batch)  # noqa: E731
    monkeypatch.setattr(make_block, "encode_clips", on_cpu)
    index = index_manifest(sounds, BLOCK_LINES, MIN_BLOCKS)
    plan = make_plan(index, MODEL, FiltersConfig(), 0)
    job = BlockJob(plan, str(tmp_path / "out"), sounds, EncoderSettings(plan.codec, plan.video), decode_entry, 1)
    taken = {}
    for device in ("cpu", "cuda:1"):
        (made,) = BlockMaker(replace(job, encoders=replace(job.encoders, device=device)))(index.task(0))
        taken[device] = made.effort
    assert taken["cpu"].gpus == 0 < taken["cuda:1"].gpus and min(t.cores for t in taken.values()) > 0
