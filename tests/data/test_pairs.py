"""The settings of a folder of pairs: what differs is named by its key, what is wrong by its file."""

import json
from dataclasses import replace

import pytest

from audiox_trainer.models import strict
from audiox_trainer.trainer.core.config import DataConfig, StreamConfig
from audiox_trainer.trainer.data.pairs import PAIRS_FILE, PairSettings, check_resumable, read_pair_settings
from audiox_trainer.trainer.data.shards import ShardError

DATA = DataConfig((StreamConfig("data/scenes/audio", {"T2A": 1.0}),))
SETTINGS = PairSettings("0123", "fp32", 3.0, 50, 1.0, DATA, 0, 8, 1, 0, 1)


def test_a_folder_of_other_data_is_not_resumed(tmp_path):
    (tmp_path / PAIRS_FILE).write_text(json.dumps(strict.to_dict(SETTINGS)))
    check_resumable(tmp_path, SETTINGS)
    other = replace(SETTINGS, data=replace(DATA, completion_prefix=(0.3, 0.5)))
    with pytest.raises(ValueError, match=r"with data.completion_prefix \[0.3, 0.6\], now it is \[0.3, 0.5\]; keep"):
        check_resumable(tmp_path, other)


def test_a_file_of_settings_with_other_keys_is_named(tmp_path):
    settings = strict.to_dict(SETTINGS)
    settings["data"]["prefix"] = settings["data"].pop("completion_prefix")
    (tmp_path / PAIRS_FILE).write_text(json.dumps(settings))
    with pytest.raises(ShardError, match=r"pairs.json: data.prefix: is called completion_prefix now; make the pairs"):
        read_pair_settings(tmp_path)
