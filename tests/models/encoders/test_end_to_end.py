"""From recordings and videos to sound with T5, CLIP, Synchformer and Oobleck, by the commands that a user types."""

import json

import numpy as np
import pytest
import soundfile

from audiox_trainer.models.config import ModelConfig
from audiox_trainer.trainer.core.config import load_pretrain_config
from tests.helpers.encoder_weights import film, save_all
from tests.helpers.read_records import read_records
from tests.helpers.run_script import run_script
from tests.helpers.small_config import small_json

pytestmark = pytest.mark.slow


@pytest.mark.long
def test_from_media_to_sound(tmp_path):
    film(tmp_path / "clip.mp4", 2.1)
    soundfile.write(tmp_path / "tone.wav", 0.2 * np.sin(np.arange(32000) / 5), 16000)
    lines = [
        {"video": "clip.mp4", "captions": ["a tone rises", "a long text " * 40]},
        {"audio": "tone.wav", "captions": ["a bell, then two kicks"]},
    ]
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = small_json(
        None,
        *save_all(tmp_path / "weights"),
        f'data.streams=[{{"path": "{tmp_path}/data/audio", "tasks": {{"T2A": 1, "V2A": 1, "inpainting": 1}}}}]',
        "training.steps=2",
        "training.global_batch=4",
        "training.micro_batch=2",
        "data.canonical_nodes=1",
        "checkpoint.every=2",
        "logging.preview_every=2",
        'logging.preview_prompts=["a bell"]',
    )
    config = tmp_path / "real.json"
    config.write_text(json.dumps(data))
    model: ModelConfig = load_pretrain_config(config, []).model

    run_script("launch/prepare.py", "files", "--manifest", tmp_path / "clips.jsonl", "--config", config,
        "--out", tmp_path / "data", "--workers", 1)  # fmt: skip
    records = read_records(tmp_path / "data" / "audio", model.video.dim)
    assert len(records) >= 4
    for record in records:
        assert record.latent_mean.shape == record.latent_std.shape == (32, 8)
        assert (record.latent_std > 0).all()
        assert (record.image.shape, record.motion.shape) in {((6, 32), (16, 32)), ((0, 32), (0, 32))}
    assert any(len(record.motion) for record in records)

    run_script("launch/pretrain.py", "--config", config, "--output", tmp_path / "run")
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([line["loss"] for line in metrics if "loss" in line]).all()
    run_script("launch/convert.py", tmp_path / "run", "--out", tmp_path / "model")
    run_script("launch/generate.py", "--weights", tmp_path / "model", "--video", tmp_path / "clip.mp4",
        "--text", "a tone rises", "--steps", 2, "--out", tmp_path / "made.wav")  # fmt: skip
    wave, rate = soundfile.read(tmp_path / "made.wav")
    assert rate == 8000 and wave.shape == (pytest.approx(2.1 * 8000, abs=400), 2)  # as long as the video
    assert np.isfinite(wave).all() and wave.std() > 0
