"""Shards for the released network, and a training on them, by the commands that a user types."""

import json

import numpy as np
import pytest
import soundfile

from audiox_trainer.models import strict
from tests.helpers.encoder_weights import film
from tests.helpers.read_records import read_records
from tests.helpers.released_weights import released_config, save_released
from tests.helpers.run_script import run_script

pytestmark = pytest.mark.slow


@pytest.mark.long
def test_from_media_to_a_finetuned_network(tmp_path):
    film(tmp_path / "clip.mp4", 2.1, size=64)
    soundfile.write(tmp_path / "tone.wav", 0.2 * np.sin(np.arange(32000) / 5), 16000)
    lines = [
        {"video": "clip.mp4", "captions": ["a tone rises"]},
        {"audio": "tone.wav", "captions": ["a bell, then two kicks"]},
    ]
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    weights = save_released(tmp_path / "released")
    config = released_config(
        weights,
        f'data.streams=[{{"path": "{tmp_path}/data/audio", "tasks": {{"T2A": 1, "V2A": 1, "inpainting": 1}}}}]',
        "data.dropout.all=0.3",
        "training.steps=2",
        "training.global_batch=4",
        "training.micro_batch=2",
        "data.canonical_nodes=1",
        "checkpoint.every=2",
        "logging.preview_every=2",
        'logging.preview_prompts=["a bell"]',
    )
    file = tmp_path / "released.json"
    file.write_text(json.dumps(strict.to_dict(config)))
    run_script("launch/prepare.py", "files", "--manifest", tmp_path / "clips.jsonl", "--config", file,
        "--out", tmp_path / "data", "--workers", 1)  # fmt: skip
    records = read_records(tmp_path / "data" / "audio", 32)
    assert {(r.image.shape, r.motion.shape) for r in records} == {((30, 32), (16, 32)), ((0, 32), (0, 32))}

    said = run_script("launch/pretrain.py", "--config", file, "--output", tmp_path / "run")
    assert f"begins from {weights}" in said and "licence CC-BY-NC-4.0" in said
    run_script("launch/convert.py", tmp_path / "run", "--out", tmp_path / "mine")
    assert json.loads((tmp_path / "mine" / "config.json").read_text())["license"] == "CC-BY-NC-4.0"
    said = run_script("launch/generate.py", "--weights", tmp_path / "mine", "--video", tmp_path / "clip.mp4",
               "--text", "a tone rises", "--steps", 2, "--guidance", 3, "--out", tmp_path / "made.wav")  # fmt: skip
    assert "licence CC-BY-NC-4.0" in said
    wave, rate = soundfile.read(tmp_path / "made.wav")
    assert rate == 8000 and wave.shape == (pytest.approx(2.1 * 8000, abs=400), 2) and wave.std() > 0
