"""Batches from records: tasks and their conditions, dropout, random draws that depend on nothing but the index."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import xxhash

from audiox_trainer.models.encoders.build import build_text_encoder
from audiox_trainer.trainer.core.config import DataConfig, DropoutConfig
from audiox_trainer.trainer.core.rng import Purpose, sample_rng
from audiox_trainer.trainer.core.tasks import TASKS
from audiox_trainer.trainer.data.batches import BatchAssembler
from audiox_trainer.trainer.data.condition_draws import choose_task
from audiox_trainer.trainer.data.record import Record
from tests.helpers.reader_ranks import describe
from tests.helpers.small_config import small_config


def record(index=0, video=True, captions=("one bell", "a bell rings"), std=0.0, preceding=0):
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
        preceding=rng.standard_normal((preceding, 16)).astype(np.float16),
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
        with_video = int(video.flatten(1).any(1).sum())
        assert 10 <= with_video <= 30 if TASKS[task].mixture.video else with_video == 40 * TASKS[task].video
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

    @pytest.mark.parametrize("task", ["inpainting", "completion"])
    def test_mixtures_come_in_their_shares(self, small, task):
        """Text, video and what precedes the clip are drawn by themselves (Tables A.6 and A.7)."""
        texts, n, mixture = Texts(), 4000, TASKS[task].mixture
        batch = assemble(assembler(small.model, texts), task, n, preceding=5)
        found = Counter(
            zip(
                [text != TASKS[task].default_text for text in texts.texts],
                batch.conditions.video.flatten(1).any(1).tolist(),
                (~batch.given_mask.any(1)).tolist(),
                strict=True,
            )
        )
        shares = mixture.text, mixture.video, mixture.preceding
        for drawn in itertools.product((True, False), repeat=3):
            p = np.prod([share if yes else 1 - share for share, yes in zip(shares, drawn, strict=True)])
            assert abs(found[drawn] / n - p) <= 4 * (p * (1 - p) / n) ** 0.5, drawn
        assert (mixture.preceding > 0) == (task == "completion")

    def test_what_precedes_a_clip_ends_where_the_clip_begins(self, small):
        sample = record(preceding=5)
        batch = assemble(assembler(small.model), "completion", 40, preceding=5, std=0.5)
        whole = ~batch.given_mask.any(1)
        assert 10 <= whole.sum() <= 30
        expected = torch.zeros(8, 16)
        expected[3:] = torch.from_numpy(sample.preceding.astype(np.float32))
        assert (batch.conditions.audio[whole] == expected).all()
        own = batch.latents * batch.given_mask[:, :, None]
        assert torch.equal(batch.conditions.audio[~whole], own[~whole]), "else its own beginning, as without a pair"

    def test_a_clip_without_extras_draws_what_it_always_drew(self, small):
        """The digest was taken before there were mixtures."""
        make, state = assembler(small.model, dropout=DropoutConfig()), xxhash.xxh3_128()
        weights = dict.fromkeys(TASKS, 1.0)
        for index in range(400):
            drawn = make.choose(record(video=False), weights, 3, index)
            state.update(f"{drawn.task} {drawn.text} {drawn.video} {drawn.given_mask.tolist()} {drawn.null}".encode())
        assert state.hexdigest() == "0d84f9b77041d0769a198a5cbbc22f75"

    def test_extras_change_nothing_but_themselves(self, small):
        make, weights = assembler(small.model, dropout=DropoutConfig()), {"inpainting": 1.0, "completion": 1.0}
        counts = Counter()
        for index in range(200):
            plain = make.choose(record(video=False), weights, 3, index)
            extra = make.choose(record(preceding=5), weights, 3, index)
            counts.update(video=extra.video, preceding=extra.preceding)
            if extra.preceding:
                assert extra.task == "completion" and not extra.given_mask.any()
                extra = replace(extra, preceding=False, given_mask=plain.given_mask)
            assert torch.equal(extra.given_mask, plain.given_mask)
            assert replace(extra, video=False, given_mask=plain.given_mask) == plain
        assert 60 < counts["video"] < 110 and 25 < counts["preceding"] < 65

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
        for task in ("inpainting", "completion"):
            conditions = assemble(make, task, 9, preceding=8).conditions
            assert bool(conditions.audio.any()) == (name not in ("audio", "all"))
            assert bool(conditions.video.any()) == (name not in ("video", "all"))

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
        with pytest.raises(
            ValueError, match=r"'clip-0' serves none of the tasks T2A, V2A: no video, or no caption whose weight"
        ):
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
