"""Damage outside the ranks: loader processes, shared memory, ports, conversions, and which checkpoints stay."""

import errno
import gc
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from filelock import FileLock

from audiox_trainer.models.audiox import AudioX
from audiox_trainer.trainer.checkpoint import load, save
from audiox_trainer.trainer.checkpoint.load import NoUsableCheckpointError
from audiox_trainer.trainer.core import files, integrity
from audiox_trainer.trainer.core.cli import ExitCode, exit_code_of
from audiox_trainer.trainer.data import reader as reader_module
from audiox_trainer.trainer.data.reader import LoaderError
from audiox_trainer.trainer.data.shards import ShardError, check_shards
from tests.helpers.reader_ranks import open_reader
from tests.helpers.slurm import alone, not_alone
from tests.helpers.small_config import ROOT, small_config, small_distill_config, small_json
from tests.helpers.warm_python import python


@pytest.fixture
def group():
    """A process group with one rank, this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def save_checkpoint(run: Path, step: int, keep: int = 0, keep_every: int = 0) -> Path:
    """A checkpoint of one file, renamed when complete like a run's."""
    folder = run / load.FOLDER / f"step_{step:08d}"
    unfinished = folder.with_name(folder.name + ".partial")
    file = unfinished / "model" / "rank_00000.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(np.random.default_rng(step).bytes(5000))
    manifest = {"step": step, "files": {"model/rank_00000.safetensors": integrity.file_entry(file)}}
    save._commit(folder, manifest, keep, keep_every)
    return folder


def flip(file: Path, at: int, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1 << bit
    file.write_bytes(data)


class TestCheckpoints:
    @pytest.mark.parametrize(
        ("keep", "keep_every", "left"), [(3, 0, [8, 9, 10]), (2, 4, [4, 8, 9, 10]), (0, 0, list(range(1, 11)))]
    )
    def test_the_last_ones_and_every_nth_are_kept(self, tmp_path, group, keep, keep_every, left):
        for step in range(1, 11):
            save_checkpoint(tmp_path, step, keep, keep_every)
        assert [load.step_of(f) for f in reversed(load.list_checkpoints(tmp_path))] == left
        assert not list((tmp_path / load.FOLDER).glob("*.partial"))

    def test_the_first_after_each_multiple_is_kept_where_a_round_ends(self, tmp_path, group):
        """A distillation's saves as the loop makes them: due at every tenth step, made where a round of 7 ends."""
        config = small_distill_config(None, "training.steps=200")
        due, saved = False, []
        for update in range(config.cycle.total_updates(200)):
            due = due or (update + 1) % 10 == 0
            if due and config.cycle.ends_round(update):
                save_checkpoint(tmp_path, update + 1, keep=1, keep_every=50)
                due, saved = False, [*saved, update + 1]
        expected = [next(step for step in saved if step >= multiple) for multiple in range(50, saved[-1] + 1, 50)]
        assert expected[:2] == [52, 101], "no multiples themselves"
        found = [load.step_of(f) for f in reversed(load.list_checkpoints(tmp_path))]
        assert found == sorted({*expected, saved[-1]})

    @pytest.mark.parametrize("content", [None, "", "{", '{"step": "x"}', '{"step": 2}', "[]"])
    def test_what_is_there_counts_whatever_latest_says(self, tmp_path, group, content):
        save_checkpoint(tmp_path, 2)
        newest = save_checkpoint(tmp_path, 4)
        latest = tmp_path / load.LATEST
        latest.unlink()
        if content is not None:
            latest.write_text(content)
        assert load.newest_intact(tmp_path, pytest.fail) == newest

    def test_a_checkpoint_that_latest_knows_and_that_is_gone_is_named(self, tmp_path, group):
        before = save_checkpoint(tmp_path, 2)
        shutil.rmtree(save_checkpoint(tmp_path, 4))
        heard: list[str] = []
        assert load.newest_intact(tmp_path, heard.append) == before
        assert heard == [f"{tmp_path / load.LATEST}: step 4 was saved last, and its checkpoint is gone"]

    @pytest.mark.parametrize("content", ['{"step": 4}', "", "{"])
    def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew(self, tmp_path, group, content):
        save_checkpoint(tmp_path, 4)
        shutil.rmtree(tmp_path / load.FOLDER)
        (tmp_path / load.LATEST).write_text(content)
        with pytest.raises(
            NoUsableCheckpointError, match="it was saved, and its checkpoints are gone; restore"
        ) as caught:
            load.newest_intact(tmp_path, lambda text: None)
        assert exit_code_of(caught.value) == ExitCode.CORRUPT

    def test_every_flipped_bit_is_found(self, tmp_path, group):
        folder, rng = save_checkpoint(tmp_path, 1), np.random.default_rng(0)
        file = folder / "model" / "rank_00000.safetensors"
        for _ in range(100):
            at, bit = int(rng.integers(5000)), int(rng.integers(8))
            flip(file, at, bit)
            assert load.find_fault(folder) == f"{file} has changed: its hash is not the manifest's"
            flip(file, at, bit)
        assert load.find_fault(folder) == ""

    def test_one_that_is_made_again_never_stands_half(self, tmp_path, group, monkeypatch):
        """A run that went back saves a step again: the former checkpoint loses its name before it is removed."""
        save_checkpoint(tmp_path, 1)
        removed, remove = [], shutil.rmtree
        monkeypatch.setattr(files.shutil, "rmtree", lambda folder: (removed.append(folder.name), remove(folder)))
        newest = save_checkpoint(tmp_path, 1)
        assert removed == ["step_00000001.old.partial"] and load.find_fault(newest) == ""
        assert [f.name for f in (tmp_path / load.FOLDER).iterdir()] == ["step_00000001"]

    @pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
    def test_what_cannot_be_read_is_passed_over(self, tmp_path, group, monkeypatch, number):
        before, newest, heard = save_checkpoint(tmp_path, 1), save_checkpoint(tmp_path, 2), []

        def read(file, **named):
            if file.is_relative_to(newest):
                raise OSError(number, os.strerror(number), str(file))
            return files.hash_file(file, **named)

        monkeypatch.setattr(integrity, "hash_file", read)
        assert load.newest_intact(tmp_path, heard.append) == before
        file = newest / "model" / "rank_00000.safetensors"
        reason = f"{file} cannot be read: {os.strerror(number).lower()}"
        assert heard == [f"skipped a damaged checkpoint: {reason}"]

    def test_a_manifest_that_cannot_be_read_is_passed_over(self, tmp_path, group):
        before, newest, heard = save_checkpoint(tmp_path, 1), save_checkpoint(tmp_path, 2), []
        (newest / "manifest.json").unlink()
        (newest / "manifest.json").symlink_to("/proc/self/mem")  # whose first byte is an input/output error
        assert load.newest_intact(tmp_path, heard.append) == before
        assert "manifest.json cannot be read: input/output error" in heard[0]
        assert load.newest_manifest(tmp_path)["step"] == 1

    def test_a_gpu_that_fails_in_a_save_may_go_well_another_time(self, group):
        for error, code in (
            (torch.AcceleratorError("CUDA error: uncorrectable ECC"), ExitCode.HUNG),
            (OSError("no space left"), ExitCode.FAILED),
        ):

            def act(error=error):
                raise error

            with pytest.raises(OSError, match=f"could not save: rank 0: {error}") as caught:
                load.on_all_ranks("could not save", act)
            assert exit_code_of(caught.value) is code

    def test_of_many_ranks_that_cannot_write_eight_are_named(self, monkeypatch):
        """Each of 512 would print what all have said."""
        said = [(None, f"rank {rank}: no space left", ExitCode.FAILED) for rank in range(512)]
        monkeypatch.setattr(load.dist, "get_world_size", lambda: len(said))
        monkeypatch.setattr(load.dist, "all_gather_object", lambda gathered, _: gathered.__setitem__(slice(None), said))
        with pytest.raises(OSError, match=r"rank 7: no space left and 504 more$"):
            load.on_all_ranks("could not save", lambda: None)


class TestShards:
    def test_every_flipped_bit_is_found(self, scenes, tmp_path):
        folder, rng = shutil.copytree(scenes / "music", tmp_path / "music"), np.random.default_rng(0)
        shards = sorted(folder.glob("*.mds"))
        for _ in range(100):
            file = shards[int(rng.integers(len(shards)))]
            at, bit = int(rng.integers(file.stat().st_size)), int(rng.integers(8))
            flip(file, at, bit)
            with pytest.raises(ShardError, match=f"{file.name} has changed"):
                check_shards(folder, hashes=True)
            flip(file, at, bit)
        check_shards(folder, hashes=True)

    @pytest.mark.slow
    def test_a_killed_loader_process_is_named(self, scenes):
        reader = open_reader(small_config(scenes, "data.workers=2"))
        samples = reader.samples(0)
        next(samples)
        time.sleep(1)  # they are idle then: who dies with a lock in hand leaves the reader to a run's watchdog
        for worker in multiprocessing.active_children():
            worker.kill()
        with pytest.raises(LoaderError, match=r"ended after \d of 9 batches: DataLoader worker .*(killed|exited)") as e:
            for _ in range(8):
                next(samples)
        assert exit_code_of(e.value) == ExitCode.HUNG, "it may go well another time"


class TestSharedMemory:
    def test_a_neighbours_survives(self, scenes, tmp_path):
        neighbour = open_reader(small_config(scenes))
        batches = neighbour.batches(0)
        next(batches)
        theirs = set(reader_module.SHARED_MEMORY.glob(f"{neighbour.dataset._shm_prefix_int:06}_*"))
        ours = open_reader(small_config(shutil.copytree(scenes, tmp_path / "ours")))
        assert ours.dataset._shm_prefix_int != neighbour.dataset._shm_prefix_int
        next(ours.batches(0))
        del ours
        gc.collect()
        assert theirs and all(file.exists() for file in theirs)
        for _ in range(12):
            next(batches)

    def test_jobs_name_theirs_one_after_the_other(self, scenes, tmp_path, monkeypatch):
        """Streaming finds a free name and then takes it: meanwhile another job would find the same name."""
        monkeypatch.setattr(reader_module, "_lock_file", lambda: tmp_path / "turn")
        with ThreadPoolExecutor(1) as other:
            with FileLock(tmp_path / "turn"):
                opening = other.submit(open_reader, small_config(scenes))
                assert not wait([opening], timeout=1).done
            assert next(opening.result(60).batches(0)).latents.isfinite().all()

    def test_a_job_that_takes_for_ever_is_not_waited_for(self, scenes, tmp_path, monkeypatch):
        monkeypatch.setattr(reader_module, "_lock_file", lambda: tmp_path / "turn")
        monkeypatch.setattr(reader_module, "LOCK_PATIENCE", 0.1)
        with FileLock(tmp_path / "turn", is_singleton=False), ThreadPoolExecutor(1) as other:
            assert other.submit(open_reader, small_config(scenes)).result(60).steps_per_epoch > 0

    @pytest.mark.long
    @pytest.mark.skipif(bool(not_alone()), reason=not_alone())
    @pytest.mark.parametrize(("name", "times"), [("000001_cache_usage", 1024), ("000001_shard_access_times", 2)])
    def test_what_another_left_is_neither_used_nor_removed(self, name, times, scenes, tmp_path):
        """Segments that killed jobs left, in a /dev/shm that no other job sees: streaming takes the number 1, whose
        other name is free. One of them is smaller than what streaming wants of it."""
        left = (
            "import sys; from pathlib import Path\n"
            "from tests.helpers.reader_ranks import open_reader; from tests.helpers.small_config import small_config\n"
            "config = small_config(Path(sys.argv[1]))\n"
            f"segments = [Path('/dev/shm', name) for name in ('000000_barrier', {name!r})]\n"
            f"for segment in segments: segment.write_bytes(b'left' * {times})\n"
            "try:\n"
            "    open_reader(config)\n"
            "except ValueError as error:\n"
            "    print(error)\n"
            f"assert all(segment.read_bytes()[8:] == b'left' * ({times} - 2) for segment in segments)\n"
            "for segment in segments: segment.unlink()\n"
            "next(open_reader(config).batches(0))\n"
            "print('reads')\n"
        )
        first, last = alone(left, scenes, tmp_path)
        assert f"/dev/shm/{name}: shared memory of another job" in first and "/dev/shm/000001_*" in first
        assert last == "reads"


@pytest.mark.slow
def test_a_taken_port_is_named(scenes, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(small_json(scenes)))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        command = [*python(), "launch/pretrain.py", "--config", str(tmp_path / "run.json")]
        done = subprocess.run(
            [*command, "--output", str(tmp_path / "run")],
            cwd=ROOT,
            env=os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            capture_output=True,
            text=True,
            timeout=600,
        )
    assert done.returncode == ExitCode.FAILED
    assert f"127.0.0.1:{port}: another program has the port: set another MASTER_PORT" in done.stderr


@pytest.mark.slow
def test_an_export_that_is_killed_leaves_no_weights(scenes, tmp_path):
    run, out = tmp_path / "run", tmp_path / "weights"
    (tmp_path / "run.json").write_text(json.dumps(small_json(scenes, "training.steps=2")))
    subprocess.run(
        [*python(), "launch/pretrain.py", "--config", str(tmp_path / "run.json"), "--output", str(run)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=600,
    )
    kill = (
        "import os, signal; from pathlib import Path; from audiox_trainer.models.audiox import AudioX\n"
        "def half(self, folder):\n"
        "    (folder / 'model.safetensors').write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "AudioX.save_pretrained = half\n"
        "from audiox_trainer.trainer.checkpoint.convert_run import convert_run\n"
        f"convert_run(Path({str(run)!r}), Path({str(out)!r}))"
    )
    killed = subprocess.run([*python(), "-c", kill], cwd=ROOT, capture_output=True, timeout=600)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not out.exists()
    again = [*python(), "launch/convert.py", str(run), "--out", str(out)]
    subprocess.run(again, cwd=ROOT, check=True, capture_output=True, timeout=600)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "run.json", "weights"], "no half of one either"
    expected = load.full_tensors(run / "checkpoints" / "step_00000002", "model", "ema")
    found = AudioX.from_pretrained(out).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
