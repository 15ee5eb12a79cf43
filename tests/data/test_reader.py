"""From shards to batches: proportions, one order for every number of ranks, exact resume, damage, tasks and dropout."""

import gc
import json
import os
import shutil
import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from audiox_trainer.models.encoders.build import build_text_encoder
from audiox_trainer.trainer.core.config import DataConfig, DropoutConfig
from audiox_trainer.trainer.core.rng import Purpose, sample_rng
from audiox_trainer.trainer.core.tasks import TASKS
from audiox_trainer.trainer.data.batches import BatchAssembler, choose_task
from audiox_trainer.trainer.data.reader import global_indices
from audiox_trainer.trainer.data.record import Record
from audiox_trainer.trainer.data.shards import ShardError
from audiox_trainer.trainer.data.streaming_library import World
from tests.helpers.launch_ranks import launch_ranks
from tests.helpers.reader_ranks import describe, open_reader, read
from tests.helpers.small_config import CLIPS, small_config

STEPS = 27  # three epochs of nine steps


@pytest.fixture(scope="module")
def uninterrupted(scenes):
    """The samples of one rank from the first step on: for each step index -> sample."""
    return read(small_config(scenes), 0, STEPS)


class TestOrder:
    def test_an_epoch_takes_each_index_once_and_shuffles_anew(self, uninterrupted):
        assert all(sorted(step) == list(range(8)) for step in uninterrupted)
        epochs = [[row[0] for step in uninterrupted[i : i + 9] for row in step.values()] for i in (0, 9, 18)]
        assert epochs[0] != epochs[1] != epochs[2]
        distinct = {(row[0], row[3]) for step in uninterrupted for row in step.values()}
        assert len(distinct) > 0.9 * CLIPS  # ids repeat between the streams, latents do not

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

    @pytest.mark.parametrize(("nodes", "ranks"), [(2, 2), (4, 1), (2, 4), (8, 1), (1, 8)])
    def test_the_same_over_several_nodes(self, scenes, nodes, ranks):
        """Nodes share no memory, so they are not simulated but asked for what each would get."""
        from streaming.base.batching import generate_work

        dataset = open_reader(small_config(scenes)).dataset
        dataset._set_shuffle_block_size(World(1, 1, 1, 0))

        def order(nodes, ranks):
            dataset.batch_size = 8 // (nodes * ranks)
            # (nodes, ranks, workers, batches, samples of a batch)
            work = generate_work("random", dataset, World(nodes, ranks, 1, 0), 1, sample_in_epoch=16)
            steps = [{} for _ in range(work.shape[3])]
            for rank in range(nodes * ranks):
                world = World(nodes, ranks, 1, rank)
                for step, samples in enumerate(work[world.node, world.rank_of_node, 0]):
                    steps[step] |= dict(zip(global_indices(world, len(samples)), samples.tolist(), strict=True))
            return [[samples[index] for index in range(8)] for samples in steps[:7]]

        assert order(nodes, ranks) == order(1, 1)

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

    def test_damage_before_the_start_is_named(self, copy):
        file = copy / "music" / "shard.00000.mds"
        data = bytearray(file.read_bytes())
        data[-5] ^= 1
        file.write_bytes(data)
        open_reader(small_config(copy))  # sizes are right
        with pytest.raises(ShardError, match=r"shard\.00000\.mds has changed"):
            open_reader(small_config(copy, "data.verify_hashes=true"))


def record(index=0, video=True, captions=("one bell", "a bell rings"), std=0.0):
    rng = np.random.default_rng(index)
    return Record(
        id=f"clip-{index}",
        domain="audio",
        latent_mean=rng.standard_normal((8, 16)).astype(np.float16),
        latent_std=np.full((8, 16), std, np.float16),
        image=rng.standard_normal((4 if video else 0, 16)).astype(np.float16),
        motion=rng.standard_normal((8 if video else 0, 16)).astype(np.float16),
        captions=list(captions),
        annotation={},
        seconds=2.0,
    )


class Texts:
    """A text encoder that remembers what it was given."""

    def __call__(self, texts):
        self.texts = texts
        return torch.ones(len(texts), 8, 32), torch.ones(len(texts), dtype=torch.int64)


def assembler(model, encode=None, dropout=None, **data):
    off = DropoutConfig(0.0, 0.0, 0.0, 0.0)
    config = replace(DataConfig(small_config().data.streams), dropout=dropout or off, **data)
    return BatchAssembler(model, config, encode or Texts(), seed=0)


def assemble(assembler, task, count, **changes):
    """`count` samples of one task, each at its own index."""
    return assembler([record(**changes)] * count, [{task: 1.0}] * count, 0, range(count))


class TestConditions:
    @pytest.mark.parametrize("task", TASKS)
    def test_what_each_task_gives(self, small, task):
        texts = Texts()
        batch = assemble(assembler(small.model, texts), task, 40)
        video, audio, _, _ = batch.conditions.tensors()
        assert batch.latents.shape == (40, 8, 16) and video.shape == (40, 8, 16) and audio.shape == (40, 8, 16)
        assert bool(video.any()) == (TASKS[task].video)
        assert bool(audio.any()) == (task in ("inpainting", "completion"))
        given = Counter(texts.texts)
        if TASKS[task].text:
            assert given.keys() == {"one bell", "a bell rings"}
        elif TASKS[task].video:
            assert given.keys() == {TASKS[task].default_text}
        else:
            assert given.keys() == {"one bell", "a bell rings", TASKS[task].default_text}
            assert 10 <= given[TASKS[task].default_text] <= 30

    def test_holes(self, small):
        model = replace(small.model, codec=replace(small.model.codec, frames=100))
        make = assembler(model, inpainting_hole=(0.2, 0.6))
        masks = torch.stack([make.draw_given_mask("inpainting", np.random.default_rng(i)) for i in range(500)])
        assert set(masks.unique().tolist()) == {0, 1}
        holes = (masks == 0).sum(1)
        assert 20 <= holes.min() <= 22 and 58 <= holes.max() <= 60 and abs(holes.float().mean() - 40) < 2
        edges = masks.diff(dim=1, prepend=torch.ones(500, 1), append=torch.ones(500, 1))
        assert ((edges != 0).sum(1) == 2).all(), "a hole is one piece"
        assert (masks[:, 0] == 0).any() and (masks[:, -1] == 0).any()

    def test_prefixes(self, small):
        model = replace(small.model, codec=replace(small.model.codec, frames=100))
        make = assembler(model, completion_prefix=(0.3, 0.6))
        masks = torch.stack([make.draw_given_mask("completion", np.random.default_rng(i)) for i in range(500)])
        lengths = masks.sum(1).long()
        assert 30 <= lengths.min() <= 31 and 59 <= lengths.max() <= 60 and abs(lengths.float().mean() - 45) < 1.5
        assert all(m[:n].all() and not m[n:].any() for m, n in zip(masks, lengths, strict=True))

    @pytest.mark.parametrize("task", ["inpainting", "completion"])
    def test_what_is_given_is_the_sound_itself(self, small, task):
        batch = assemble(assembler(small.model), task, 30, std=0.5)
        given = batch.conditions.audio.any(-1)
        assert torch.equal(batch.conditions.audio, batch.latents * given[..., None])
        assert given.any(1).all() and not given.all(1).any()

    def test_dropout(self, small):
        texts, n = Texts(), 6000
        make = assembler(small.model, texts, DropoutConfig(text=0.3, video=0.2, audio=0.1, all=0.05))
        video = assemble(make, "TV2A", n).conditions.video
        no_text = torch.tensor([text == "" for text in texts.texts])
        no_video = ~video.flatten(1).any(1)
        no_audio = ~assemble(make, "completion", n).conditions.audio.flatten(1).any(1)

        def near(share, p):
            return abs(share.float().mean() - p) < 4 * (p * (1 - p) / n) ** 0.5

        assert near(no_text, 1 - 0.7 * 0.95) and near(no_video, 1 - 0.8 * 0.95) and near(no_audio, 1 - 0.9 * 0.95)
        assert near(no_text & no_video, 0.05 + 0.95 * 0.3 * 0.2)

    @pytest.mark.parametrize("name", ["text", "video", "audio", "all"])
    def test_dropout_of_one_condition_always(self, small, name):
        texts = Texts()
        dropout = replace(DropoutConfig(0.0, 0.0, 0.0, 0.0), **{name: 1.0})
        make = assembler(small.model, texts, dropout)
        assert bool(assemble(make, "TV2A", 9).conditions.video.any()) == (name not in ("video", "all"))
        assert all((text == "") == (name in ("text", "all")) for text in texts.texts)
        assert bool(assemble(make, "inpainting", 9).conditions.audio.any()) == (name not in ("audio", "all"))

    def test_images_are_added_to_the_motion_that_is_nearest_in_time(self, small):
        sample = record()
        video = assembler(small.model).video(sample)
        image, motion = sample.image.astype(np.float32), sample.motion.astype(np.float32)
        # Two motion features to an image.
        expected = torch.from_numpy(image.repeat(2, axis=0) + motion)
        assert torch.equal(video, expected.half())

    def test_a_record_serves_what_it_can(self):
        weights = {"T2A": 1.0, "V2A": 1.0, "TV2A": 1.0, "inpainting": 1.0}

        def served(**changes):
            return {choose_task(record(**changes), weights, np.random.default_rng(i)) for i in range(60)}

        assert served() == set(weights)
        assert served(video=False) == {"T2A", "inpainting"}
        assert served(captions=()) == {"V2A", "inpainting"}
        assert served(video=False, captions=()) == {"inpainting"}
        with pytest.raises(ValueError, match=r"'clip-0' serves none of the tasks T2A, V2A: no caption or no video"):
            choose_task(record(video=False, captions=()), {"T2A": 1.0, "V2A": 1.0}, np.random.default_rng(0))

    def test_a_batch_is_cut_into_micro_batches(self, small):
        make = assembler(small.model, build_text_encoder(small.model.text))
        batch = make([record(i) for i in range(6)], [{"T2A": 1.0, "V2A": 1.0}] * 6, 3, range(6))
        parts = batch.split(2)
        assert [len(part) for part in parts] == [2, 2, 2]
        whole = describe(batch, 0, 3)
        assert {index: row for part in parts for index, row in describe(part, 0, 3).items()} == whole


class TestRandomness:
    def test_numbers_belong_to_seed_step_index_and_purpose(self):
        draws = {
            (seed, step, index, purpose): tuple(sample_rng(seed, step, index, purpose).random(4))
            for seed in (0, 1)
            for step in (0, 1, 70_000)
            for index in (0, 1, 239)
            for purpose in Purpose
        }
        assert len(set(draws.values())) == len(draws) == 18 * len(Purpose)
        assert draws[1, 70_000, 239, Purpose.NOISE] == tuple(sample_rng(1, 70_000, 239, Purpose.NOISE).random(4))

    def test_neighbours_are_independent(self):
        rows = np.stack([sample_rng(0, s, p, Purpose.NOISE).standard_normal(2000) for s in (0, 1) for p in (0, 1)])
        off_diagonal = np.corrcoef(rows)[~np.eye(4, dtype=bool)]
        assert np.abs(off_diagonal).max() < 0.1

    def test_latents_are_drawn_from_their_mean_and_deviation(self, small):
        make, sample, n = assembler(small.model), record(std=0.5), 800
        drawn = make([sample] * n, [{"T2A": 1.0}] * n, 5, range(n)).latents
        mean = torch.from_numpy(sample.latent_mean.astype(np.float32))
        assert (drawn.mean(0) - mean).abs().max() < 5 * 0.5 / n**0.5
        assert abs(drawn.std(0).mean() - 0.5) < 0.02
        again = make([sample], [{"V2A": 1.0}], 5, [7]).latents[0]
        assert torch.equal(again, drawn[7]), "whatever the task and the rank"
        assert not torch.equal(make([sample], [{"T2A": 1.0}], 6, [7]).latents[0], drawn[7])
        exact = make([record(std=0.0)], [{"T2A": 1.0}], 5, [0]).latents[0]
        assert torch.equal(exact, mean)
