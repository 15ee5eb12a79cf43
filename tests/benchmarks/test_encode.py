"""The benchmark of encoders runs every part, and counts operations. Its measurements mean nothing here."""

import json
from dataclasses import replace

import pytest

from audiox_trainer.trainer.benchmarks import encode
from audiox_trainer.trainer.core.config import load_pretrain_config
from tests.helpers.encoder_weights import film, save_all
from tests.helpers.small_config import small_config

pytestmark = pytest.mark.slow

PARTS = ["codec", "images", "motion", "codec, images and motion", "text"]


def test_random_weights_of_the_configured_sizes(tmp_path):
    config = small_config(
        None,
        'model.codec={"kind": "oobleck", "sample_rate": 8000, "audio_channels": 2, "hop": 2048, "frames": 4, '
        '"latent_channels": 4}',
        'model.text={"kind": "t5", "dim": 64, "max_tokens": 8}',
        'model.video={"kind": "clip_sync", "dim": 64, "image_rate": 5, "motion_rate": 25, "size": 32, '
        '"steps": 16, "pool": 2}',
    )
    film(tmp_path / "clip.mp4", 2.1)
    result = encode.measure(config, True, batch=1, rounds=2, media=tmp_path / "clip.mp4")
    rows = {row["part"]: row for row in result["rows"]}
    assert list(rows) == [*PARTS, "decoding, one process"]
    for row in rows.values():
        assert 0 < row["low"] <= row["clips_per_s"] <= row["high"]
    assert rows["codec, images and motion"]["tflop_per_clip"] == pytest.approx(
        sum(rows[part]["tflop_per_clip"] for part in ("codec", "images", "motion"))
    )
    assert result["slowest"] in rows
    assert len(encode.summary_lines(result)) == 2 + len(rows)
    with pytest.raises(ValueError, match=r"model.codec.hop: 256, but Oobleck as it was released has 2048"):
        codec = replace(config.model.codec, hop=256)
        encode.measure(replace(config, model=replace(config.model, codec=codec)), True, 1, 1, None)


def test_the_configured_weights_are_measured_too(tmp_path):
    config = small_config(None, *save_all(tmp_path))
    result = encode.measure(config, False, batch=1, rounds=1, media=None)
    assert [row["part"] for row in result["rows"]] == PARTS
    json.dumps(result)


def test_operations_at_the_true_size(root):
    """Synchformer by hand: 16·W² products per token and block, 1,569 tokens, 30 segments; embedding, attention
    and gathering add a tenth."""
    counted = encode.count_flops(load_pretrain_config(root / "configs/2p7b.json", []).model)
    blocks = 2 * 16 * 768**2 * 1569 * 12 * 30
    assert blocks < counted["motion"] < 1.1 * blocks
    vision = 2 * 12 * 768**2 * 50 * 12 * 50  # 50 images of 50 tokens
    assert vision < counted["images"] < 1.1 * vision
    t5 = 2 * 12 * 768**2 * 128 * 12
    assert t5 < counted["text"] < 1.1 * t5
