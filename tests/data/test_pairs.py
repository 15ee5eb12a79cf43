"""The settings of a folder of pairs: what differs is named by its key, what is wrong by its file."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from audiox_trainer.models import strict
from audiox_trainer.models.encoders.build import build_text_encoder
from audiox_trainer.trainer.core.config import DataConfig, StreamConfig
from audiox_trainer.trainer.data.batches import BatchAssembler
from audiox_trainer.trainer.data.condition_draws import SampleConditions
from audiox_trainer.trainer.data.pairs import (
    PAIRS_FILE,
    PairSettings,
    check_resumable,
    pair_batch,
    pair_record,
    read_pair_settings,
)
from audiox_trainer.trainer.data.reader import StepSamples
from audiox_trainer.trainer.data.record import Record, from_columns, to_columns, validate
from audiox_trainer.trainer.data.shards import ShardError

DATA = DataConfig((StreamConfig("data/scenes/audio", {"T2A": 1.0}),))
SETTINGS = PairSettings("0123", "fp32", 3.0, (0.0, 1.0), 50, 1.0, DATA, 0, 8, 1, 0, 1)


def test_a_folder_of_other_data_is_not_resumed(tmp_path):
    (tmp_path / PAIRS_FILE).write_text(json.dumps(strict.to_dict(SETTINGS)))
    check_resumable(tmp_path, SETTINGS)
    other = replace(SETTINGS, data=replace(DATA, completion_prefix=(0.3, 0.5)))
    with pytest.raises(ValueError, match=r"with data.completion_prefix \[0.3, 0.6\], now it is \[0.3, 0.5\]; keep"):
        check_resumable(tmp_path, other)


def test_a_key_that_is_newer_than_the_folder(tmp_path):
    """Without a value the folder is resumed; with one its pairs would be of other data."""
    older = strict.to_dict(SETTINGS)
    del older["data"]["streams"][0]["captions"]
    (tmp_path / PAIRS_FILE).write_text(json.dumps(older))
    check_resumable(tmp_path, SETTINGS)
    weighed = replace(DATA, streams=(replace(DATA.streams[0], captions={"*/count": 2.0}),))
    with pytest.raises(ValueError, match=r"with data\.streams\.0\.captions.* None, now it is .*count.*; keep"):
        check_resumable(tmp_path, replace(SETTINGS, data=weighed))


def test_a_file_of_settings_with_other_keys_is_named(tmp_path):
    settings = strict.to_dict(SETTINGS)
    settings["data"]["prefix"] = settings["data"].pop("completion_prefix")
    (tmp_path / PAIRS_FILE).write_text(json.dumps(settings))
    with pytest.raises(ShardError, match=r"pairs.json: data.prefix: is called completion_prefix now; make the pairs"):
        read_pair_settings(tmp_path)


def test_a_pair_keeps_what_precedes_its_clip(small):
    model, rows = small.model, np.random.default_rng(0).standard_normal
    assembler = BatchAssembler(model, small.data, build_text_encoder(model.text), 0)
    no_video = np.empty((0, 16), np.float32)
    latents = rows((8, 16), np.float32)
    record = Record("a", "music", latents, latents, no_video, no_video, [], {}, 2.0, rows((5, 16), np.float32))
    choice = SampleConditions("completion", "Continue the music.", False, torch.zeros(8), preceding=True)
    pair = pair_record(record, choice, torch.ones(8, 16), (0, 1, 2))
    stored = from_columns(to_columns(validate(pair, model.codec, model.video)), 16)
    older = replace(stored, annotation=json.loads(json.dumps(stored.annotation)))
    del older.annotation["condition"]["preceding"]
    batch = pair_batch(assembler, StepSamples(0, [stored, older], [{}, {}], [0, 1], ("x", "x")))
    assert torch.equal(batch.conditions.audio[0, 3:], torch.from_numpy(record.preceding).half().float())
    assert not batch.conditions.audio[0, :3].any() and not batch.conditions.audio[1].any()
    assert not batch.given_mask.any()
