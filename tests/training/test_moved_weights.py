"""Frozen weights may be moved: a run resumes, and a teacher is loaded, wherever they are now."""

from dataclasses import replace

import pytest

from audiox_trainer.models.audiox import AudioX
from audiox_trainer.trainer.distillation.distill import load_teacher
from audiox_trainer.trainer.training import run_folder
from tests.helpers.small_config import small_config, small_distill_config


def moved(config, **changes):
    text = replace(config.model.text, weights="elsewhere", **changes)
    return replace(config, model=replace(config.model, text=text))


def test_a_run_goes_on(tmp_path):
    config = small_config()
    run_folder.write_config(tmp_path, config)
    run_folder.check_unchanged(tmp_path, moved(config))
    with pytest.raises(ValueError, match=r"model.text.max_tokens: the run in .* has 24, this configuration 25"):
        run_folder.check_unchanged(tmp_path, moved(config, max_tokens=25))


def test_a_teacher_is_taken(tmp_path):
    config = small_distill_config()
    AudioX(config.model).save_pretrained(tmp_path / "teacher")
    load_teacher(moved(config), tmp_path / "teacher")
    with pytest.raises(ValueError, match=r"model.text.max_tokens: the teacher in .* has 24"):
        load_teacher(moved(config, max_tokens=25), tmp_path / "teacher")
