"""From shards to batches: proportions, one order for every number of ranks, exact resume, damage."""

import gc
import itertools
import json
import os
import shutil
import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from audiox_trainer.trainer.core.tasks import TASKS
from audiox_trainer.trainer.data.reader import FIRST_NODES, global_indices
from audiox_trainer.trainer.data.shards import ShardError, ShardWriter
from audiox_trainer.trainer.data.streaming_library import World
from tests.helpers.launch_ranks import launch_ranks
from tests.helpers.read_records import read_records
from tests.helpers.reader_ranks import describe, open_reader, read
from tests.helpers.small_config import CLIPS, small_config

STEPS = 27  # three epochs of nine steps


@pytest.fixture(scope="module")
def uninterrupted(scenes):
    """The samples of one rank from the first step on: for each step index -> sample."""
    return read(small_config(scenes), 0, STEPS)


def open_files():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


class TestOrder:
    def test_an_epoch_takes_each_index_once_and_shuffles_anew(self, uninterrupted):
        assert all(sorted(step) == list(range(8)) for step in uninterrupted)
        epochs = [[row[0] for step in uninterrupted[i : i + 9] for row in step.values()] for i in (0, 9, 18)]
        assert epochs[0] != epochs[1] != epochs[2]
        distinct = {(row[0], row[3]) for step in uninterrupted for row in step.values()}
        assert len(distinct) > 0.9 * CLIPS  # ids repeat between the streams, latents do not

    def test_epochs_leave_no_file_open(self, scenes):
        """Each left four, and a run of some thousand epochs could open no more."""
        batches = open_reader(small_config(scenes)).batches(0)
        counts = []
        for _ in range(4):
            for _ in range(9):
                next(batches)
            counts.append(open_files())
        assert counts[1] == counts[2] == counts[3]

    def test_readers_leave_those_of_others_closed(self, scenes):
        """Each looks for a free name among all that are open on the machine."""
        readers, counts = [], [open_files()]
        for _ in range(5):
            readers.append(open_reader(small_config(scenes)))
            counts.append(open_files())
        added = [after - before for before, after in itertools.pairwise(counts)]
        assert added[1:] == added[1:2] * 4

    def test_tasks_come_in_their_proportions(self, scenes):
        config = small_config(scenes, "training.global_batch=72", "training.micro_batch=72")
        weights = {task: w for stream in config.data.streams for task, w in stream.tasks.items()}
        assert set(weights) == set(TASKS)
        batches = open_reader(config).batches(0)
        counts = Counter(task for _ in range(60) for task in next(batches).tasks)
        total = sum(counts.values())
        assert total == 4320
        expected = {task: total * w / sum(weights.values()) for task, w in weights.items()}
        chi_square = sum((counts[t] - expected[t]) ** 2 / expected[t] for t in TASKS)
        assert chi_square < 29.9, (counts, expected)  # exceeded once in 10,000 times with 7 degrees of freedom

    @pytest.mark.parametrize("start", [1, 8, 9, 13, 20])
    def test_resuming_gives_exactly_the_batches_to_come(self, scenes, uninterrupted, start):
        assert read(small_config(scenes), start, STEPS - start) == uninterrupted[start:]

    def test_another_seed_gives_another_order(self, scenes, uninterrupted):
        other = read(small_config(scenes, "training.seed=1"), 0, 1)[0]
        assert [row[0] for row in other.values()] != [row[0] for row in uninterrupted[0].values()]

    def test_canonical_nodes_of_unequal_length(self, scenes):
        """72 samples on 7 canonical nodes are padded to 77, one batch of four more than the epoch has."""
        config = small_config(scenes, "data.canonical_nodes=7", "training.global_batch=4")
        through = read(config, 0, 40)
        assert open_reader(config).steps_per_epoch == 18
        for start in (17, 18, 20):
            assert read(config, start, 40 - start) == through[start:]

    @pytest.mark.slow
    @pytest.mark.parametrize("ranks", [2, 4])
    def test_every_number_of_ranks_gets_the_same_samples_at_the_same_indices(
        self, scenes, uninterrupted, tmp_path, ranks
    ):
        start = 4  # and so resumed, across two epochs' ends
        arguments = [str(scenes), str(tmp_path / "rank"), str(start), str(STEPS - start), "training.micro_batch=2"]
        launch_ranks(ranks, "tests.helpers.reader_ranks", *arguments)
        found = [json.loads((tmp_path / f"rank.{rank}").read_text()) for rank in range(ranks)]
        for step in range(start, STEPS):
            rows = [{int(index): row for index, row in rank[step - start].items()} for rank in found]
            assert [len(r) for r in rows] == [8 // ranks] * ranks
            together = {index: row for r in rows for index, row in r.items()}
            assert together == uninterrupted[step]

    @pytest.mark.parametrize(
        ("batch", "nodes", "ranks"),
        [(8, 2, 2), (8, 4, 1), (8, 2, 4), (8, 8, 1), (8, 1, 8), (24, 3, 1), (24, 3, 4), (24, 6, 2), (24, 12, 1)],
    )
    def test_the_same_over_several_nodes(self, scenes, batch, nodes, ranks):
        """Nodes share no memory, so they are not simulated but asked for what each would get. 3, 6 and 12 nodes neither
        divide the eight canonical ones nor are multiples of them."""
        from streaming.base.batching import generate_work

        dataset = open_reader(small_config(scenes, f"training.global_batch={batch}")).dataset
        dataset._set_shuffle_block_size(World(1, 1, 1, 0))
        dataset.initial_physical_nodes = FIRST_NODES

        def order(nodes, ranks, workers):
            dataset.batch_size = batch // (nodes * ranks)
            # (nodes, ranks, workers, batches, samples of a batch); the workers of a rank take turns
            work = generate_work("random", dataset, World(nodes, ranks, workers, 0), 1, sample_in_epoch=batch)
            steps = [{} for _ in range(workers * work.shape[3])]
            for rank in range(nodes * ranks):
                world = World(nodes, ranks, workers, rank * workers)
                own = work[world.node, world.rank_of_node].swapaxes(0, 1).reshape(len(steps), -1)
                for step, samples in enumerate(own):
                    steps[step] |= dict(zip(global_indices(world, len(samples), 8), samples.tolist(), strict=True))
            return [[samples[index] for index in range(batch)] for samples in steps[: 72 // batch - 1]]

        assert order(nodes, ranks, 1) == order(nodes, ranks, 2) == order(1, 1, 1)

    @pytest.mark.slow
    def test_loader_processes_change_nothing(self, scenes, uninterrupted):
        assert read(small_config(scenes, "data.workers=2"), 5, 15) == uninterrupted[5:20]


def left_early(scenes):
    """A reader, and batches of which only one was taken."""
    reader = open_reader(small_config(scenes))
    reader.dataset.predownload = 1  # so that its threads wait for the reader, as with shards that are many
    batches = reader.batches(0)
    next(batches)
    return reader, batches


def test_an_epoch_that_is_left_early_leaves_no_thread(scenes):
    before = set(threading.enumerate())
    reader, batches = left_early(scenes)
    started = set(threading.enumerate()) - before
    assert started
    del batches, reader
    gc.collect()
    for thread in started:
        thread.join(timeout=5)
    assert not any(thread.is_alive() for thread in started)


def test_an_epoch_that_is_left_early_changes_nothing_in_the_next(scenes, uninterrupted):
    reader, batches = left_early(scenes)
    start = reader.steps_per_epoch
    others = reader.batches(start)
    found = [next(others)]
    del batches
    gc.collect()
    found += [next(others) for _ in range(start + 1, STEPS)]
    seed = reader.config.training.seed
    assert [describe(batch, seed, step) for step, batch in enumerate(found, start)] == uninterrupted[start:]


@pytest.fixture(scope="module")
def continued(scenes, tmp_path_factory):
    """The same scenes, of which every other one of music has a clip before it."""
    folder, config = tmp_path_factory.mktemp("continued") / "scenes", small_config(scenes)
    model = config.model
    for name in ("audio", "music"):
        with ShardWriter(folder / name, model.codec, model.text, model.video) as writer:
            for i, record in enumerate(read_records(scenes / name, model.video.dim)):
                rows = 0 if name == "audio" or i % 2 else 1 + i % 8
                rng = np.random.default_rng(i)
                writer.write(replace(record, preceding=rng.standard_normal((rows, 16)).astype(np.float16)))
    return folder


class TestCompletionPairs:
    OVERRIDES = ("data.streams.1.tasks.completion=2.0",)

    def test_a_resumed_reader_draws_them_again(self, scenes, continued):
        config = small_config(continued, *self.OVERRIDES)
        batches = open_reader(config).batches(0)
        read_batches = [next(batches) for _ in range(12)]
        pairs = [
            not given.any() and bool(audio.any())
            for batch in read_batches
            for given, audio in zip(batch.given_mask, batch.conditions.audio, strict=True)
        ]
        assert 5 <= sum(pairs) <= 40
        seed = config.training.seed
        rows = [describe(batch, seed, step) for step, batch in enumerate(read_batches)]
        assert read(config, 7, 5) == rows[7:]
        without = read(small_config(scenes, *self.OVERRIDES), 0, 12)
        changed = [
            a != b for x, y in zip(rows, without, strict=True) for a, b in zip(x.values(), y.values(), strict=True)
        ]
        assert changed == pairs, "what is no pair is as it was"

    @pytest.mark.slow
    def test_every_number_of_ranks_draws_the_same(self, continued, tmp_path):
        overrides = (*self.OVERRIDES, "training.micro_batch=2")
        launch_ranks(2, "tests.helpers.reader_ranks", str(continued), str(tmp_path / "rank"), "3", "6", *overrides)
        found = [json.loads((tmp_path / f"rank.{rank}").read_text()) for rank in range(2)]
        for step, expected in enumerate(read(small_config(continued, *overrides), 3, 6)):
            assert {int(index): row for rank in found for index, row in rank[step].items()} == expected


class TestDamage:
    @pytest.fixture
    def copy(self, scenes, tmp_path):
        return shutil.copytree(scenes, tmp_path / "copy")

    @pytest.mark.parametrize("taken", [0, 3])
    @pytest.mark.parametrize("damage", ["missing", "truncated"])
    def test_an_epoch_never_ends_early_in_silence(self, copy, taken, damage):
        batches = open_reader(small_config(copy)).batches(0)
        for _ in range(taken):
            next(batches)
        file = copy / "music" / "shard.00000.mds"
        file.unlink() if damage == "missing" else os.truncate(file, 2000)
        with pytest.raises(
            ShardError, match=r"epoch 0 ended after \d of 9 batches: .*music.shard\.00000\.mds (is|has)"
        ):
            for _ in range(9):
                next(batches)

    @pytest.mark.slow
    @pytest.mark.parametrize("taken", [0, 3])
    def test_nor_with_loader_processes(self, copy, taken):
        batches = open_reader(small_config(copy, "data.workers=2")).batches(0)
        for _ in range(taken):
            next(batches)
        (copy / "music" / "shard.00000.mds").unlink()
        with pytest.raises(ShardError, match=r"epoch 0 ended after \d of 9 batches: .*shard\.00000\.mds is missing"):
            for _ in range(9):
                next(batches)

    def test_a_shard_that_changes_after_it_was_compared_is_named(self, copy):
        """Once a sample of it cannot be decoded."""
        batches = open_reader(small_config(copy)).batches(0)
        for _ in range(3):
            next(batches)
        for file in copy.glob("*/*.mds"):
            with file.open("r+b") as shard:
                shard.seek(2000)
                shard.write(bytes(file.stat().st_size - 2000))
        with pytest.raises(ShardError, match=r"shard\.00000\.mds has changed"):
            for _ in range(9):
                next(batches)

    def test_damage_before_the_start_is_named(self, copy):
        file = copy / "music" / "shard.00000.mds"
        data = bytearray(file.read_bytes())
        data[-5] ^= 1
        file.write_bytes(data)
        open_reader(small_config(copy))  # sizes are right
        with pytest.raises(ShardError, match=r"shard\.00000\.mds has changed"):
            open_reader(small_config(copy, "data.verify_hashes=true"))
