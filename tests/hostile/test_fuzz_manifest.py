"""Manifests that are nearly right: each is refused with its line, or all that follows from it can be made."""

import json
import math
import os

import jsonschema
import numpy as np
import pytest

from audiox_trainer.trainer.core.addresses import ADDRESS, address_problem
from audiox_trainer.trainer.core.credentials import PATTERNS
from audiox_trainer.trainer.data.record import Record, to_columns, validate
from audiox_trainer.trainer.manifest.annotation_captions import annotation_captions
from audiox_trainer.trainer.manifest.manifest import clip_annotation, line_schema, raw_lines, read_entries
from audiox_trainer.trainer.media.source import MediaError, open_media
from tests.helpers.fuzzing import both, changed_bytes, changed_json, refusal
from tests.helpers.preparation import MODEL

GOOD = [
    {"audio": "wav/0001.wav", "captions": ["a dog barks twice"], "category": {"dog": 2, "rain": None}},
    {"audio": "a.wav", "video": "a.mp4", "SED": [{"start": 0.4, "end": 1.2, "event": "dog"}], "time_relation": "dog"},
    {"audio": "b.wav", "captions": [{"text": "a", "source": "s", "kind": "count"}], "SED": [{"00:01-00:02": "dog"}]},
    {"video": "f.mkv", "start": 30, "end": 50, "domain": "music", "genre": "jazz", "instruments": ["harp"], "tempo": 9},
    {
        "audio": "https://host/7.ogg?token=s3cr3tValue",
        "caption": "Waves.",
        "mood": "calm",
        "domain": "music",
        "my": [1],
    },
]
REASONS = (
    "not JSON",
    "did you mean",
    "expected",
    "neither",
    "belongs to music",
    "must be above",
    "is not read",
    "nested",
    "half a character",
)


def check(entries, path):
    """What a manifest has to be that was accepted, and what later steps make of each line."""
    rows = raw_lines(path, entries, path.parent / "elsewhere")
    lines = [line for line in path.read_bytes().splitlines() if line.strip()]
    assert len(entries) == len(rows) == len(lines)
    for entry, row, line in zip(entries, rows, lines, strict=True):
        jsonschema.Draft202012Validator(line_schema()).validate(json.loads(line.decode("utf-8-sig")))
        assert entry.domain in ("audio", "music") and 0 <= entry.start < math.inf
        assert entry.end is None or entry.start < entry.end < math.inf
        for place in (entry.audio, entry.video):
            if place and ADDRESS.match(place):
                assert not address_problem(place)
            elif place:
                assert os.path.isabs(place) and "\0" not in place
                with pytest.raises(MediaError), open_media(place):
                    pass
        assert not ADDRESS.match(entry.name) or not any(
            p.search(entry.name.replace("[redacted]", "")) for p in PATTERNS
        )
        json.dumps(row).encode()
        for start, seconds, whole in ((0.0, 2.0, True), (1.0, 0.5, False)):
            notes = clip_annotation(entry, start, seconds, whole)
            captions = list(annotation_captions(entry.captions, notes, np.random.default_rng(0), entry.origins))
            latent, nothing = np.zeros((32, 128), np.float32), np.zeros((0, 64), np.float32)
            record = Record("line-1", entry.domain, latent, latent, nothing, nothing, captions, notes, seconds)
            columns = to_columns(validate(record, MODEL.codec, MODEL.video))
            for text in (*captions, entry.name, json.dumps(columns["annotation"], ensure_ascii=False)):
                text.encode()  # in shards, reports and for a text encoder


@both
@pytest.mark.parametrize("good", GOOD, ids=range(len(GOOD)))
def test_values(fuzzer, share, tmp_path, good):
    path = tmp_path / "clips.jsonl"

    def attempt(value):
        path.write_text(json.dumps(value) + "\n")
        return read(path)

    assert all(fuzzer.run("manifest, values", changed_json(good), 100 * share, attempt))


@both
def test_bytes(fuzzer, share, tmp_path):
    path = tmp_path / "clips.jsonl"

    def attempt(data):
        path.write_bytes(data)
        return read(path)

    good = "".join(json.dumps(line) + "\n" for line in GOOD).encode()
    assert all(fuzzer.run("manifest, bytes", changed_bytes(good, most=3), 100 * share, attempt))


def read(path):
    try:
        entries = read_entries(path)
    except ValueError as error:
        return refusal(error, REASONS, f"{path}:", f"{path} holds no line")
    check(entries, path)
    return ""
