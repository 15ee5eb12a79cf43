"""A clip of music keeps what precedes it in its own file, from the cut of a long file to the batch."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from audiox_trainer.models.config import CodecConfig
from audiox_trainer.trainer.data.record import Record
from audiox_trainer.trainer.manifest.completion_pairs import CompletionPairs
from audiox_trainer.trainer.manifest.manifest import parse_entry
from audiox_trainer.trainer.prepare import prepare_files as module
from audiox_trainer.trainer.prepare.prepare_files import prepare_files
from audiox_trainer.trainer.stages.curate import segment_manifest
from audiox_trainer.trainer.stages.segment import Segmentation
from audiox_trainer.trainer.stages.stage import StageWorkers
from tests.helpers.preparation import contents, manifest, sound
from tests.helpers.read_records import read_records
from tests.helpers.reader_ranks import describe, open_reader
from tests.helpers.small_config import small_config

CODEC = CodecConfig("logmel", sample_rate=8000, audio_channels=1, hop=2048, frames=8, latent_channels=16)  # 2.048 s
ROWS = np.empty((0, 16), np.float32)


def pairs_of(tmp_path, *lines):
    """The number of frames before each clip. A line: its keys, the start of its clip in it, and the clip's seconds."""
    pairs, found = CompletionPairs(CODEC), []
    for number, (keys, start, seconds) in enumerate(lines, start=1):
        entry = parse_entry("a line", tmp_path, number, {"audio": "a.wav", "domain": "music", **keys})
        latents = np.full((8, 16), number, np.float32)
        source = {"source": {"audio": entry.name, "start": entry.start + start}}
        record = Record(str(number), entry.domain, latents, latents, ROWS, ROWS, [], source, seconds)
        made = pairs.add_preceding(entry, record)
        assert set(np.unique(made.preceding)) <= {number - 1}
        assert replace(made, preceding=record.preceding) == record
        found.append(len(made.preceding))
    return found


def test_clips_of_a_line_and_of_lines_that_adjoin(tmp_path):
    whole = {"start": 0.0, "end": 4.2}
    assert pairs_of(tmp_path, (whole, 0.0, 2.048), (whole, 2.048, 2.048), ({"start": 4.2}, 0.0, 1.0)) == [0, 8, 8]


def test_of_a_short_clip_only_what_sounds(tmp_path):
    """A frame is 0.256 s."""
    assert pairs_of(tmp_path, ({}, 0.0, 1.0), ({"start": 1.0}, 0.0, 2.048)) == [0, 3]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"start": 2.4}),  # something is missing between them
        ({}, {"start": 1.5}),  # they overlap
        ({}, {"audio": "b.wav", "start": 2.048}),
        ({"start": 2.048}, {}),  # not in order
        ({"domain": "audio"}, {"domain": "audio", "start": 2.048}),  # no task is given what precedes
    ],
)
def test_clips_that_are_no_pair(tmp_path, first, second):
    assert pairs_of(tmp_path, (first, 0.0, 2.048), (second, 0.0, 2.048)) == [0, 0]


def stem(number, start, name="vocals", audio="/songs/a.wav", keys=()):
    """A line as `separate` writes it, with other keys, and its clip."""
    source = {"audio": audio, "start": start, "end": start + 2.048, "stem": name, "model": "htdemucs"}
    return {"audio": f"stems/000000/{number:09d}.{name}.flac", "separated": source, **dict(keys)}, 0.0, 2.048


def test_stems_of_one_recording(tmp_path):
    assert pairs_of(tmp_path, stem(1, 0.0), stem(2, 2.048), stem(3, 4.096)) == [0, 8, 8]


def test_stems_of_one_film(tmp_path):
    """They begin with silence, and keep their start."""
    starts = (0.0, 2.048, 4.096)
    lines = [stem(i, start, keys={"video": "film.mp4", "start": start}) for i, start in enumerate(starts)]
    assert pairs_of(tmp_path, *lines) == [0, 8, 8]


@pytest.mark.parametrize(
    "second", [stem(2, 2.048, "drums"), stem(2, 2.048, audio="/songs/b.wav"), stem(2, 3.0), stem(2, 0.0)]
)
def test_stems_that_are_no_pair(tmp_path, second):
    """Another stem, another recording, something missing between them, and the same moment."""
    assert pairs_of(tmp_path, stem(1, 0.0), second) == [0, 0]


@pytest.mark.parametrize(
    "odd", [7, "yes", None, [1], {}, {"audio": 3, "stem": "x", "start": 9}, {"audio": "x", "stem": "y", "start": "9"}]
)
def test_a_key_of_that_name_that_is_of_no_stem(tmp_path, odd):
    lines = ({"separated": odd}, 0.0, 2.048), ({"separated": odd, "start": 2.048}, 0.0, 2.048)
    assert pairs_of(tmp_path, *lines) == [0, 8]


@pytest.mark.slow
def test_from_a_long_file_to_a_batch(tmp_path, monkeypatch, forkserver):
    monkeypatch.setattr(module, "MIN_BLOCKS", 3)  # so that a block of this short manifest has several lines
    rng, config = np.random.default_rng(0), small_config()
    for name, seconds in (("song.flac", 15.0), ("other.flac", 12.0), ("dog.flac", 9.0)):
        sound(tmp_path / name, wave=0.3 * rng.standard_normal(round(seconds * 8000)))
    music = {"domain": "music", "captions": ["a song"]}
    path = manifest(tmp_path, {"audio": "song.flac", **music}, {"audio": "other.flac", **music}, {"audio": "dog.flac"})
    for workers, name in ((1, "one"), (2, "two")):
        clips = tmp_path / "cut" / f"{name}.jsonl"
        segment_manifest(path, clips, Segmentation(3.0), StageWorkers(workers))
        prepare_files(str(tmp_path / name), config.model, clips, 0, workers)
    assert (tmp_path / "cut/one.jsonl").read_bytes() == (tmp_path / "cut/two.jsonl").read_bytes()
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    report = json.loads((tmp_path / "one/prepare_report.json").read_text())

    records = read_records(tmp_path / "one/music", 16)
    starts = [record.annotation["source"]["start"] for record in records]
    assert starts == pytest.approx([t + x for end in (15, 12) for t in range(0, end, 3) for x in (0, 2.048)])
    # 12 lines are 3 blocks of 4 lines: what precedes a block is not known in it.
    firsts = {0, 8, 10, 16}
    for i, record in enumerate(records):
        frames = 0 if i in firsts else 8 if i % 2 else 3  # a line's second clip has 0.952 s
        assert record.preceding.shape == (frames, 16)
        if frames:
            assert np.array_equal(record.preceding, records[i - 1].latent_mean[:frames])
    assert report["counts"]["with what precedes it"] == {"audio": 0, "music": len(records) - len(firsts)}
    assert not any(len(record.preceding) for record in read_records(tmp_path / "one/audio", 16))

    stream = json.dumps([{"path": str(tmp_path / "one/music"), "tasks": {"completion": 1.0}}])
    config = small_config(None, f"data.streams={stream}", "data.dropout.all=0", "data.dropout.audio=0")
    before = {record.id: record.preceding for record in records}
    batches = open_reader(config).batches(0)
    read = [next(batches) for _ in range(6)]
    paired = 0
    for batch in read:
        for sample, audio, given in zip(batch.ids, batch.conditions.audio, batch.given_mask, strict=True):
            if not given.any():
                paired += 1
                rows = torch.from_numpy(before[sample].astype(np.float32))
                assert len(rows) and torch.equal(audio[8 - len(rows) :], rows) and not audio[: 8 - len(rows)].any()
    assert 8 <= paired <= 32  # of 48, half of those that have a clip before them
    resumed = open_reader(config).batches(4)
    for step in (4, 5):
        assert describe(next(resumed), 0, step) == describe(read[step], 0, step)
